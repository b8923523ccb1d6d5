"""Talk to a trained model in the terminal.

    python -m nanochat.chat results/tiny/sft
    python -m nanochat.chat results/tiny/sft -p "Where does Otto live?"

The answer appears as it is made. Ctrl-C stops it, /clear forgets the conversation, /quit (or Ctrl-D, or Ctrl-C at the prompt)
leaves. An answer follows from --seed: the same conversation gets the same answers. Where the model used its calculator, the
answer shows what it asked and what it got:  [12*4][= 48].
"""

import argparse
import codecs
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat.errors import UserError

if TYPE_CHECKING:
    from nanochat.engine import Engine
    from nanochat.tokenizer import Tokenizer

HELP = "/clear forgets the conversation, /quit leaves, Ctrl-C stops an answer"

# What a terminal would obey rather than show: control characters (as their pictures) and changes of the writing direction.
HARMLESS = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"},
    0x7F: 0x2421,
    **dict.fromkeys([*range(0x80, 0xA0), 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD),
}

TOOL_MARKS = {"<|python_start|>": "[", "<|python_end|>": "]", "<|output_start|>": "[= ", "<|output_end|>": "]"}


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    # a person's terminal or a pipe may know fewer characters than the model
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        chat = open_chat(options)
        if options.prompt is not None:
            answer(chat, options.prompt)
        else:
            converse(chat)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m nanochat.chat", description="Talk to a trained model.")
    parser.add_argument("folder", type=Path, help="a model's folder, such as results/tiny/sft")
    parser.add_argument("-p", "--prompt", help="answer this once, and leave")
    parser.add_argument("--temperature", type=float, default=0.6, help="0: always the likeliest token (default: %(default)s)")
    parser.add_argument(
        "--top-k", type=int, default=50, help="draw from the k likeliest tokens; 0: from all (default: %(default)s)"
    )
    parser.add_argument("--max-tokens", type=int, default=256, help="length of an answer (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto: cuda where there is one (default)")
    return parser.parse_args(arguments)


def open_chat(options: argparse.Namespace) -> "Chat":
    if not (options.folder / "manifest.json").exists():
        raise UserError(no_model_message(options.folder))
    # imported late: a wrong path is told at once, not after the seconds that PyTorch takes
    from nanochat.checkpoint import load_model
    from nanochat.distributed import choose_device
    from nanochat.engine import Engine

    model, tokenizer = load_model(options.folder, choose_device(options.device))
    if options.folder.name == "base_train":
        note("a base model continues texts; it has not learned to answer. mid_train and sft teach it")
    return Chat(
        Engine(model, tokenizer),
        temperature=options.temperature,
        top_k=options.top_k,
        max_tokens=options.max_tokens,
        seed=options.seed,
    )


def no_model_message(folder: Path) -> str:
    """Why there is nothing to talk to, and the command that changes it."""
    lines = [f"{folder}: no model here (there is no {folder / 'manifest.json'})."]
    inside = sorted(path.parent for path in folder.glob("*/model.safetensors"))
    if inside:
        return "\n".join([*lines, "Models inside it: " + ", ".join(map(str, inside))])
    run = folder.parent.name
    if run == "tiny":
        lines.append("Make it with:  make demo")
    own = Path("config") / f"{run}.yaml"
    config = f" --configfile {own}" if own.exists() or run == "tiny" else ""
    either = "or" if run == "tiny" else "Make it with"
    # the target comes first: --configfile takes every word that follows it for another file
    lines.append(f"{either}:  snakemake {folder / 'manifest.json'} --profile profiles/laptop{config}")
    others = sorted(path.parent for path in Path("results").glob("*/*/model.safetensors"))
    if others:
        lines.append("Models that are here: " + ", ".join(map(str, others)))
    return "\n".join(lines)


# -- the terminal ------------------------------------------------------------------------------------------------------------


