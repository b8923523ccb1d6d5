"""One prompt through a model, every line of it: from text to token ids, through the model's forward pass, to the next token.

The lines are those of `nanochat/tokenizer.py`, `nanochat/gpt.py` and `nanochat/engine.py` as they run (see `lines.py`); here is
only what is noted of the values they make. The model is computed in float32 on the CPU, and its attention is written out
(`attention: naive`), since fused kernels never show their weights. The result is plain JSON, floats with six digits:

    prompt, tokens, pieces     the text, its token ids with their bytes, and the pieces into which it was cut before
    sources, functions         the files as they are, and the functions that ran: file, lines, one sentence
    steps                      one for each line that ran: where, in which module, its values with shape, mean, spread, min, max
    pictures                   heat maps of these values (see `pictures.py`), each once
    attention                  the weights of every head of every layer
    residual                   how large the residual stream is, token by token, after each half of each block (and after the
                               smear, the scales and the backout of models that have them): what was added adds up to it
    lens                       the likeliest next tokens after each block: the stream, unembedded as if it were the last
    choice                     how the last line's scores become a token

Covered: any prompt of 1 to 128 tokens (MAX_PROMPT_TOKENS).
Not covered: fused attention and the cache of keys and values, which give the same numbers up to rounding.
"""

import dataclasses
import hashlib
import inspect
import re
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import regex
import torch
from torch import Tensor, nn

from nanochat import engine, gpt, presets
from nanochat import tokenizer as tokenizer_module
from nanochat.batching import context_limit
from nanochat.errors import UserError
from nanochat.gpt import GPT, GPTConfig
from nanochat.sections import MAX_PROMPT_TOKENS
from nanochat.text import visible
from nanochat.tokenizer import Tokenizer, clean_text
from nanochat.tracing.lines import Line, LineRecorder, Source, read_source
from nanochat.tracing.pictures import attention_triangle, encode, number, picture, summary

MANY = 512  # tokens times blocks, from which on pictures are smaller
TOP = 10  # likeliest tokens kept after each block
# how the next token is drawn: as in a chat, with a draw that is always the same
TEMPERATURE, TOP_K, DRAW = 1.0, 10, 0.5

FILES = {Path(inspect.getsourcefile(module) or ""): module.__name__ for module in (tokenizer_module, gpt, engine)}
# lines of GPT.hidden that change the stream between two blocks, at its beginning and at its end
BETWEEN = {"self.smear(": "smear", "self.scale(": "scales", "self.back_out(": "backout"}
LEGEND = re.compile(r"(?<!\S)([A-Z])  (\S.*?)(?=   +[A-Z]  |$)", re.MULTILINE)


def trace_forward(
    model: GPT, tokenizer: Tokenizer, prompt: str, *, name: str, is_chat: bool, is_trained: bool = True
) -> dict[str, Any]:
    """Everything that happens between the prompt and the next token, as plain JSON.

    `name` is what pages call the model; `is_chat` puts the prompt into a conversation, as `nanochat.chat` does; `is_trained`
    tells pages whether the numbers mean anything. UserError for an empty prompt, and for more than MAX_PROMPT_TOKENS tokens.
    """
    traced = written_out(model)
    ids = encode_prompt(tokenizer, prompt, is_chat)
    check_length(ids, traced.config)
    recording = Recording(traced, len(ids))
    with torch.no_grad(), LineRecorder(FILES, recording.add):
        ids = encode_prompt(tokenizer, prompt, is_chat)
        logits = traced(torch.tensor([ids]))  # (B, T, V)
        chosen = engine.choose(logits[:, -1], [DRAW], temperature=TEMPERATURE, top_k=TOP_K)
    lens = unembedded(traced, recording.streams, logits, ids)
    shown = {token for row in lens for token in [*row["positions"]["top"], *(entry[0] for entry in row["top"])]}
    return {
        "name": visible(name),
        "prompt": visible(prompt, keep="\n"),
        "is_chat": is_chat,
        "is_trained": is_trained,
        "preset": nearest_preset(traced.config),
        "config": traced.config.as_dict() | {"attention": model.config.attention},
        "num_parameters": traced.num_parameters(),
        "letters": letters(traced.config, len(ids)),
        "tokens": [token_entry(tokenizer, token) for token in ids],
        "pieces": pieces(tokenizer, prompt, ids),
        "vocabulary": {str(token): token_text(tokenizer, token) for token in sorted(shown | set(chosen))},
        "sources": {module_file(source): list(source.lines) for source in map(read_source, FILES)},
        "functions": recording.functions(),
        "calls": recording.calls,
        "steps": recording.steps,
        "pictures": recording.pictures,
        "attention": recording.attention,
        "residual": recording.residual,
        "lens": lens,
        "choice": {"token": chosen[0], "temperature": TEMPERATURE, "top_k": TOP_K, "draw": DRAW},
        "logits_sha256": hashlib.sha256(logits.contiguous().numpy().tobytes()).hexdigest(),
    }


