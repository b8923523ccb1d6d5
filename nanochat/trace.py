"""Follow a prompt through a trained model, every line of it, and write the page that shows it.

    python -m nanochat.trace results/tiny/base_train -p "The home of Otto is in"
    python -m nanochat.trace results/tiny/base_train -p "The home of Otto is in" --beside results/textbook/base_train

Prints what the model would say after each of its blocks, and the path of the page, forward.html; trace.json beside it holds all
the numbers. Beside the model stands the other preset at the same sizes, untrained, unless --beside names a trained one, or
`none`. A model of mid_train or sft gets the prompt as a question in a conversation. A prompt has at most 128 tokens. Everything
is computed on the CPU, in float32: a second for a tiny model, about ten for d20, which takes 3 GB of memory.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.dialogue import no_model_message
from nanochat.errors import UserError
from nanochat.manifest import MANIFEST, open_verified, write_json
from nanochat.text import visible

if TYPE_CHECKING:
    from nanochat.gpt import GPT
    from nanochat.tokenizer import Tokenizer

FILES = ("trace.json", "forward.html")
NONE = "none"
GUESSES = 4


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    # a person's terminal or a pipe may know fewer characters than the tokens
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        trace = make_trace(options)
        folder = options.output or options.folder.parent / "traces" / options.folder.name
        page = write(trace, folder)
    except UserError as error:
        print(visible(str(error), keep="\n"), file=sys.stderr)
        return 1
    except OSError as error:
        print(visible(f"{error.filename}: {error.strerror}. -o names another folder for the two files"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print("\n".join(table(trace["forward"])))
    print(f"\npage: {visible(str(page))}")
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m nanochat.trace", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a model's folder, such as results/tiny/base_train")
    parser.add_argument("-p", "--prompt", required=True, help="the text to follow through the model")
    parser.add_argument(
        "--beside", metavar="FOLDER", help="a second model's folder, or none (default: the other preset, untrained)"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="folder for the two files (default: traces/ beside the model's folder)"
    )
    return parser.parse_args(arguments)


def make_trace(options: argparse.Namespace) -> dict[str, Any]:
    """The trace of the model and of the one beside it. UserError for what is no model, and for prompts that cannot be shown."""
    beside_folder = None if options.beside in (None, NONE) else Path(options.beside)
    for folder in (options.folder, beside_folder):
        if folder and not (folder / MANIFEST).exists():
            raise UserError(no_model_message(folder))
    is_chat = "start_from" in open_verified(options.folder / MANIFEST).inputs  # mid_train and sft
    # imported late: a wrong path is told at once, not after the seconds that PyTorch takes
    from nanochat.tracing.differences import differences
    from nanochat.tracing.forward import counterpart, nearest_preset, trace_forward, untrained

    model, tokenizer = load(options.folder)
    config = model.config
    forward = trace_forward(model, tokenizer, options.prompt, name=name_of(options.folder), is_chat=is_chat)
    del model  # two of d20 would be 4.5 GB
    beside, other = None, config
    if options.beside is None:
        other = counterpart(config)
        name = f"{nearest_preset(other)}, untrained"
        beside = trace_forward(untrained(other), tokenizer, options.prompt, name=name, is_chat=is_chat, is_trained=False)
    elif beside_folder:
        model, tokenizer = load(beside_folder)
        other = model.config
        beside = trace_forward(model, tokenizer, options.prompt, name=name_of(beside_folder), is_chat=is_chat)
    return {"forward": forward, "beside": beside, "differences": differences(config.as_dict(), other.as_dict())}


def load(folder: Path) -> "tuple[GPT, Tokenizer]":
    from nanochat.checkpoint import load_model

    model, tokenizer = load_model(folder, dtype="float32")
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(f"{folder}: {tokenizer.vocab_size:,} tokens, and a model of {model.config.vocab_size:,}")
    return model, tokenizer


def name_of(folder: Path) -> str:
    """results/tiny/base_train -> tiny/base_train"""
    return "/".join(folder.resolve().parts[-2:])


def write(trace: Mapping[str, Any], folder: Path) -> Path:
    from nanochat.tracing.forward_page import write_forward_page

    write_json(folder / "trace.json", trace)
    write_forward_page(folder / "forward.html", trace, title=f"Forward pass of {trace['forward']['name']}")
    return folder / "forward.html"


def table(forward: Mapping[str, Any]) -> list[str]:
    """What the model would say after each block, for a terminal."""
    prompt = forward["prompt"].replace("\n", "␊")
    lines = [f"{prompt}   ({len(forward['tokens'])} tokens, {len(forward['steps'])} lines of code)", ""]
    cells = [
        [f"{forward['vocabulary'][str(token)]!r} {100 * chance:.0f} %" for token, chance in row["top"][:GUESSES]]
        for row in forward["lens"]
    ]
    width = max([len(cell) for row in cells for cell in row], default=0)
    lines.append(f"{'after':<12}{'the likeliest next tokens':<{GUESSES * (width + 2)}}entropy")
    for row, guesses in zip(forward["lens"], cells, strict=True):
        after = "embedding" if row["layer"] is None else f"block {row['layer'] + 1}"
        lines.append(f"{after:<12}{''.join(f'{guess:<{width + 2}}' for guess in guesses)}{row['entropy']:4.1f} bits")
    return lines


if __name__ == "__main__":
    sys.exit(main())
