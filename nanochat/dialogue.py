"""What every chat does on both sides of the model: the conversation as a prompt that fits, the answer as text safe to show.

The terminal (nanochat.chat) and the server (nanochat.serve) share it, so that both say the same.

Covered: control characters and changes of the writing direction in an answer are shown by signs instead of obeyed; special
    tokens that somebody writes stay text; a conversation longer than the model reads loses its beginning, and says so.
Not covered: what the words say.
"""

import argparse
import codecs
import math
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nanochat.errors import UserError
from nanochat.manifest import MANIFEST
from nanochat.schedule import count_parameters

if TYPE_CHECKING:
    from nanochat.engine import Engine
    from nanochat.gpt import GPTConfig
    from nanochat.tokenizer import Tokenizer

BASE_NOTE = "a base model continues your text; it has not learned to answer. mid_train and sft teach it"

# What a terminal would obey rather than show: control characters (as their pictures) and changes of the writing direction.
HARMLESS = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"},
    0x7F: 0x2421,
    **dict.fromkeys([*range(0x80, 0xA0), 0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD),
}


# -- the model ---------------------------------------------------------------------------------------------------------------


def open_engine(folder: Path, device: str) -> "Engine":
    """The engine of a published model. UserError, before PyTorch is imported, if there is none."""
    if not (folder / "manifest.json").exists():
        raise UserError(no_model_message(folder))
    # imported late: a wrong path is told at once, not after the seconds that PyTorch takes
    from nanochat.checkpoint import load_model
    from nanochat.distributed import choose_device
    from nanochat.engine import Engine
    from nanochat.inference import make_ready

    model, tokenizer = load_model(folder, choose_device(device))
    return Engine(make_ready(model), tokenizer)


def no_model_message(folder: Path) -> str:
    """Why there is nothing to talk to, and the command that changes it."""
    lines = [f"{folder}: no model here (there is no {folder / 'manifest.json'})."]
    inside = models(folder, "*")
    if inside:
        return "\n".join([*lines, "Models inside it: " + ", ".join(map(str, inside))])
    run, others = folder.parent.name, models(Path("results"), "*/*")
    if not others and not folder.is_absolute() and not Path("Snakefile").exists():
        return "\n".join([*lines, f"{Path.cwd()} is not the project's folder: it has no Snakefile. Are you in the right one?"])
    near = get_close_matches(str(folder), map(str, others), n=1)
    if near:
        lines.append(f"Did you mean {near[0]}?")
    if run == "tiny":
        lines.append("Make it with:  make demo")
    own = Path("config") / f"{run}.yaml"
    config = f" --configfile {own}" if own.exists() or run == "tiny" else ""
    either = "or" if run == "tiny" else "Make it with"
    # the target comes first: --configfile takes every word that follows it for another file
    lines.append(f"{either}:  snakemake {folder / 'manifest.json'} --profile profiles/laptop{config}")
    if others:
        lines.append("Models that are here: " + ", ".join(map(str, others)))
    return "\n".join(lines)


def models(folder: Path, pattern: str) -> list[Path]:
    """Folders of published models: one whose manifest was taken away, to be made again, is none."""
    return sorted(path.parent for path in folder.glob(f"{pattern}/model.safetensors") if (path.parent / MANIFEST).exists())


def is_base(folder: Path) -> bool:
    """Whether the model has only learned to continue texts."""
    return folder.name == "base_train"


def describe(engine: "Engine") -> str:
    config = engine.model.config
    millions = count_parameters(config.as_dict()) / 1e6
    return f"{millions:.1f} M parameters, {config.sequence_len} tokens of context, on {engine.device}"


# -- settings ----------------------------------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """A number that a person may turn: its kind, its range, what it does."""

    kind: type
    low: float
    high: float
    help: str


SETTINGS = {
    "temperature": Setting(float, 0, 10, "0: always the likeliest token; 1: as the model was trained"),
    "top_k": Setting(int, 0, 1_000_000, "draw from the k likeliest tokens; 0: from all"),
    "max_tokens": Setting(int, 1, 4_096, "length of an answer"),
    "seed": Setting(int, -(2**63), 2**63 - 1, "of the random numbers"),
}
DEFAULTS = {"temperature": 0.6, "top_k": 50, "max_tokens": 256, "seed": 0}
LOWEST_TEMPERATURE = 0.01  # below, scores divided by it are no longer finite numbers; 0 itself takes the likeliest token


def read_setting(name: str, text: str) -> float:
    """A setting that a person typed.  ("top_k", "50") -> 50. UserError says the range."""
    setting = SETTINGS[name]
    try:
        value = setting.kind(text)
    except ValueError:
        value = math.nan
    if problem := setting_problem(name, value):
        raise UserError(f"{problem}, found {text!r}")
    return value


def setting_problem(name: str, value: float) -> str | None:
    """What is wrong with a number, in words; None if nothing is."""
    setting = SETTINGS[name]
    if setting.low <= value <= setting.high and not (name == "temperature" and 0 < value < LOWEST_TEMPERATURE):
        return None
    kind = "a whole number" if setting.kind is int else "a number"
    low = f"0, or {kind} from {LOWEST_TEMPERATURE}" if name == "temperature" else f"{kind} from {setting.low:,}"
    return f"{name} must be {low} to {setting.high:,}"