def counterpart(config: GPTConfig) -> GPTConfig:
    """Another preset at the same sizes: textbook for a model that is nearest to nanochat, nanochat for all others.

    Heads of an odd width cannot be turned (rope), so there the positions are learned in both.
    """
    other = next(name for name in presets.PRESETS if name != nearest_preset(config))
    sizes = {key: value for key, value in config.as_dict().items() if key not in presets.COMPONENTS}
    return GPTConfig.preset(other, **sizes, **({"positions": "learned"} if config.head_dim % 2 else {}))


def nearest_preset(config: GPTConfig) -> str:
    """The preset with which the model shares most components."""
    return presets.nearest_preset(config.as_dict())


def untrained(config: GPTConfig, seed: int = 0) -> GPT:
    """A model as it is before its training, in float32."""
    return GPT(config).init_weights(seed).eval()


def written_out(model: GPT) -> GPT:
    """The same model with the same weights, not copied if they are on the CPU; attention written out, float32."""
    config = dataclasses.replace(model.config, attention="naive")
    with torch.device("meta"):
        traced = GPT(config)
    traced.load_state_dict({name: tensor.detach().float().cpu() for name, tensor in model.state_dict().items()}, assign=True)
    if config.tied_head:
        traced.lm_head.weight = traced.wte.weight  # loaded as two
    traced.rope = gpt.RotaryEmbedding(config) if traced.rope is not None else None
    return traced.eval()


def encode_prompt(tokenizer: Tokenizer, prompt: str, is_chat: bool) -> list[int]:
    """The ids that the model reads: a document that begins with the prompt, or a conversation that asks it."""
    if not prompt.strip():
        raise UserError("the prompt is empty: give a text to follow through the model")
    if is_chat:
        return tokenizer.render_prompt({"messages": [{"role": "user", "content": prompt}]})
    return tokenizer.encode(prompt, bos=True)


def check_length(ids: Sequence[int], config: GPTConfig) -> None:
    limit = min(MAX_PROMPT_TOKENS, context_limit(config))
    if len(ids) > limit:
        model = "" if limit == MAX_PROMPT_TOKENS else f" (the {nearest_preset(config)} model has no more positions)"
        raise UserError(
            f"the prompt has {len(ids)} tokens, and at most {limit} can be shown line by line{model}. Shorten it (in a "
            "configuration: trace.prompt)"
        )


# -- the lines ---------------------------------------------------------------------------------------------------------------


