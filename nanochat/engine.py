"""The engine continues token sequences: many prompts of different lengths in one batch, or one as a stream.

A batch of prompts is padded on the right and read in one pass (prefill); then every step reads one token a row (decode). The
keys and values of what was read stay in a `KVCache`, each row at its own length. Rows that are finished leave when they are
half of the batch. A row draws from random numbers of its own, so what it says does not depend on its company.

The model may use a calculator: when it closes a `<|python_start|>` ... `<|python_end|>`, the expression between is computed,
and the result is put into the row as if the model had said it.

Letters in the shape comments: B rows, T new tokens a row, S keys, G heads of keys and values, D width of a head, C model width.
"""

import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nanochat.batching import context_limit, pad_right
from nanochat.calculator import calculate
from nanochat.errors import UserError
from nanochat.gpt import GPT, GPTConfig
from nanochat.progress import Progress
from nanochat.tokenizer import Tokenizer

MAX_ROWS = 64
CPU_CACHE_BYTES = 2 * 1024**3


class KVCache:
    """Keys and values of the tokens already read, for rows of different lengths.

    The model asks it for the `positions` of the new tokens, stores their keys and values layer by layer with `update`, and
    moves on with `advance`. Behind a row's own length lie zeros, padding or leftovers: the model masks every key behind a
    query's position, and `update` overwrites them as the row grows.
    """

    def __init__(self, config: GPTConfig, batch_size: int, capacity: int, dtype: torch.dtype, device: torch.device | str):
        shape = (config.n_layer, batch_size, config.n_kv_head, capacity, config.head_dim)
        self.k = torch.zeros(shape, dtype=dtype, device=device)  # zeros: masked out or not, NaN times 0 is NaN
        self.v = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = torch.zeros(batch_size, dtype=torch.long, device=device)

    @property
    def lengths(self) -> Tensor:
        """Tokens held by each row, (B,)."""
        return self._lengths

    @lengths.setter
    def lengths(self, lengths: Tensor) -> None:
        self._lengths = lengths.to(self.k.device)
        # the host's own copy of what every layer needs to know, or each of them would wait for the GPU
        self._shortest, self._longest = int(lengths.min()), int(lengths.max())

    @property
    def capacity(self) -> int:
        return self.k.size(3)

    def positions(self, num_tokens: int) -> Tensor:
        """Where the next tokens of each row stand in its sequence, (B, T)."""
        return self._lengths[:, None] + torch.arange(num_tokens, device=self._lengths.device)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new keys and values (B, G, T, D) of a layer; returns all up to the longest row's last, (B, G, S, D)."""
        num_tokens = k.size(2)
        end = self._longest + num_tokens
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens a row, and {end} were stored")
        for kept, new in ((self.k[layer], k), (self.v[layer], v)):
            if self._shortest == self._longest:
                kept[:, :, self._longest : end] = new
            else:
                rows = torch.arange(k.size(0), device=k.device)[:, None]
                kept[rows, :, self.positions(num_tokens)] = new.transpose(1, 2)  # (B, T, G, D)
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]

    def advance(self, num_tokens: int) -> None:
        self._lengths = self._lengths + num_tokens
        self._shortest += num_tokens
        self._longest += num_tokens

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        index = torch.tensor(rows, device=self.k.device)
        self.k, self.v = self.k[:, index], self.v[:, index]
        self.lengths = self._lengths[index]