def add_arguments(parser: argparse.ArgumentParser, *names: str) -> None:
    """The options --temperature, --top-k and so on, and --device."""

    def reads(name: str):
        def read(text: str) -> float:
            try:
                return read_setting(name, text)
            except UserError as error:
                raise argparse.ArgumentTypeError(str(error)) from None

        return read

    for name in names:
        option = "--" + name.replace("_", "-")
        text = f"{SETTINGS[name].help} (default: %(default)s)"
        parser.add_argument(option, type=reads(name), default=DEFAULTS[name], metavar="X", help=text)
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: cuda where there is one (default)"
    )


# -- a conversation as a prompt ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fitted:
    """The end of a conversation, as much of it as the model reads at a time, in tokens."""

    turns: list[list[int]]
    question: list[int]
    notes: list[str]  # what was left out, for the person

    @property
    def tokens(self) -> list[int]:
        return [*(token for turn in self.turns for token in turn), *self.question]


def fit(turns: Sequence[list[int]], question: list[int], config: "GPTConfig", max_tokens: int, *, opening: int = 1) -> Fitted:
    """The turns and the question, as much of their end as fits the length the model was trained on, with its answer.

    Whole turns go first, the oldest before the others. A question that is too long by itself loses its beginning, but for its
    first `opening` tokens (`<|user_start|>`). <|bos|> is not among the tokens, and has its place kept free.
    """
    room = config.sequence_len - 1 - min(max_tokens, config.sequence_len // 2)
    kept, notes = list(turns), []
    if kept and sum(map(len, kept)) + len(question) > room:
        notes.append(f"the model reads {config.sequence_len} tokens at a time: the beginning of this conversation is forgotten")
    while kept and sum(map(len, kept)) + len(question) > room:
        kept.pop(0)
    if len(question) > room:
        notes.append(f"your message has {len(question)} tokens, and there is room for {room}: its beginning is left out")
        question = [*question[:opening], *question[len(question) - room + opening :]]
    return Fitted(kept, question, notes)


def question_tokens(tokenizer: "Tokenizer", text: str, *, continues: bool = False) -> list[int]:
    """What follows <|bos|> and earlier turns when a person says something; a base model that `continues` gets the bare text."""
    if not text.strip():
        raise UserError("there is no question: say something")
    if continues:
        return tokenizer.encode(text)
    return tokenizer.render_prompt({"messages": [{"role": "user", "content": text}]})[1:]


# -- an answer as text -------------------------------------------------------------------------------------------------------


class TokenText:
    """Tokens as text that is harmless to show.

    A token may end inside a character, so bytes wait until their character is whole.
    """

    def __init__(self, tokenizer: "Tokenizer"):
        self.tokenizer = tokenizer
        self.names = {tokenizer.special_id(name): name for name in tokenizer.specials}
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def read(self, token: int) -> tuple[str, str | None]:
        """The characters that the token completes, and its name if it is a special one, which stands behind them."""
        if token in self.names:
            return self.flush(), self.names[token]
        return self.decoder.decode(self.tokenizer.decode_bytes([token])).translate(HARMLESS), None

    def flush(self) -> str:
        """What is left of an unfinished character, as a replacement character."""
        text = self.decoder.decode(b"", final=True).translate(HARMLESS)
        self.decoder.reset()
        return text


class Part(NamedTuple):
    """A piece of an answer: `text`, what the model gave its calculator (`python`), or what that said (`python_output`)."""

    type: str
    text: str


OPENS = {"<|python_start|>": "python", "<|output_start|>": "python_output"}
CLOSES = {"<|python_end|>": "text", "<|output_end|>": "text"}


class Parts:
    """Tokens as parts: text as soon as it is known, a call of the calculator and its result when they are whole."""

    def __init__(self, tokenizer: "Tokenizer"):
        self.characters = TokenText(tokenizer)
        self.type = "text"
        self.waiting = ""

    def read(self, token: int) -> list[Part]:
        text, name = self.characters.read(token)
        self.waiting += text
        if name in OPENS | CLOSES:
            parts = self._give()
            self.type = (OPENS | CLOSES)[name]
            return parts
        return self._give() if self.type == "text" else []

    def flush(self) -> list[Part]:
        """What the model began and did not end."""
        self.waiting += self.characters.flush()
        return self._give()

    def _give(self) -> list[Part]:
        parts = [Part(self.type, self.waiting)] if self.waiting else []
        self.waiting = ""
        return parts


def join_parts(parts: Sequence[Part]) -> str | list[dict[str, str]]:
    """The content of an assistant's message in the form of nanochat.messages: one text, or parts if it used its calculator."""
    joined: list[Part] = []
    for part in parts:
        if joined and joined[-1].type == part.type == "text":
            joined[-1] = Part("text", joined[-1].text + part.text)
        else:
            joined.append(part)
    if all(part.type == "text" for part in joined):
        return "".join(part.text for part in joined)
    return [part._asdict() for part in joined]