class Recording:
    """What is kept of the lines of one forward pass."""

    def __init__(self, model: GPT, num_tokens: int):
        self.num_tokens = num_tokens
        self.are_many = num_tokens * model.config.n_layer > MANY
        self.modules = {id(module): path for path, module in model.named_modules()}
        self.steps: list[dict[str, Any]] = []
        self.calls: dict[str, str] = {}
        self.pictures: list[dict[str, Any]] = []
        self.attention: list[dict[str, Any]] = []
        self.residual: list[dict[str, Any]] = []
        self.streams: list[tuple[int, int | None, Tensor]] = []  # step, layer, the residual stream (1, T, C)
        self._stream: Tensor | None = None
        self._picture_numbers: dict[str, int] = {}
        self._letters: dict[int, tuple[weakref.ref, str]] = {}

    def add(self, line: Line) -> None:
        module = self.module_of(line)
        layer = layer_of(module)
        self.calls[str(line.call)] = line.function
        self.calls |= {str(call.number): call.function for call in line.callers}
        step: dict[str, Any] = {
            "file": module_file_of(line.file),
            "function": line.function,
            "line": line.line,
            "end_line": line.end_line,
            "code": line.code,
            "module": module,
            "layer": layer,
            "call": line.call,
            "callers": [[call.number, call.line] for call in line.callers],
            "values": [entry for name, value in line.values.items() for entry in self.describe(name, value, line)],
        }
        if line.letters:
            step["letters"] = line.letters
        if line.taken is not None:
            step["taken"] = line.taken
        if parameters := own_parameters(line.frame_self):
            step["parameters"] = parameters
        self.steps.append(step)
        self.notice(line, layer)

    def notice(self, line: Line, layer: int | None) -> None:
        """Keep what the overviews show: attention weights, and the residual stream on its way."""
        if is_attention(line, "weights") and isinstance(weights := line.values.get("weights"), Tensor):
            self.attention.append({"layer": layer, "step": len(self.steps) - 1, **attention_entry(weights[0])})
        if line.function == "GPT.embed" and isinstance(embedded := line.values.get("return"), Tensor):
            self.follow_stream(embedded, layer, "embedding")
            self.streams.append((len(self.steps) - 1, None, embedded.clone()))
        if line.function == "GPT.hidden" and isinstance(stream := line.values.get("x"), Tensor):
            self.follow_between(stream, next((part for code, part in BETWEEN.items() if code in line.code), None))
        if line.function == "Block.forward" and isinstance(stream := line.values.get("x"), Tensor):
            called = re.search(r"self\.(?!ln_)(\w+)\(", line.code)  # attn or mlp
            self.follow_stream(stream, layer, called[1] if called else "")
        if line.function == "Block.forward" and isinstance(stream := line.values.get("return"), Tensor):
            self.streams.append((len(self.steps) - 1, layer, stream.clone()))

    def follow_between(self, stream: Tensor, part: str | None) -> None:
        """A change of the stream by no block: scales belong to the block that follows, the others to what was before them."""
        if part is None:
            return
        num_blocks_passed, (_, last, _) = len(self.streams) - 1, self.streams[-1]
        self.follow_stream(stream, num_blocks_passed if part == "scales" else last, part)
        if part != "scales":
            self.streams[-1] = (len(self.steps) - 1, last, stream.clone())

    def follow_stream(self, stream: Tensor, layer: int | None, half: str) -> None:
        """Root mean square of the residual stream (1, T, C) at each token, and of what this half of a block added to it."""
        entry: dict[str, Any] = {"layer": layer, "half": half, "step": len(self.steps) - 1, "rms": root_mean_square(stream)}
        if self._stream is not None:
            entry["added"] = root_mean_square(stream - self._stream)
        self.residual.append(entry)
        self._stream = stream.clone()

    def module_of(self, line: Line) -> str:
        """The module that runs: that of the method, or of the nearest caller (`rotate` has none of its own)."""
        owners = [line.frame_self, *(call.frame_self for call in reversed(line.callers))]
        return next((self.modules[id(owner)] for owner in owners if id(owner) in self.modules), "")

    def describe(self, name: str, value: object, line: Line) -> list[dict[str, Any]]:
        if isinstance(value, tuple | list) and value and all(isinstance(part, Tensor) for part in value):
            return [{"name": f"{name}[{i}]"} | self.describe_tensor(part, None) for i, part in enumerate(value)]
        if isinstance(value, Tensor):
            is_drawn = not is_attention(line, name)  # which is kept whole
            return [{"name": name} | self.describe_tensor(value, line.letters, is_drawn=is_drawn)]
        return [{"name": name} | describe_plain(value, self.modules)]

    def describe_tensor(self, tensor: Tensor, letters: str | None, *, is_drawn: bool = True) -> dict[str, Any]:
        if letters is None:  # the very tensor that an earlier line has named, handed on
            known = self._letters.get(id(tensor))
            letters = known[1] if known and known[0]() is tensor else None
        else:
            self._letters[id(tensor)] = (weakref.ref(tensor), letters)
        entry = summary(tensor)
        if letters:
            entry["letters"] = letters
        are_ids = tensor.dtype == torch.int64 and tensor.numel() <= MAX_PROMPT_TOKENS
        if tensor.numel() <= 16 or are_ids:
            entry["items"] = [number(float(item)) for item in tensor.flatten().tolist()]
        elif (
            is_drawn
            and not isinstance(tensor, nn.Parameter)
            and (drawn := picture(tensor, self.num_tokens, letters, is_small=self.are_many))
        ):
            entry["picture"] = self.picture_number(drawn)
        return entry

    def picture_number(self, drawn: dict[str, Any]) -> int:
        """Equal pictures (a value returned, then assigned) are kept once."""
        key = repr(drawn)
        if key not in self._picture_numbers:
            self._picture_numbers[key] = len(self.pictures)
            self.pictures.append(drawn)
        return self._picture_numbers[key]

    def functions(self) -> dict[str, dict[str, Any]]:
        """The functions that ran, in the order in which they began."""
        known = {name: (source, function) for source in map(read_source, FILES) for name, function in source.functions.items()}
        entries = {}
        for _, name in sorted(self.calls.items(), key=lambda item: int(item[0])):
            source, function = known[name]
            entries[name] = {
                "file": module_file(source),
                "line": function.line,
                "end_line": function.end_line,
                "explanation": function.explanation,
            }
        return entries


