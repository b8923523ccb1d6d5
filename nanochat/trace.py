"""Follow a prompt through a trained model, every line of it, and write the page that shows it.

    python -m nanochat.trace results/tiny/base_train -p "The home of Otto is in"
    python -m nanochat.trace results/tiny/base_train -p "The home of Otto is in" --beside results/textbook/base_train

Prints what the model would say after each of its blocks, and the path of the page, forward.html; trace.json beside it holds all
the numbers. Each prompt has a folder of its own: results/tiny/traces/base_train/the-home-of-otto-is-in/.

Beside the model stands the other preset at the same sizes, untrained, unless --beside names a trained one, or `none`. A model
of mid_train or sft gets the prompt as a question in a conversation. A prompt has at most 128 tokens. Everything is computed on
the CPU, in float32: a second for a tiny model, about ten for d20, which takes 3 GB of memory.
"""

import argparse
import json
import re
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
SLUG_LENGTH = 48
TITLE_LENGTH = 80


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    # a person's terminal or a pipe may know fewer characters than the tokens
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        trace = make_trace(options)
        folder = options.output or own_folder(options.folder, options.prompt)
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
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for the two files (default: one named after the prompt, in traces/ beside the model's folder)",
    )
    return parser.parse_args(arguments)


def make_trace(options: argparse.Namespace) -> dict[str, Any]:
    """The trace of the model and of the one beside it. UserError for what is no model, and for prompts that cannot be shown."""
    if not options.prompt.strip():
        raise UserError("the prompt is empty: give a text to follow through the model")
    beside_folder = None if options.beside in (None, NONE) else Path(options.beside)
    for folder in (options.folder, beside_folder):
        if folder and not (folder / MANIFEST).exists():
            raise UserError(no_model_message(folder))
    is_chat = "start_from" in open_verified(options.folder / MANIFEST).inputs  # mid_train and sft
    # imported late: a wrong path is told at once, not after the seconds that PyTorch takes
    from nanochat.tracing.beside import trace_counterpart, trace_trained
    from nanochat.tracing.differences import differences
    from nanochat.tracing.forward import trace_forward

    model, tokenizer = load(options.folder)
    config, prompt = model.config, options.prompt
    forward = trace_forward(model, tokenizer, prompt, name=name_of(options.folder), is_chat=is_chat)
    del model  # two of d20 would be 4.5 GB
    beside = None
    if beside_folder:
        beside = trace_trained(beside_folder, config, prompt, name=name_of(beside_folder), is_chat=is_chat)
    elif options.beside is None:
        beside = trace_counterpart(config, tokenizer, prompt, is_chat=is_chat)
    different = differences(config.as_dict(), beside["config"]) if beside else []
    return {"forward": forward, "beside": beside, "differences": different}


def load(folder: Path) -> "tuple[GPT, Tokenizer]":
    from nanochat.checkpoint import load_model

    model, tokenizer = load_model(folder, dtype="float32")
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(f"{folder}: {tokenizer.vocab_size:,} tokens, and a model of {model.config.vocab_size:,}")
    return model, tokenizer


def name_of(folder: Path) -> str:
    """results/tiny/base_train -> tiny/base_train"""
    return "/".join(folder.resolve().parts[-2:])


def own_folder(model: Path, prompt: str) -> Path:
    """Where a prompt's page goes: results/tiny/traces/base_train/the-home-of-otto-is-in. One that only looks alike ends in -2.

    A page of the same prompt is made anew in its place; one of another prompt is never written over.
    """
    words = re.findall(r"\w+", prompt.lower())
    slug = "-".join(words)[:SLUG_LENGTH].strip("-") or "prompt"
    folder, number = model.parent / "traces" / model.name / slug, 1
    while folder.exists() and prompt_of(folder) != visible(prompt, keep="\n"):
        number += 1
        folder = folder.with_name(f"{slug}-{number}")
    return folder


def prompt_of(folder: Path) -> str | None:
    """The prompt of the trace in a folder; None if there is no readable one."""
    try:
        return json.loads((folder / "trace.json").read_text())["forward"]["prompt"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(trace: Mapping[str, Any], folder: Path) -> Path:
    from nanochat.tracing.forward_page import write_forward_page

    write_json(folder / "trace.json", trace)
    write_forward_page(folder / "forward.html", trace, title=title_of(trace["forward"]))
    return folder / "forward.html"


def title_of(forward: Mapping[str, Any]) -> str:
    """“The home of Otto is in”: forward pass of tiny/base_train"""
    prompt = forward["prompt"]
    short = prompt if len(prompt) <= TITLE_LENGTH else prompt[: TITLE_LENGTH - 1] + "…"
    return f"“{short}”: forward pass of {forward['name']}"


def share(chance: float) -> str:
    """As on the page: 94 %, 9.4 %, < 0.1 %."""
    if chance < 0.001:
        return "< 0.1 %"
    return f"{100 * chance:.{0 if chance >= 0.0995 else 1}f} %"


def table(forward: Mapping[str, Any]) -> list[str]:
    """What the model would say after each block, for a terminal."""
    prompt = forward["prompt"].replace("\n", "␊")
    lines = [f"{prompt}   ({len(forward['tokens'])} tokens, {len(forward['steps'])} lines of code)", ""]
    cells = [
        [f"{forward['vocabulary'][str(token)]!r} {share(chance)}" for token, chance in row["top"][:GUESSES]]
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
