"""One training in planned segments, and under a storm of kills: the same bits, and what is lost on the way.

    chains    1, 2, 3, 7 and 30 segments, each stopped at a commit as before a wall, at steps that the seed draws: each segment
              a call of its own in this process, and, at larger sizes, a start of the real launcher with a program of its own
    storms    everything killed every 0.5 to 8 s through the real launcher, until the training is finished. Goodput is the steps
              of the training over all steps that were made; counted, not estimated

The controls resume without the optimizer's state, and with a loader that begins anew: both must end in other bits.
"""

import json
import os
import random
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

from launching import Stage

from torture.board import Row, Say, row
from torture.kills import STORM_S, p50_p95
from torture.segment import counted
from torture.victims import kill_tree

SEGMENT = Path(__file__).with_name("segment.py")
STEPS = 40
OPTIONS = ("--steps", str(STEPS), "--eval-every", "20", "--commit-every", "8")
SEGMENTS = (1, 2, 3, 7)
MANY_SEGMENTS = 30
STEP_S = 0.1  # in storms
MOST_KILLS = 150
TRY_AGAIN = 75
Result = dict[str, Any] | None  # what tests/training.py prints; None: stopped at a commit


def rows(size: int, *, seed: int, folder: Path, say: Say) -> list[Row]:
    """`size` chains in this process and the controls; from 50 on also chains and size / 20 storms through the launcher."""
    rng = random.Random(seed)
    numbers = [*SEGMENTS, *(rng.randint(2, 8) for _ in range(size - len(SEGMENTS)))]
    whole = in_process(folder / "whole")
    found = [(number, chain_in_process(folder / f"chain{index}", stops(number, rng))) for index, number in enumerate(numbers)]
    say(f"{len(found)} chains of up to {max(numbers)} segments in this process")
    promise = "one training in planned segments, stopped at any steps: the bits of the whole one"
    result = [row("chains", promise, [compare(*chain, whole) for chain in found], segments=sum(numbers))]
    result += [control(folder, whole, rng, name) for name in TAMPERS]
    return result + (launched(size, rng, folder, say) if size >= 50 else [])


def stops(num_segments: int, rng: random.Random) -> list[int]:
    return sorted(rng.sample(range(1, STEPS), num_segments - 1))


def compare(num_segments: int, result: Result, whole: Result) -> str | None:
    """What is wrong with a chain, in words."""
    assert whole is not None
    if result is None:
        return f"{num_segments} segments: did not come to its end"
    differing = [key for key in ("weights", "metrics") if result[key] != whole[key]]
    if len(result["segments"]) != num_segments or not result["is_exact"]:
        differing.append(f"{len(result['segments'])} segments, is_exact {result['is_exact']}")
    return f"{num_segments} segments: differ in {', '.join(differing)}" if differing else None


# -- in this process ---------------------------------------------------------------------------------------------------------


def chain_in_process(folder: Path, stops: list[int], tamper: str = "") -> Result:
    result = None
    for claim, (begin, stop) in enumerate(zip([0, *stops], [*stops, 0], strict=True), start=1):
        result = in_process(folder, claim=claim, stop_at=stop, begin=begin, tamper=tamper)
        if (result is None) != bool(stop):
            return None
    return result


def in_process(folder: Path, *, claim: int = 1, stop_at: int = 0, begin: int = 0, tamper: str = "") -> Result:
    """One segment: tests/training.py to its end, or to the step at which a stop is asked for."""
    import training

    (folder / "claims").mkdir(parents=True, exist_ok=True)
    (folder / "claims" / f"{claim:08d}.json").write_text("{}")
    variables = {
        "NANOCHAT_STATE": str(folder),
        "NANOCHAT_CLAIM": str(claim),
        "TORTURE_EXECUTED": str(folder / "executed"),
        "TORTURE_STOP_AT": str(stop_at),
        "TORTURE_FROM": str(begin),
    }
    words = ["training.py", str(folder), *OPTIONS, *(["--forget"] if tamper == "optimizer" else [])]
    printed = StringIO()
    with patch.dict(os.environ, variables), patch("sys.argv", words), redirect_stdout(printed):
        update = counted(training.module.update)
        with patch.object(training.module, "update", update), loader_from(begin if tamper == "loader" else 0):
            training.main()
    return json.loads(printed.getvalue()) if printed.getvalue() else None


TAMPERS = {
    "optimizer": "commits without the optimizer's state",
    "loader": "a loader that begins anew after every resume",
}


@contextmanager
def loader_from(begin: int) -> Iterator[None]:
    """Negative control: step `begin` gets the rows of step 0, and so on."""
    from nanochat.dataloader import Loader

    step_rows = Loader.step_rows
    with patch.object(Loader, "step_rows", lambda loader, step: step_rows(loader, max(0, step - begin))):
        yield