@dataclass
class Row:
    """One prompt and what has been said after it."""

    prompt: Sequence[int]
    max_tokens: int
    random: random.Random
    tokens: list[int] = field(default_factory=list)
    forced: deque[int] = field(default_factory=deque)  # tokens that come next, whatever the model says
    expression: list[int] | None = None  # tokens since <|python_start|>, while the model writes one
    finished: bool = False
    idle: bool = False  # finished, and still in the batch


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
        self.stop_ids = {tokenizer.bos_id, tokenizer.special_id("<|assistant_end|>")}
        self.python_start = tokenizer.special_id("<|python_start|>")
        self.python_end = tokenizer.special_id("<|python_end|>")
        self.output_start = tokenizer.special_id("<|output_start|>")
        self.output_end = tokenizer.special_id("<|output_end|>")

    def generate_batch(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        seed: int | str = 0,
        keys: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """Continue each prompt until the model ends its answer, says `max_new_tokens`, or its positions run out.

        Returns the new tokens of each prompt, results of the calculator among them, the stop token not. Temperature 0 takes the
        likeliest token; top_k None or 0 draws from all. A row's random numbers come from `seed` and its key (its place in
        `prompts`, unless `keys` says otherwise), so it says the same in any batch, up to rounding in the model.

        Raises UserError for a prompt that is empty or longer than the model can read.
        """
        keys = range(len(prompts)) if keys is None else keys
        rows = [self._row(prompt, max_new_tokens, f"{seed}/{key}") for prompt, key in zip(prompts, keys, strict=True)]
        progress = Progress("generation", len(rows), "answers")
        for batch in self._batches(rows):
            for num_finished in self._decode(batch, temperature, top_k):
                progress.add(num_finished)
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
        row = self._row(prompt, max_new_tokens, f"{seed}/0")
        num_given = 0
        for _ in self._decode([row], temperature, top_k):
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

    # -- one batch -----------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _decode(self, rows: list[Row], temperature: float, top_k: int | None) -> Iterator[int]:
        """Continue the rows together until all are finished; yields after every step how many it finished."""
        cache, hidden = self._prefill(rows)
        while True:
            num_finished = sum(row.finished for row in rows)
            self._say_next(rows, self.model.logits(hidden), temperature, top_k)
            yield sum(row.finished for row in rows) - num_finished
            rows = self._retire(rows, cache)
            if not rows:
                return
            # a finished row that is still here reads padding: nobody looks at it
            last = [[row.tokens[-1] if row.tokens else self.tokenizer.bos_id] for row in rows]
            hidden = self.model.hidden(torch.tensor(last, device=self.device), cache)[:, -1]  # (B, C)

    def _prefill(self, rows: list[Row]) -> tuple[KVCache, Tensor]:
        lengths = torch.tensor([len(row.prompt) for row in rows])
        capacity = max(len(row.prompt) + row.max_tokens for row in rows)
        cache = KVCache(self.model.config, len(rows), capacity, self.model.compute_dtype, self.device)
        prompts = pad_right([row.prompt for row in rows], pad_id=self.tokenizer.bos_id, device=self.device)
        x = self.model.hidden(prompts, cache)  # (B, T, C)
        cache.lengths = lengths  # what was stored behind them came from padding
        return cache, x[torch.arange(len(rows)), lengths - 1]  # (B, C)

    def _say_next(self, rows: list[Row], logits: Tensor, temperature: float, top_k: int | None) -> None:
        draws = [0.0 if row.finished or row.forced else row.random.random() for row in rows]
        for row, token in zip(rows, choose(logits, draws, temperature, top_k), strict=True):
            if not row.finished:
                self._accept(row, row.forced.popleft() if row.forced else token)

    def _accept(self, row: Row, token: int) -> None:
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

    def _retire(self, rows: list[Row], cache: KVCache) -> list[Row]:
        """The rows that go on, in a smaller cache once half of them are finished."""
        going = [index for index, row in enumerate(rows) if not row.finished]
        if len(going) <= len(rows) // 2:
            if going:
                cache.keep(going)
            return [rows[index] for index in going]
        if any(row.finished and not row.idle for row in rows):
            # a finished row starts again at 0, or it would run into the end of the cache and of the model's positions
            cache.lengths = cache.lengths * torch.tensor([not row.finished for row in rows], device=self.device)
            for row in rows:
                row.idle = row.finished
        return rows

    # -- rows and batches ----------------------------------------------------------------------------------------------------

    def _row(self, prompt: Sequence[int], max_new_tokens: int, seed: str) -> Row:
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens {max_new_tokens} asks for nothing; it must be at least 1")
        if not 0 < len(prompt) <= self.limit:
            raise UserError(f"a prompt has {len(prompt)} tokens; this model reads 1 to {self.limit}. Shorten the prompt")
        # the last token said is never read, so it needs no position
        return Row(prompt, min(max_new_tokens, self.limit + 1 - len(prompt)), random.Random(seed))

    def _batches(self, rows: list[Row]) -> Iterator[list[Row]]:
        """Rows of similar length, as many together as the cache has memory for."""
        config = self.model.config
        token_bytes = 2 * config.n_layer * config.n_kv_head * config.head_dim * self.model.compute_dtype.itemsize
        batch: list[Row] = []
        for row in sorted(rows, key=lambda row: -len(row.prompt)):
            capacity = len((batch or [row])[0].prompt) + row.max_tokens
            full = (len(batch) + 1) * capacity * token_bytes > self.cache_bytes
            if batch and (full or len(batch) == self.max_rows):
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch


def choose(logits: Tensor, draws: Sequence[float], temperature: float, top_k: int | None) -> list[int]:
    """One token a row: the first at which the summed probabilities of its scores (B, V) pass its random number in [0, 1).

    With top_k, only the k likeliest tokens take part. Temperature 0 takes the likeliest (of equals: the first).
    """
    if temperature < 0:
        raise UserError(f"temperature {temperature} is below 0; 0 takes the likeliest token, 1 draws as the model was trained")
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
    """Memory for keys and values: half of what a GPU has free, a fixed share of a CPU's."""
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else CPU_CACHE_BYTES
