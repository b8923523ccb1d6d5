"""Talk to a trained model in the terminal.

    python -m nanochat.chat results/tiny/sft
    python -m nanochat.chat results/tiny/sft -p "Where does Otto live?"

The answer appears as it is made, and Ctrl-C stops it. Alt+Enter, or a backslash at the end of a line, begins another line.
/help lists the commands; /quit (or Ctrl-D, or Ctrl-C at the empty prompt) leaves. An answer follows from --seed: the same
conversation gets the same answers. Where the model used its calculator, the answer shows what it asked and what it got:
[12*4][= 48].

Nothing is written anywhere unless asked for: /save FILE keeps the conversation, --history FILE what was typed.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat.dialogue import (
    BASE_NOTE,
    SETTINGS,
    Fitted,
    Parts,
    TokenText,
    add_arguments,
    describe,
    fit,
    is_base,
    join_parts,
    open_engine,
    question_tokens,
    read_setting,
)
from nanochat.errors import UserError
from nanochat.storage import atomic_path
from nanochat.terminal import open_lines
from nanochat.text import fenced, inline, visible

if TYPE_CHECKING:
    from nanochat.engine import Engine
    from nanochat.tokenizer import Tokenizer

TOOL_MARKS = {"<|python_start|>": "[", "<|python_end|>": "]", "<|output_start|>": "[= ", "<|output_end|>": "]"}

COMMANDS = {
    "/help": "this list",
    "/reset": "forget the conversation and begin a new one (also /clear)",
    "/regenerate": "another answer to the last question",
    "/save FILE": "write the conversation, as Markdown (.md) or JSON (.json)",
    "/temperature X": SETTINGS["temperature"].help,
    "/top-k N": SETTINGS["top_k"].help,
    "/max-tokens N": SETTINGS["max_tokens"].help,
    "/seed N": SETTINGS["seed"].help,
    "/quit": "leave (also Ctrl-D)",
}
ALIASES = {"/clear": "/reset", "/exit": "/quit"}
KEYS = "Ctrl-C stops an answer. Alt+Enter, or a backslash at the end of a line: another line. //text says what begins with a /"


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    # a person's terminal or a pipe may know fewer characters than the model
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        chat = open_chat(options)
        if options.prompt is not None:
            show(chat.ask(options.prompt))
        else:
            converse(chat, options.history)
    except UserError as error:
        print(visible(str(error), keep="\n"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m nanochat.chat", description="Talk to a trained model.")
    parser.add_argument("folder", type=Path, help="a model's folder, such as results/tiny/sft")
    parser.add_argument("-p", "--prompt", help="answer this once, and leave")
    parser.add_argument("--history", type=Path, metavar="FILE", help="keep what is typed in this private file")
    add_arguments(parser, "temperature", "top_k", "max_tokens", "seed")
    return parser.parse_args(arguments)


def open_chat(options: argparse.Namespace) -> "Chat":
    engine = open_engine(options.folder, options.device)
    if continues := is_base(options.folder):
        note(BASE_NOTE)
    return Chat(
        engine,
        temperature=options.temperature,
        top_k=options.top_k,
        max_tokens=options.max_tokens,
        seed=options.seed,
        continues=continues,
        name="/".join(options.folder.absolute().parts[-2:]),
    )


# -- the terminal ------------------------------------------------------------------------------------------------------------


def converse(chat: "Chat", history: Path | None = None) -> None:
    is_terminal = sys.stdin.isatty()
    read_line = open_lines([command.split()[0] for command in COMMANDS], history)
    if is_terminal:
        print(f"{describe(chat.engine)}. /help lists the commands, /quit leaves.")
    while True:
        try:
            text = read_line("\nyou:   " if is_terminal else "").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        try:
            show(obey(chat, text), before="model: " if is_terminal else "")
        except Leave:
            return
        except UserError as error:
            note(str(error))
        except KeyboardInterrupt:
            print()
            note("stopped")


class Leave(Exception):
    """The person said /quit."""


def obey(chat: "Chat", text: str) -> Iterator[str] | None:
    """Do what a line says that somebody typed; the pieces of an answer, if it asks for one."""
    if not text:
        return None
    if text.startswith("//"):
        return chat.ask(text[1:])
    if not text.startswith("/"):
        return chat.ask(text)
    name, _, value = text.partition(" ")
    match ALIASES.get(name, name):
        case "/quit":
            raise Leave
        case "/help":
            print(*(f"  {command:<16}{meaning}" for command, meaning in COMMANDS.items()), KEYS, sep="\n", file=sys.stderr)
        case "/reset":
            chat.reset()
        case "/regenerate":
            return chat.regenerate()
        case "/save":
            save(chat, value.strip())
        case "/temperature" | "/top-k" | "/max-tokens" | "/seed":
            change(chat, name[1:].replace("-", "_"), value.strip())
        case _:
            raise UserError(f"{name} is no command. {nearest(name)} To say something that begins with a /, begin with //")
    return None


def nearest(name: str) -> str:
    names = [*(command.split()[0] for command in COMMANDS), *ALIASES]
    near = [known for known in names if known.startswith(name)] or get_close_matches(name, names, n=1)
    return f"Did you mean {near[0]}?" if near else "/help lists the commands."


def change(chat: "Chat", name: str, value: str) -> None:
    """Turn a setting; without a value, say how it is set."""
    if value:
        setattr(chat, name, read_setting(name, value))
    note(f"{name.replace('_', '-')} is {getattr(chat, name)}")


def show(pieces: Iterator[str] | None, before: str = "") -> None:
    if pieces is None:
        return
    print(before, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print(flush=True)


def note(text: str) -> None:
    print(f"({text})", file=sys.stderr, flush=True)


# -- the conversation --------------------------------------------------------------------------------------------------------


class Chat:
    """A conversation with a model: as tokens, one list for each question with its answer, and as messages to keep."""

    def __init__(
        self,
        engine: "Engine",
        *,
        temperature: float,
        top_k: int,
        max_tokens: int,
        seed: int,
        continues: bool = False,
        name: str = "model",
    ):
        self.engine = engine
        self.temperature = temperature
        self.top_k = top_k
        self.max_tokens = max_tokens
        self.seed = seed
        self.continues = continues  # a base model: no roles, one text that goes on
        self.name = name
        self.reset()

    def reset(self) -> None:
        self.turns: list[list[int]] = []  # those that the model still reads
        self.messages: list[dict] = []  # everything that was said
        self.num_asked = 0
        self.num_again = 0

    def ask(self, text: str) -> Iterator[str]:
        """Say something; the answer comes in pieces of printable text.

        An answer that is stopped stays in the conversation as far as it went.
        """
        self.num_again = 0
        return self._answer(text)

    def regenerate(self) -> Iterator[str]:
        """Another answer to the last question, drawn with other random numbers."""
        if not self.messages:
            raise UserError("there is no answer yet that could be made again")
        if self.temperature == 0:
            note("at temperature 0 there is only one answer; /temperature 0.6 draws others")
        text = self.messages[-2]["content"]
        self.messages = self.messages[:-2]
        self.turns = self.turns[:-1]
        self.num_asked -= 1
        self.num_again += 1
        return self._answer(text)

    def _answer(self, text: str) -> Iterator[str]:
        question = question_tokens(self.engine.tokenizer, text, continues=self.continues)
        fitted = fit(self.turns, question, self.engine.model.config, self.max_tokens, opening=0 if self.continues else 1)
        for line in fitted.notes:
            note(line)
        self.turns = fitted.turns
        return self._pieces(text, fitted)

    def _pieces(self, text: str, fitted: Fitted) -> Iterator[str]:
        tokenizer = self.engine.tokenizer
        said: list[int] = []
        screen = Screen(tokenizer)
        again = f"/{self.num_again}" if self.num_again else ""
        try:
            for token in self.engine.stream(
                [tokenizer.bos_id, *fitted.tokens],
                max_new_tokens=self.max_tokens,
                temperature=self.temperature,
                top_k=self.top_k,
                seed=f"{self.seed}/{self.num_asked}{again}",
            ):
                said.append(token)
                yield screen.show(token)
            yield screen.flush()
        finally:
            self._remember(text, fitted.question, said)
        if len(said) >= self.max_tokens:
            note(f"cut after {len(said)} tokens; --max-tokens allows more")

    def _remember(self, text: str, question: list[int], said: list[int]) -> None:
        tokenizer = self.engine.tokenizer
        end = [] if self.continues else [tokenizer.special_id("<|assistant_end|>")]
        self.turns.append([*question, *said, *end])
        self.num_asked += 1
        parts = Parts(tokenizer)
        content = join_parts([part for token in said for part in parts.read(token)] + parts.flush())
        self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": content}]


class Screen:
    """Tokens as text that a terminal can show, calls of the calculator in brackets."""

    def __init__(self, tokenizer: "Tokenizer"):
        self.characters = TokenText(tokenizer)

    def show(self, token: int) -> str:
        text, name = self.characters.read(token)
        return text + TOOL_MARKS.get(name or "", "")

    def flush(self) -> str:
        return self.characters.flush()


# -- keeping it --------------------------------------------------------------------------------------------------------------


def save(chat: Chat, name: str) -> None:
    """Write the conversation to a new file; one that is there stays, unless `--replace` comes before its name."""
    replace, name = name.startswith("--replace "), name.removeprefix("--replace ").strip()
    path = Path(name).expanduser()
    write: dict[str, Callable[[Chat], str]] = {".md": as_markdown, ".json": as_json}
    if path.suffix.lower() not in write:
        raise UserError("/save needs the name of a file that ends in .md or .json:  /save conversation.md")
    if not chat.messages:
        raise UserError("nothing was said yet; there is nothing to save")
    is_there = path.exists()
    if is_there and not replace:
        raise UserError(f"{path} is there already and was left as it is. To replace it:  /save --replace {path}")
    try:
        with atomic_path(path) as temporary:
            temporary.write_text(write[path.suffix.lower()](chat), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    note(f"{'replaced' if is_there else 'saved'} {path}: {len(chat.messages)} messages")


def settings(chat: Chat) -> dict[str, float]:
    return {name: getattr(chat, name) for name in SETTINGS}


def as_json(chat: Chat) -> str:
    """The conversation in the project's own form (nanochat.messages), with the settings at its end."""
    content = {"model": chat.name, "settings": settings(chat), "messages": chat.messages}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def as_markdown(chat: Chat) -> str:
    told = ", ".join(f"{name.replace('_', '-')} {value}" for name, value in settings(chat).items())
    blocks = [f"# Conversation with {inline(chat.name)}", f"Settings at the end: {told}."]
    for message in chat.messages:
        blocks += ["## You" if message["role"] == "user" else "## Model", fenced(plain(message["content"]))]
    return "\n\n".join(blocks) + "\n"


def plain(content: str | list[dict[str, str]]) -> str:
    """A message as the terminal shows it."""
    if isinstance(content, str):
        return content
    marks = {"text": "{}", "python": "[{}]", "python_output": "[= {}]"}
    return "".join(marks[part["type"]].replace("{}", part["text"]) for part in content)


if __name__ == "__main__":
    sys.exit(main())
