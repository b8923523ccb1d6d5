"""How long Snakemake takes to plan: d20 with its 240 shards, with the Ptolemy profile, where nothing is made yet.

What SLURM's programs take is no part of it: the plugin asks `scontrol` at every start where SLURM is installed.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNS = {
    "d20, profiles/ptolemy": ["--profile", "profiles/ptolemy"],
    "tiny, profiles/laptop": ["--profile", "profiles/laptop", "--configfile", "config/tiny.yaml"],
}
REPEATS = 5


def main() -> None:
    snakemake = str(Path(sys.executable).with_name("snakemake"))
    with tempfile.TemporaryDirectory() as folder:
        for name in ("Snakefile", "workflow", "profiles", "config", "nanochat"):
            (Path(folder) / name).symlink_to(ROOT / name)
        for name, arguments in RUNS.items():
            seconds = []
            for _ in range(REPEATS):
                began = time.perf_counter()
                # an empty configuration: scontrol fails at once instead of looking for a cluster
                environment = {**os.environ, "SLURM_CONF": os.devnull}
                done = subprocess.run(
                    [snakemake, "-n", *arguments], cwd=folder, env=environment, capture_output=True, text=True
                )
                seconds.append(time.perf_counter() - began)
                assert done.returncode == 0, done.stderr
            jobs = next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("total"))
            print(f"{name}: {int(jobs):,} jobs planned in {statistics.median(seconds):.1f} s (median of {REPEATS})")


if __name__ == "__main__":
    main()
