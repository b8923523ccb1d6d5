"""Start a stage program: as one process, or as several ranks through torchrun.

python workflow/scripts/launch.py --ranks 8 workflow/scripts/train.py --help
"""

import argparse
import os
import sys

# What a training on CPUs wants of its process; GPUs do not mind.
ON_CPUS = {
    # threads that wait by spinning keep the cores from whoever has work: with two busy programs on two cores, a step of the
    # tiny model took 7.7 s so, and 1.5 s with threads that sleep
    "OMP_WAIT_POLICY": "passive",
    # keep freed memory instead of giving it back and having it zeroed again: beside another busy program, a step at a
    # vocabulary of 8,192 took 3.2 s so, and 8.0 s with the defaults of the C library; idle it gains less (benchmarks/step.py)
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=1, help="processes on this node, one a GPU")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the program and its arguments")
    args = parser.parse_args()
    if not args.command:
        parser.error("which program is to be started?")
    for name, value in ON_CPUS.items():
        os.environ.setdefault(name, value)
    launcher = [sys.executable]
    if args.ranks > 1:
        # Snakemake gives the whole job's threads to every process it starts: share them out
        threads = max(1, int(os.environ.get("OMP_NUM_THREADS", args.ranks)) // args.ranks)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={args.ranks}"]
    os.execv(sys.executable, [*launcher, *args.command])


if __name__ == "__main__":
    main()
