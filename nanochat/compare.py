"""Compare runs in one page.

    python -m nanochat.compare results/a results/b -o page.html

The first run is what the others are compared with. Runs that have not finished are compared as far as they are.
"""

import argparse
import sys
from pathlib import Path

from nanochat.errors import UserError
from nanochat.reports.comparison import write_comparison
from nanochat.text import visible


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m nanochat.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run, such as results/d20")
    parser.add_argument("-o", "--output", type=Path, default=Path("comparison.html"), help="page to write [%(default)s]")
    args = parser.parse_args(arguments)
    try:
        missing = write_comparison(args.output, args.runs)
    except UserError as error:
        sys.exit(visible(f"error: {error}", keep="\n"))
    except OSError as error:
        sys.exit(visible(f"error: {args.output}: {error.strerror}"))
    for line in missing:
        print(visible(f"not finished: {line}"), file=sys.stderr)
    print(visible(str(args.output)))


if __name__ == "__main__":
    main()
