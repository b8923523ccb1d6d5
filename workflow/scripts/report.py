"""Write a run's report from what its stages published. Stages that are missing are named, and the rest is reported."""

import argparse
import json
from pathlib import Path

from nanochat.manifest import MANIFEST
from nanochat.reports.report import write_report
from nanochat.stage import Stage, run_program


def stage_manifest(text: str) -> tuple[str, Path]:
    name, separator, path = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=MANIFEST")
    return name, Path(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--specification", type=json.loads, required=True, help="the report's own keys, as JSON")
    parser.add_argument("--title", required=True)
    parser.add_argument("--stages", type=stage_manifest, nargs="+", required=True, metavar="NAME=MANIFEST")
    parser.add_argument("--preflights", type=stage_manifest, nargs="*", default=[], metavar="NAME=RECORD")
    parser.add_argument("--logs", type=Path, required=True, help="folder that readers are sent to when a stage is missing")
    output = parser.add_mutually_exclusive_group(required=True)
    output.add_argument("--manifest", type=Path, help="manifest to publish; its folder holds the report")
    output.add_argument("--partial", type=Path, help="folder for the report of an unfinished run; publishes nothing")
    args = parser.parse_args()

    stages = dict(args.stages)
    logs = {name: args.logs / f"{name.replace('/', '_')}.log" for name in stages}
    folder = args.partial or args.manifest.parent
    folder.mkdir(parents=True, exist_ok=True)
    if args.manifest:
        stage = Stage(args.manifest, specification=args.specification, inputs=stages)
        stage.withdraw()
    else:
        (folder / MANIFEST).unlink(missing_ok=True)  # of an earlier report, which is about to be overwritten
    files = write_report(
        folder,
        stages=stages,
        specification=args.specification,
        title=args.title,
        logs=logs,
        preflights=dict(args.preflights),
    )
    if args.manifest:
        stage.publish(files, results={})


if __name__ == "__main__":
    run_program(main)