def control(folder: Path, whole: Result, rng: random.Random, tamper: str) -> Row:
    found = [chain_in_process(folder / f"control_{tamper}{number}", stops(number, rng), tamper) for number in (2, 3)]
    undisturbed = chain_in_process(folder / f"control_{tamper}1", [], tamper)
    assert undisturbed and whole and undisturbed["weights"] == whole["weights"], "tampering shows where it is resumed, only"
    failures = [compare(number, result, whole) for number, result in zip((2, 3), found, strict=True)]
    return row("chains", TAMPERS[tamper], failures, is_control=True)


# -- through the launcher ----------------------------------------------------------------------------------------------------


class Training(Stage):
    """A training that the real launcher starts, in a folder of its own."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True)
        super().__init__(folder)
        self.results = folder / "results" / "tiny"
        self.state = self.results / "resume"
        self.executed = folder / "executed"

    def options(self, **variables: Any) -> Mapping[str, Any]:
        return {"program": SEGMENT, "TORTURE_EXECUTED": self.executed, **variables}

    def finish(self, **variables: Any) -> Result:
        """Start it once more: what it printed, or None if it stopped at a commit. RuntimeError if it failed."""
        done = self.run(self.results, *OPTIONS, timeout=600, **self.options(**variables))
        if done.returncode not in (0, TRY_AGAIN):
            raise RuntimeError(done.stderr)
        return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None

    def steps_made(self) -> list[tuple[int, float]]:
        """(step, when) of every step that was made, as often as it was."""
        lines = self.executed.read_text().splitlines() if self.executed.exists() else []
        return [(int(step), float(when)) for step, when in (line.split() for line in lines)]


@dataclass
class Storm:
    kills: int
    made: int
    recoveries: list[float]
    problem: str | None


def launched(size: int, rng: random.Random, folder: Path, say: Say) -> list[Row]:
    whole = Training(folder / "launched").finish()
    plans = {number: stops(number, rng) for number in (*SEGMENTS, MANY_SEGMENTS)}
    seeds = [rng.random() for _ in range(size // 20)]
    with ThreadPoolExecutor(2) as pool:
        chains = {
            number: pool.submit(chain_launched, folder / f"launched{number}", plan, say) for number, plan in plans.items()
        }
        storms = [pool.submit(storm, folder / f"storm{number}", seed, whole, say) for number, seed in enumerate(seeds)]
    failures = [compare(number, chain.result(), whole) for number, chain in chains.items()]
    over = [storm.result() for storm in storms]
    kills, made = sum(storm.kills for storm in over), sum(storm.made for storm in over)
    return [
        row(
            "chains",
            "the same through the real launcher, each segment a program of its own",
            failures,
            segments=sum(plans),
        ),
        row(
            "chains",
            "a training is killed every 0.5 to 8 s until it is finished: the bits of the undisturbed one",
            [storm.problem for storm in over],
            kills=kills,
            steps_made=made,
            steps_useful=STEPS * len(over),
            goodput=round(STEPS * len(over) / max(made, 1), 3),
            kills_after_which_a_step_was_made_before_the_next=sum(len(storm.recoveries) for storm in over),
            seconds_from_kill_to_first_new_step=p50_p95([second for storm in over for second in storm.recoveries]),
        ),
    ]


def chain_launched(folder: Path, stops: list[int], say: Say) -> Result:
    training, result = Training(folder), None
    for begin, stop in zip([0, *stops], [*stops, 0], strict=True):
        result = training.finish(TORTURE_STOP_AT=stop, TORTURE_FROM=begin)
        if (result is None) != bool(stop):
            return None
    say(f"a chain of {len(stops) + 1} segments through the launcher")
    return result


def storm(folder: Path, seed: float, whole: Result, say: Say) -> Storm:
    """Kill launcher and program again and again, whether or not it came to a step in between."""
    training, rng, kills = Training(folder), random.Random(seed), []
    while len(kills) < MOST_KILLS:
        process = training.start(training.results, *OPTIONS, **training.options(TORTURE_STEP_S=STEP_S))
        end = time.monotonic() + rng.uniform(*STORM_S)
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        if process.poll() is not None:
            break
        kill_tree(training.folder)
        process.communicate()
        kills.append(time.monotonic())
    made = training.steps_made()
    if len(kills) < MOST_KILLS:
        stdout, stderr = process.communicate()
        result = json.loads(stdout.splitlines()[-1]) if process.returncode == 0 else None
        problem = f"failed: {stderr}" if result is None else compare(len(result["segments"]), result, whole)
    else:
        result, problem = None, f"not finished after {MOST_KILLS} kills"
    recoveries = [first_between(kill, following, made) for kill, following in pairwise([*kills, time.monotonic()])]
    say(f"a storm of {len(kills)} kills, {len(made)} steps made for {STEPS}: {problem or 'same bits'}")
    return Storm(len(kills), len(made), [second for second in recoveries if second is not None], problem)


def first_between(kill: float, following: float, made: list[tuple[int, float]]) -> float | None:
    """Seconds from a kill to the first step after it; None if the next kill came before."""
    return min((when - kill for _, when in made if kill < when < following), default=None)