def converse(chat: "Chat") -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives input() a history and an editable line)

    is_terminal = sys.stdin.isatty()
    if is_terminal:
        config = chat.engine.model.config
        millions = chat.engine.model.num_parameters() / 1e6
        print(f"{millions:.1f} M parameters, {config.sequence_len} tokens of context, on {chat.engine.device}. {HELP}.")
    while True:
        try:
            text = input("\nyou:   " if is_terminal else "").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if text in ("/quit", "/exit"):
            return
        if text == "/clear":
            chat.clear()
        elif text == "/help":
            note(HELP)
        elif text:
            print("model: " if is_terminal else "", end="", flush=True)
            try:
                answer(chat, text)
            except KeyboardInterrupt:
                print()
                note("stopped")


def answer(chat: "Chat", text: str) -> None:
    for piece in chat.ask(text):
        print(piece, end="", flush=True)
    print(flush=True)


def note(text: str) -> None:
    print(f"({text})", file=sys.stderr, flush=True)


# -- the conversation --------------------------------------------------------------------------------------------------------


class Chat:
    """A conversation with a model: what was said so far, as tokens, one list for each question with its answer."""

    def __init__(self, engine: "Engine", *, temperature: float, top_k: int, max_tokens: int, seed: int):
        self.engine = engine
        self.temperature = temperature
        self.top_k = top_k
        self.max_tokens = max_tokens
        self.seed = seed
        self.num_asked = 0
        self.turns: list[list[int]] = []

    def clear(self) -> None:
        self.turns = []
        self.num_asked = 0

    def ask(self, text: str) -> Iterator[str]:
        """Say something; the answer comes in pieces of printable text.

        An answer that is stopped stays in the conversation as far as it went.
        """
        tokenizer = self.engine.tokenizer
        if not text.strip():
            raise UserError("there is no question: say something")
        bos, *question = tokenizer.render_prompt({"messages": [{"role": "user", "content": text}]})
        prompt = [bos, *self.clip(question)]
        said: list[int] = []
        screen = Screen(tokenizer)
        try:
            for token in self.engine.stream(
                prompt,
                max_new_tokens=self.max_tokens,
                temperature=self.temperature,
                top_k=self.top_k,
                seed=f"{self.seed}/{self.num_asked}",
            ):
                said.append(token)
                yield screen.show(token)
            yield screen.flush()
        finally:
            self.turns.append([*question, *said, tokenizer.special_id("<|assistant_end|>")])
            self.num_asked += 1
        if len(said) >= self.max_tokens:
            note(f"cut after {len(said)} tokens; --max-tokens allows more")

    def clip(self, question: list[int]) -> list[int]:
        """The turns and the question, as much of their end as fits the length the model was trained on, with its answer."""
        sequence_len = self.engine.model.config.sequence_len
        room = sequence_len - 1 - min(self.max_tokens, sequence_len // 2)
        if self.turns and sum(map(len, self.turns)) + len(question) > room:
            note(f"the model reads {sequence_len} tokens at a time: the beginning of this conversation is forgotten")
        while self.turns and sum(map(len, self.turns)) + len(question) > room:
            self.turns.pop(0)
        if len(question) > room:
            note(f"your message has {len(question)} tokens, and there is room for {room}: its beginning is left out")
            # <|user_start|> stays in front
            question = [question[0], *question[len(question) - room + 1 :]]
        return [*(token for turn in self.turns for token in turn), *question]


class Screen:
    """Tokens as text that a terminal can show.

    A token may end inside a character, so bytes wait until their character is whole.
    """

    def __init__(self, tokenizer: "Tokenizer"):
        self.tokenizer = tokenizer
        self.marks = {tokenizer.special_id(name): mark for name, mark in TOOL_MARKS.items()}
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.is_special = tokenizer.token_bytes() == 0

    def show(self, token: int) -> str:
        if self.is_special[token]:
            return self.flush() + self.marks.get(token, "")
        return self.decoder.decode(self.tokenizer.decode_bytes([token])).translate(HARMLESS)

    def flush(self) -> str:
        """What is left of an unfinished character, as a replacement character."""
        text = self.decoder.decode(b"", final=True).translate(HARMLESS)
        self.decoder.reset()
        return text


if __name__ == "__main__":
    sys.exit(main())
