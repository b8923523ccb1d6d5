"""The sandbox, tier by tier: how many hostile programs have no effect, how many right answers pass, and what a program takes.

    python benchmarks/sandbox.py [--humaneval FILE]         # 2 minutes

Tiers that this machine does not offer are left out. Times are of one program after another.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from hostile_programs import PROGRAMS  # noqa: E402

from nanochat.confined.tiers import is_enough  # noqa: E402
from nanochat.sandbox import TIERS, probe, run_tests  # noqa: E402
from nanochat.tasks import build  # noqa: E402
from nanochat.tasks.humaneval import judge  # noqa: E402

HUMANEVAL = ROOT.parent / "shared/data/hub/openai/openai_humaneval/openai_humaneval/test-00000-of-00001.parquet"
REPEATS = 40
# without those that would disturb this machine where nothing stops them
LEFT_OUT_WHEN_LIMITED = ("memory: ", "kernel: ", "signals: everybody", "files: Python's own", "processes: multiprocessing")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--humaneval", type=Path, default=HUMANEVAL, help="parquet file of the data set")
    args = parser.parse_args()
    print(f"this machine offers {probe()}\n")
    print("| tier | hostile programs without effect | right HumanEval answers that pass | ms a program (median) |")
    print("|---|---|---|---|")
    stories = []
    for tier in TIERS:
        if not is_enough(probe().tier, tier):
            continue
        names = [name for name in PROGRAMS if tier != "limited" or not name.startswith(LEFT_OUT_WHEN_LIMITED)]
        found = effects(names, tier)
        effective = [name for name, effects in found.items() if effects]
        answers = canonical_answers(args.humaneval, tier) if args.humaneval.is_file() else "no file"
        print(f"| {tier} | {len(found) - len(effective)} of {len(found)} | {answers} | {1000 * seconds_a_program(tier):.0f} |")
        stories.append(f"{tier}, with effect: {', '.join(effective) or 'none'}")
    print("", *stories, sep="\n")


def effects(names: list[str], tier: str) -> dict[str, dict]:
    """In a session of its own, which at the lowest tier gets signals."""
    command = [sys.executable, str(ROOT / "tests/hostile_programs.py"), "--at-most", tier, *names]
    done = subprocess.run(command, stdout=subprocess.PIPE, start_new_session=True, check=True)
    return json.loads(done.stdout)["effects"]


def canonical_answers(path: Path, tier: str) -> str:
    items = list(build("humaneval", split="test", files={"humaneval/test": path}))
    with ThreadPoolExecutor() as pool:
        results = pool.map(lambda item: judge(item, item["messages"][1]["content"], sandbox=tier, at_most=tier), items)
        return f"{sum(result.passed for result in results)} of {len(items)}"


def seconds_a_program(tier: str) -> float:
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        result = run_tests(
            "def double(x): return 2 * x",
            setup="",
            tests="def check(f): assert f(2) == 4",
            entry_point="double",
            tier=tier,
            at_most=tier,
        )
        seconds.append(time.perf_counter() - began)
        assert result.passed, result
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