def is_attention(line: Line, name: str) -> bool:
    """Whether this is the line that makes the attention weights."""
    return line.function == "naive_attention" and name == "weights"


def layer_of(module: str) -> int | None:
    match = re.match(r"blocks\.(\d+)", module)
    return int(match[1]) if match else None


def own_parameters(owner: object) -> dict[str, list[int]]:
    """Shapes of the parameters that a module holds itself: {"weight": [256, 64]}."""
    if not isinstance(owner, nn.Module):
        return {}
    return {name: list(parameter.shape) for name, parameter in owner.named_parameters(recurse=False)}


def describe_plain(value: object, modules: dict[int, str]) -> dict[str, Any]:
    """What is no tensor: numbers and texts as Python writes them, a module by its path."""
    if isinstance(value, nn.Module):
        return {"type": type(value).__name__, "text": modules.get(id(value), type(value).__name__)}
    entry: dict[str, Any] = {"type": type(value).__name__}
    if isinstance(value, list) and value and all(type(item) is int for item in value) and len(value) <= 2 * MAX_PROMPT_TOKENS:
        entry["ids"] = list(value)  # a copy: the next line may append to it
    text = visible(repr(value))
    return entry | {"text": text if len(text) <= 400 else text[:399] + "…"}


def attention_entry(weights: Tensor) -> dict[str, Any]:
    """The weights (H, T, T) of one layer. `is_causal`: no token sees a later one, so only the lower triangle is kept."""
    is_causal = not bool(weights.triu(1).any())
    if is_causal:
        return {"heads": weights.size(0), "is_causal": True, "weights": attention_triangle(weights)}
    levels = (255 * weights.clamp(0, 1).sqrt()).round().numpy()
    return {"heads": weights.size(0), "is_causal": False, "weights": encode(levels)}


def root_mean_square(x: Tensor) -> list[float | None]:
    return [number(value, 4) for value in x[0].double().square().mean(dim=-1).sqrt().tolist()]


def module_file(source: Source) -> str:
    return module_file_of(source.file)


def module_file_of(file: Path) -> str:
    """`nanochat/gpt.py`, wherever the package lies."""
    return FILES[file].replace(".", "/") + ".py"


# -- the residual stream, unembedded -----------------------------------------------------------------------------------------


