"""Start a stage program, as one process or as several ranks through torchrun, and see it to its end (nanochat.jobs.launcher).

python workflow/scripts/launch.py --ranks 8 --state results/d20/resume/base_train workflow/scripts/train.py --help
"""

import argparse
import os
import sys
from pathlib import Path

from nanochat.jobs.launcher import Work, launch
from nanochat.planning.hardware import ON_CPUS
from nanochat.stage import run_program


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=1, help="processes on this node, one a GPU")
    parser.add_argument("--state", type=Path, required=True, help="folder of the stage's lease, commits and progress")
    parser.add_argument("--log", help="where this output goes; named in messages")
    parser.add_argument("--runtime-min", type=float, help="time limit in minutes, for when SLURM does not tell")
    parser.add_argument("--no-commits", action="store_true", help="it keeps nothing to go on from: to stop it is to end it")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the program and its arguments")
    args = parser.parse_args()
    if not args.command:
        parser.error("which program is to be started?")
    for name, value in ON_CPUS.items():
        os.environ.setdefault(name, value)
    if args.ranks > 1:
        # Snakemake gives the whole job's threads to every process it starts: share them out
        threads = max(1, int(os.environ.get("OMP_NUM_THREADS", args.ranks)) // args.ranks)
        os.environ["OMP_NUM_THREADS"] = str(threads)
    work = Work(args.command, args.state, args.ranks, args.log, args.runtime_min, commits=not args.no_commits)
    sys.exit(launch(work))


if __name__ == "__main__":
    run_program(main)
