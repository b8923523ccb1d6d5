"""Show where every run and stage stands: python -m nanochat.watch [--every 5] [--json] [RESULTS]

State, SLURM job and place in the queue, step of steps, loss, tokens/s, utilisation of that GPU's peak, time left, log. Reads
only; works on any machine that sees the results folder, without PyTorch and without SLURM. docs/watch.md tells what it prints.
"""

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

from nanochat.watching.queue import Queue, read_queue
from nanochat.watching.state import Watcher
from nanochat.watching.text import render

SECONDS_BETWEEN_QUESTIONS = 15  # to SLURM's controller, which everybody shares
SECONDS_AFTER_A_PROBLEM = 60
REDRAW, END_OF_LINE, END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


def main() -> None:
    args = parse()
    # names of files may hold anything, and a terminal may know only ASCII
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        watch(args)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=Path("results"), metavar="RESULTS", help="default: results")
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs (with --every: one a line)")
    parser.add_argument("--every", type=seconds, metavar="SECONDS", help="show it again every so often, until Ctrl-C")
    parser.add_argument("--for", type=seconds, dest="duration", metavar="SECONDS", help="with --every: and no longer than this")
    args = parser.parse_args()
    if args.duration and not args.every:
        parser.error("--for says how long --every goes on; give both")
    return args


def seconds(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 1e7:
        raise argparse.ArgumentTypeError(f"{text} is no sensible number of seconds")
    return value


def watch(args: argparse.Namespace) -> None:
    watcher, began = Watcher(args.results), time.monotonic()
    queue, asked = Queue(), float("-inf")
    in_place = bool(args.every) and not args.json and sys.stdout.isatty()
    if in_place:
        print("\x1b[2J", end="")
    while True:
        patience = SECONDS_AFTER_A_PROBLEM if queue.problem else SECONDS_BETWEEN_QUESTIONS
        if time.monotonic() - asked >= patience:
            queue = read_queue(args.results.absolute().parent)
            asked = time.monotonic()
        seen = watcher.look(queue)
        if not (args.every or args.results.is_dir() or seen["runs"] or seen["other_jobs"]):
            sys.exit(
                f"error: {args.results}: no such folder. Nothing has been started yet (downloads are not shown), or it was "
                "started elsewhere: name the folder"
            )
        show(seen, args, in_place)
        if not args.every or (args.duration and time.monotonic() - began + args.every > args.duration):
            return
        time.sleep(args.every)


def show(seen: dict, args: argparse.Namespace, in_place: bool) -> None:
    if args.json:
        print(json.dumps(seen, indent=None if args.every else 1, allow_nan=False), flush=True)
        return
    is_terminal = sys.stdout.isatty()
    columns, rows = shutil.get_terminal_size((80, 24))
    colour = is_terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    bars = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    lines = render(seen, width=min(columns, 160), colour=colour, bars=bars)
    if args.every:
        lines.insert(0, f"{seen['at']}  every {args.every:g} s, Ctrl-C ends it")
    if not in_place:
        print("\n".join(lines), flush=True)
        return
    if len(lines) > rows - 1:
        lines = [*lines[: rows - 2], f"... {len(lines) - rows + 2} more lines; a higher window shows them"]
    print(REDRAW + "".join(line + END_OF_LINE + "\n" for line in lines) + END_OF_SCREEN, end="", flush=True)


if __name__ == "__main__":
    main()