def unembedded(
    model: GPT, streams: Sequence[tuple[int, int | None, Tensor]], logits: Tensor, ids: Sequence[int]
) -> list[dict[str, Any]]:
    """What the model would say next if it ended after the embedding, after the first block, after the second ...

    Each stream (1, T, C) goes through the real last norm and output projection (a "logit lens"). Ranks and chances are those of
    the token that the whole model finds likeliest; entropies are in bits.
    """
    final = logits[0].argmax(dim=1)  # (T,)
    following = torch.tensor([*ids[1:], 0])
    rows = []
    with torch.no_grad():
        for step, layer, stream in streams:
            scores = model.logits(model.ln_f(stream))[0]  # (T, V)
            chances = scores.softmax(dim=1)
            top = chances[-1].topk(min(TOP, chances.size(1)))
            best, likeliest = chances.max(dim=1)
            entropy = torch.special.entr(chances).sum(dim=1) / torch.log(torch.tensor(2.0))
            rank = 1 + (scores > scores.gather(1, final[:, None])).sum(dim=1)
            chance_of_following = chances.gather(1, following[:, None])[:-1, 0]
            rows.append(
                {
                    "layer": layer,
                    "step": step,
                    "top": [
                        [token, number(chance)] for token, chance in zip(top.indices.tolist(), top.values.tolist(), strict=True)
                    ],
                    "entropy": number(float(entropy[-1]), 4),
                    "rank": int(rank[-1]),
                    "chance": number(float(chances[-1, final[-1]])),
                    "positions": {
                        "top": likeliest.tolist(),
                        "chance": [number(value, 4) for value in best.tolist()],
                        "entropy": [number(value, 4) for value in entropy.tolist()],
                        "rank": rank.tolist(),
                        "following": [number(value, 4) for value in chance_of_following.tolist()],
                    },
                }
            )
    return rows


# -- tokens ------------------------------------------------------------------------------------------------------------------


def token_entry(tokenizer: Tokenizer, token: int) -> dict[str, Any]:
    is_special = token >= len(tokenizer.tokens)
    spelled = "" if is_special else tokenizer.tokens[token].hex(" ")
    return {"id": token, "text": token_text(tokenizer, token), "bytes": spelled, "is_special": is_special}


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """What a token stands for, control characters shown by signs; a token that is no whole character by its bytes: <e2 80>."""
    if token >= tokenizer.vocab_size:
        return f"<unused {token}>"
    if token >= len(tokenizer.tokens):
        return tokenizer.decode([token])
    try:
        return visible(tokenizer.tokens[token].decode())
    except UnicodeDecodeError:
        return f"<{tokenizer.tokens[token].hex(' ')}>"


def pieces(tokenizer: Tokenizer, prompt: str, ids: Sequence[int]) -> list[dict[str, Any]]:
    """The pieces into which the tokenizer's pattern cuts the prompt, with their tokens: none reaches over two pieces.

    [] if the tokens of the pieces are not those of the prompt.
    """
    texts = regex.findall(tokenizer.pattern, clean_text(prompt)[0])
    encoded = [tokenizer.encode(text) for text in texts]
    flat = [token for part in encoded for token in part]
    start = next((i for i in range(len(ids)) if list(ids[i : i + len(flat)]) == flat), None)
    if start is None:
        return []
    entries = []
    for text, part in zip(texts, encoded, strict=True):
        entries.append({"text": visible(text), "start": start, "end": start + len(part)})
        start += len(part)
    return entries


def letters(config: GPTConfig, num_tokens: int) -> dict[str, dict[str, Any]]:
    """The letters of the shape comments: what gpt.py says they mean, and their sizes here."""
    sizes = {
        "B": 1,
        "T": num_tokens,
        "S": num_tokens,
        "C": config.n_embd,
        "H": config.n_head,
        "G": config.n_kv_head,
        "D": config.head_dim,
        "V": config.vocab_size,
        "F": 4 * config.n_embd,
    }
    meanings = dict(LEGEND.findall(gpt.__doc__ or ""))
    return {letter: {"size": size, "meaning": meanings.get(letter, "").strip()} for letter, size in sizes.items()}
