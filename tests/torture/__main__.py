"""Break everything on purpose, and count: make torture N=100 [ONLY="kills corruption"] [SEED=1] [WRITE=1]

Each part tries its promises `N` times or so, with trials that the seed decides, and its negative controls: the same trials with
a mechanism taken away, which must fail. Ends with a table; exit code 1 if a promise was broken or a control was not.
"""

import argparse
import importlib
import shutil
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path

from torture.board import PARTS, Row
from torture.scoreboard import entry, table, write


def main() -> None:
    options = parse()
    entries = []
    for part in options.parts or PARTS:
        say(part, PARTS[part])
        entries += run(part, options)
    print(table(entries))
    if options.write:
        write(entries)
    sys.exit(0 if all(found["holds"] for found in entries) else 1)


def parse() -> argparse.Namespace:
    listed = "\n".join(f"  {name:<14}{text}" for name, text in PARTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m torture",
        description=__doc__,
        epilog=f"parts:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="default: all")
    parser.add_argument("-n", "--size", type=int, default=100, help="about how many trials a promise gets (default: 100)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="put what was found into docs/reliability.json and .md")
    options = parser.parse_args()
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"{', '.join(unknown)}: no such part; there are {', '.join(PARTS)}")
    if options.size < 1:
        parser.error("--size must be at least 1")
    return options


def run(part: str, options: argparse.Namespace) -> list[dict]:
    """The rows of one part, as entries of the scoreboard. Its folder stays if something failed, and is told."""
    folder, began = Path(tempfile.mkdtemp(prefix=f"torture-{part}-")), time.monotonic()
    try:
        module = importlib.import_module(f"torture.{part}")
        rows = module.rows(options.size, seed=options.seed, folder=folder, say=lambda text: say(part, text))
    except Exception as error:  # the other parts are to run all the same
        traceback.print_exc()
        rows = [Row(part, "the part runs to its end", 1, 1, (f"{type(error).__name__}: {error}",))]
    seconds = time.monotonic() - began
    if all(row.holds for row in rows):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        say(part, f"its folder stays: {folder}")
    return [entry(replace(row, part=part), size=options.size, seed=options.seed, seconds=seconds) for row in rows]


def say(part: str, text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {part}: {text}", flush=True)


if __name__ == "__main__":
    main()
