"""The engine continues token sequences: many prompts of different lengths in one batch, or one as a stream.

Prompts are read whole (prefill), several in one pass without padding. Then every step reads one token a row (decode). The keys
and values of what was read stay in a `KVCache`, each row in a slot of its own at its own length. A row that is finished leaves,
and the next prompt takes its slot (continuous batching, Orca, OSDI 2022), so the batch stays full until the prompts run out. A
row draws from random numbers of its own, so what it says does not depend on its company.

The model may use a calculator: when it closes a `<|python_start|>` ... `<|python_end|>`, the expression between is computed,
and the result is put into the row as if the model had said it.

Letters in the shape comments: B rows, N tokens of all prompts, C model width, V vocabulary.
"""

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from nanochat.batching import Tree, context_limit, default_batch_tokens, flat_tokens
from nanochat.calculator import calculate
from nanochat.errors import UserError
from nanochat.gpt import GPT
from nanochat.kv_cache import KVCache, Prefill
from nanochat.progress import Progress
from nanochat.tokenizer import Tokenizer

MAX_ROWS = 64
CPU_CACHE_BYTES = 2 * 1024**3
REFILL = 8  # prompts enter once an eighth of the places is free: a pass for several costs little more than one for one


@dataclass
class Row:
    """One prompt and what has been said after it."""

    prompt: Sequence[int]
    max_tokens: int
    random: random.Random
    temperature: float = 0.0
    top_k: int | None = None
    tokens: list[int] = field(default_factory=list)
    forced: deque[int] = field(default_factory=deque)  # tokens that come next, whatever the model says
    expression: list[int] | None = None  # tokens since <|python_start|>, while the model writes one
    finished: bool = False

    @property
    def longest(self) -> int:
        """Tokens of it that are read at most; the last one said never is."""
        return len(self.prompt) + self.max_tokens - 1


