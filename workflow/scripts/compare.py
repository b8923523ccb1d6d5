"""Compare the configured runs in one page, from what their stages published."""

from pathlib import Path

from nanochat.reports.comparison import write_comparison
from nanochat.stage import Stage, run_program, stage_parser

PAGE = "comparison.html"


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument(
        "--runs", type=Path, nargs="+", required=True, metavar="FOLDER", help="the runs, the first to compare with"
    )
    args = parser.parse_args()
    inputs = {folder.name: folder / "report" / "manifest.json" for folder in args.runs}
    stage = Stage(args.manifest, specification=args.specification, inputs=inputs)
    write_comparison(stage.folder / PAGE, args.runs)
    stage.publish([PAGE], results={})


if __name__ == "__main__":
    run_program(main)