class Engine:
    """Generate with a model and the tokenizer it was trained with."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, *, max_rows: int = MAX_ROWS, cache_bytes: int | None = None):
        if tokenizer.vocab_size > model.config.vocab_size:
            raise UserError(
                f"this tokenizer has {tokenizer.vocab_size} tokens and the model knows {model.config.vocab_size}: "
                "they do not belong together. Use the tokenizer.json of the model's own folder"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.device = model.wte.weight.device
        self.limit = context_limit(model.config)
        self.max_rows = max_rows
        self.cache_bytes = cache_bytes or default_cache_bytes(self.device)
        # on CPUs, attention of one query a row is 1.6 to 5 times faster in fp32 than in bf16
        self.cache_dtype = torch.float32 if self.device.type == "cpu" else model.compute_dtype
        self.stop_ids = {tokenizer.bos_id, tokenizer.special_id("<|assistant_end|>")}
        self.python_start = tokenizer.special_id("<|python_start|>")
        self.python_end = tokenizer.special_id("<|python_end|>")
        self.output_start = tokenizer.special_id("<|output_start|>")
        self.output_end = tokenizer.special_id("<|output_end|>")
        config = model.config
        # of the cache, for each token of a row
        self.token_bytes = 2 * config.n_layer * config.n_kv_head * config.head_dim * self.cache_dtype.itemsize

    def generate_batch(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        seed: int | str = 0,
        keys: Sequence[int | str] | None = None,
        poll: Callable[[float], None] | None = None,
    ) -> list[list[int]]:
        """Continue each prompt until the model ends its answer, says `max_new_tokens`, or its positions run out.

        Returns the new tokens of each prompt, results of the calculator among them, the stop token not. Temperature 0 takes the
        likeliest token; top_k None or 0 draws from all. A row's random numbers come from `seed` and its key (its place in
        `prompts`, unless `keys` says otherwise), so it says the same in any batch, up to rounding in the model. A prompt that
        is there several times is read once. `poll` is called before each step with the share that is done; it may raise.

        Raises UserError for a prompt that is empty or longer than the model can read.
        """
        rows = [
            self.row(prompt, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, seed=f"{seed}/{key}")
            for prompt, key in zip(prompts, range(len(prompts)) if keys is None else keys, strict=True)
        ]
        # the longest first: rows that are together have similar lengths, and memory runs out at once or never
        batch = Batch(self, sorted(rows, key=lambda row: -row.longest))
        progress = Progress("generation", len(rows), "answers")
        while batch:
            if poll is not None:
                poll(progress.done / progress.total)
            progress.add(sum(row.finished for row in batch.step()))
        return [row.tokens for row in rows]

    def stream(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        seed: int | str = 0,
    ) -> Iterator[int]:
        """The same tokens as `generate_batch` of one prompt, each as soon as it is known."""
        row = self.row(prompt, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, seed=f"{seed}/0")
        batch, num_given = Batch(self, [row]), 0
        while batch:
            batch.step()
            yield from row.tokens[num_given:]
            num_given = len(row.tokens)

    def complete(
        self,
        texts: Sequence[str],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        seed: int | str = 0,
    ) -> list[str]:
        """Continue texts as documents, as a base model does: what follows each, without the special tokens in it."""
        prompts = [self.tokenizer.encode(text, bos=True) for text in texts]
        answers = self.generate_batch(prompts, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, seed=seed)
        return [self.tokenizer.decode(answer, skip_special=True) for answer in answers]

    def row(self, prompt: Sequence[int], *, max_new_tokens: int, temperature: float, top_k: int | None, seed: int | str) -> Row:
        """A prompt to be continued. UserError if it cannot be."""
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens {max_new_tokens} asks for nothing; it must be at least 1")
        if not 0 < len(prompt) <= self.limit:
            raise UserError(f"a prompt has {len(prompt)} tokens; this model reads 1 to {self.limit}. Shorten the prompt")
        if temperature < 0:
            raise UserError(
                f"temperature {temperature} is below 0; 0 takes the likeliest token, 1 draws as the model was trained"
            )
        # the last token said is never read, so it needs no position
        longest = min(max_new_tokens, self.limit + 1 - len(prompt))
        return Row(prompt, longest, random.Random(seed), temperature, top_k)

    def accept(self, row: Row, token: int) -> None:
        """The next token of a row: what it means for what follows."""
        if token in self.stop_ids:
            row.finished = True
            return
        row.tokens.append(token)
        row.finished = len(row.tokens) >= row.max_tokens
        if token == self.python_start:
            row.expression = []
        elif token == self.python_end and row.expression is not None:
            result = calculate(self.tokenizer.decode(row.expression))
            row.expression = None
            if result is not None:
                row.forced.extend([self.output_start, *self.tokenizer.encode(result), self.output_end])
        elif row.expression is not None:
            row.expression.append(token)


class Batch:
    """Rows that are continued together. Those that are finished leave, and those that wait take their slots.

        batch = Batch(engine, rows)
        while batch:
            batch.step()

    What a row says is in its `tokens`. Rows may be added and dropped between two steps.
    """

    def __init__(self, engine: Engine, rows: Sequence[Row] = ()):
        self.engine, self.model = engine, engine.model
        self.waiting = deque(rows)
        self.slots: list[Row | None] = []
        self.cache = KVCache(engine.model.config, 0, 0, engine.cache_dtype, engine.device)

    def __bool__(self) -> bool:
        """Whether there is anything left to say."""
        return bool(self.waiting or self.running)

    @property
    def running(self) -> list[Row]:
        return [row for row in self.slots if row is not None]

    def add(self, row: Row) -> None:
        self.waiting.append(row)

    def drop(self, row: Row) -> None:
        """Nobody wants the rest of this row."""
        self.waiting = deque(other for other in self.waiting if other is not row)
        self.slots = [None if other is row else other for other in self.slots]
        self.leave()

    @torch.inference_mode()
    def step(self) -> list[Row]:
        """One more token for each running row, the first one for rows that enter; returns these rows."""
        running = [(slot, row) for slot, row in enumerate(self.slots) if row is not None]
        if running:
            hidden = self.decode()  # (B, C)
            self.say([row for _, row in running], hidden[[slot for slot, _ in running]])
        entered = self.enter()
        self.leave()
        return [*(row for _, row in running), *entered]

    def decode(self) -> Tensor:
        """Read the last token of every row: the hidden states (B, C). An empty slot reads padding, which nobody looks at."""
        last = [row.tokens[-1] if row else self.engine.tokenizer.bos_id for row in self.slots]
        hidden = self.model.hidden(torch.tensor(last)[:, None].to(self.engine.device, non_blocking=True), self.cache)
        self.cache.advance(1)
        return hidden[:, -1]

    def say(self, rows: Sequence[Row], hidden: Tensor) -> None:
        """Hidden states (B, C) -> the next token of each row, drawn or forced."""
        logits = self.model.logits(hidden)  # (B, V)
        kinds = {(row.temperature, row.top_k) for row in rows}
        for temperature, top_k in sorted(kinds, key=repr):
            places = [place for place, row in enumerate(rows) if (row.temperature, row.top_k) == (temperature, top_k)]
            draws = [0.0 if rows[place].forced else rows[place].random.random() for place in places]
            tokens = choose(logits if len(kinds) == 1 else logits[places], draws, temperature, top_k)
            for place, token in zip(places, tokens, strict=True):
                self.engine.accept(rows[place], rows[place].forced.popleft() if rows[place].forced else token)

    # -- entering and leaving ------------------------------------------------------------------------------------------------

    def enter(self) -> list[Row]:
        """Rows that wait take free slots, once there are enough; they are read in one pass and say their first token."""
        places = self.num_places()
        room = places - len(self.running)
        if not self.waiting or room < min(len(self.waiting), -(-places // REFILL)):
            return []
        rows = self.take(room)
        prompts: dict[tuple[int, ...], list[int]] = {}  # each is read once, however many rows it has
        for slot, row in zip(self.free_slots(rows), rows, strict=True):
            prompts.setdefault(tuple(row.prompt), []).append(slot)
            self.slots[slot], self.cache.lengths[slot] = row, len(row.prompt)
        trees = [Tree(prompt) for prompt in prompts]
        prefill = Prefill(trees, self.cache, list(prompts.values()))
        x = self.model.hidden(flat_tokens(trees, self.engine.device), prefill)[0]  # (prompts, C)
        number = {prompt: number for number, prompt in enumerate(prompts)}
        self.say(rows, x[[number[tuple(row.prompt)] for row in rows]])
        return rows

    def num_places(self) -> int:
        """How many rows like the next one may run together: the cache has memory for no more."""
        longest = max((row.longest for row in [*self.running, *islice(self.waiting, 1)]), default=1)
        return max(1, min(self.engine.max_rows, self.engine.cache_bytes // (longest * self.engine.token_bytes)))

    def take(self, room: int) -> list[Row]:
        """The next rows that wait, not more than there is room for, nor than are read in one pass."""
        rows = [self.waiting.popleft()]
        tokens_left = default_batch_tokens(self.engine.device) - len(rows[0].prompt)
        longest = max(row.longest for row in [*self.running, *rows])
        while self.waiting and len(rows) < room and self.waiting[0].longest <= longest:
            tokens_left -= len(self.waiting[0].prompt)
            if tokens_left < 0:
                break
            rows.append(self.waiting.popleft())
        return rows

    def free_slots(self, rows: Sequence[Row]) -> list[int]:
        """A slot for each of the rows, in a larger cache where this one is too small."""
        kept = [slot for slot, row in enumerate(self.slots) if row is not None]
        num_slots = max(self.cache.num_slots, len(kept) + len(rows))
        capacity = max([self.cache.capacity, *(row.longest for row in rows)])
        if num_slots * capacity * self.engine.token_bytes > self.engine.cache_bytes:  # no more than those here need, then
            num_slots, capacity = len(kept) + len(rows), max(row.longest for row in [*self.running, *rows])
        if (num_slots, capacity) != (self.cache.num_slots, self.cache.capacity):
            self.resize(kept, num_slots, capacity)
        return [slot for slot, row in enumerate(self.slots) if row is None][: len(rows)]

    def leave(self) -> None:
        """Finished rows free their slots; once nobody waits and half of the slots are free, the others move together."""
        self.slots = [None if row is None or row.finished else row for row in self.slots]
        # an empty slot starts again at 0, or it would run into the end of the cache and of the model's positions
        self.cache.lengths = [length if row else 0 for length, row in zip(self.cache.lengths, self.slots, strict=True)]
        kept = [slot for slot, row in enumerate(self.slots) if row is not None]
        if not self.waiting and len(kept) <= len(self.slots) // 2:
            self.resize(kept, len(kept), self.cache.capacity if kept else 0)

    def resize(self, kept: Sequence[int], num_slots: int, capacity: int) -> None:
        self.cache = self.cache.resized(kept, num_slots, capacity)
        self.slots = [self.slots[slot] for slot in kept] + [None] * (num_slots - len(kept))


def choose(logits: Tensor, draws: Sequence[float], temperature: float, top_k: int | None) -> list[int]:
    """One token a row: the first at which the summed probabilities of its scores (B, V) pass its random number in [0, 1).

    With top_k, only the k likeliest tokens take part. Temperature 0 takes the likeliest (of equals: the first).
    """
    if temperature == 0:
        return logits.argmax(dim=1).tolist()
    tokens = None
    if top_k and top_k < logits.size(1):
        logits, tokens = logits.topk(top_k, dim=1)
    summed = (logits / temperature).softmax(dim=1).cumsum(dim=1)  # (B, V or k), rising to almost exactly 1
    total = summed[:, -1:]  # (B, 1)
    marks = torch.tensor(draws, dtype=summed.dtype, device=summed.device)[:, None] * total  # (B, 1)
    # a draw next to 1 rounds up to it, and behind the total there are only tokens of probability 0
    marks = marks.minimum(total.nextafter(torch.zeros_like(total)))
    index = torch.searchsorted(summed, marks, right=True)  # (B, 1)
    return (index if tokens is None else tokens.gather(1, index))[:, 0].tolist()


def default_cache_bytes(device: torch.device) -> int:
    """Memory for keys and values: a third of what a GPU has free, since a cache that grows is there twice for a moment."""
    return torch.cuda.mem_get_info(device)[0] // 3 if device.type == "cuda" else CPU_CACHE_BYTES
