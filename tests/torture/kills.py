"""Random SIGKILLs over the whole DAG: whatever is killed, whenever, the same command again ends in the same bits.

A pass runs the small world from nothing to the report and is killed about ten times on the way: a rank, a launcher, the driver
or everything at once; half of the times at a random moment of the run, the other half in a named phase of a stage. After each
kill the same command is given again, as a person would, and nothing else is done. At the end all that was made is compared with
an undisturbed run (torture.world). If anything differs, or something else than the same command would have been needed, all
kills of the pass have failed.

Covered: SIGKILL in every stage, downloads and the driver's own start among them. Not covered: what a power failure takes from
the disk's cache (torture.crash_points looks at the order of the system calls), and more than one machine.
"""

import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles

from torture.board import Row, Say, row
from torture.plans import Plan, draw
from torture.victims import RUNNING, STARTING, Process, is_in, kept, kill_tree, processes, says
from torture.world import DOWNLOAD, RUN, Golden, World, copy_code, leftovers, make_golden, resumptions

KILLS_A_PASS = 10
SECONDS_BETWEEN_LOOKS = 0.003
SECONDS_BETWEEN_SCANS = 0.1
LONGEST_SURVIVAL_S = 60.0  # a driver's programs have 25 s to come to a commit
LONGEST_ATTEMPT_S = 1800.0
STORM_S = (0.5, 8.0)


@dataclass
class Kill:
    """A kill that was done."""

    target: str
    stage: str
    phase: str
    step: int
    said: str
    at_s: float
    recovered_s: float | None = None

    def __str__(self) -> str:
        where = f"step {self.step}, {self.said or '-'}, {self.at_s:.0f} s"
        return f"{self.target} of {self.stage or 'the driver'}, {self.phase} ({where})"


@dataclass
class Pass:
    """A world from nothing to its end, and what was done to it."""

    world: World
    kills: list[Kill] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    drivers: int = 0
    survivals: list[float] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    resumed: int = 0  # how often a training went on from a commit
    seconds: float = 0.0


# -- one pass ----------------------------------------------------------------------------------------------------------------


class Killer:
    """Runs a world to its end and carries out a plan on the way."""

    def __init__(self, world: World, plans: Sequence[Plan], rng: random.Random, *, storm: int = 0):
        self.world, self.plans, self.rng, self.storm = world, list(plans), rng, storm
        self.done = Pass(world)
        self.began = time.monotonic()
        self.doomed: list[tuple[Process, float]] = []  # what has to end now, and since when
        self.calm = 1.0  # so many times STORM_S: what takes longer than 8 s and keeps nothing would never end
        self.pending: tuple[Kill, float, set[str]] | None = None  # the last kill, and what was there when it happened

    def run(self, golden_of: Callable[[], Golden]) -> Pass:
        """`golden_of()` gives the golden run once it is there."""
        try:
            is_finished = self.come_to_the_end()
            self.see_everybody_gone()
            self.done.leftovers = leftovers(self.world)
            self.done.resumed = resumptions(self.world) if is_finished else 0
            self.done.seconds = time.monotonic() - self.began
            self.done.problems += golden_of().differences(self.world) if is_finished else ["it did not come to its end"]
        except Exception as error:  # the other passes are to go on
            self.done.problems.append(f"{type(error).__name__}: {error}")
        finally:
            kill_tree(self.world.folder)
        return self.done

    def come_to_the_end(self) -> bool:
        """Give the command until it succeeds, or has failed three times though nothing was killed."""
        unexplained = 0
        while unexplained < 3:
            before = len(self.done.kills)
            code = self.attempt()
            if code == 0:
                return True
            if len(self.done.kills) == before:
                unexplained += 1
                self.done.problems.append(f"the command failed with {code} though nothing was killed; {self.last_words()}")
        return False

    def attempt(self) -> int:
        """One life of the driver: its exit code."""
        driver, started = self.world.start(), time.monotonic()
        self.done.drivers += 1
        is_stormy = len(self.done.kills) < self.storm
        storm_at = started + self.calm * self.rng.uniform(*STORM_S) if is_stormy else float("inf")
        seen: dict[str, float] = {}
        alive: list[Process] = []
        next_scan = 0.0
        while driver.poll() is None:
            now = time.monotonic()
            if now >= next_scan:
                next_scan = now + SECONDS_BETWEEN_SCANS
                alive = [process for process in processes(self.world.folder) if process.pid != driver.pid]
                for process in alive:
                    seen.setdefault(process.stage, now)
                self.look_after(now)
            if now >= storm_at:
                self.kill(Plan("", "storm", "tree"), driver, alive)
            elif now - started > LONGEST_ATTEMPT_S:
                self.done.problems.append(f"the command took more than {LONGEST_ATTEMPT_S:.0f} s")
                kill_tree(self.world.folder)
            for plan in [plan for plan in self.plans if self.is_due(plan, now, started, seen)]:
                if driver.poll() is None and self.kill(plan, driver, alive):
                    self.plans.remove(plan)
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return driver.wait()

    def is_due(self, plan: Plan, now: float, started: float, seen: dict[str, float]) -> bool:
        if plan.stage == STARTING:
            return now - started >= plan.after_s
        if plan.stage not in seen:  # in this life of the driver
            is_over = self.world.is_published("preflight" if plan.stage == DOWNLOAD else plan.stage)
            return is_over and now - started >= plan.soon_s
        if plan.phase != RUNNING and is_in(self.world, plan.stage, plan.phase)():
            seen.setdefault(f"{plan.stage} {plan.phase}", now)
        moment = seen.get(plan.stage if plan.phase == RUNNING else f"{plan.stage} {plan.phase}", float("inf"))
        return now - moment >= plan.after_s or (self.world.is_published(plan.stage) and now - started >= plan.soon_s)

    def kill(self, plan: Plan, driver: subprocess.Popen, alive: list[Process]) -> bool:
        """Whether there was somebody to kill."""
        stages = [process.stage for process in alive if process.stage and process.is_alive]
        stage = plan.stage if plan.stage in stages else stages[-1] if stages else ""
        victims = [process for process in alive if (process.kind, process.stage) == (plan.target, stage) and process.is_alive]
        if plan.target in ("rank", "launcher") and not victims:
            return False
        now, was_there = time.monotonic(), self.world.kept()
        self.calm = 1.0 if self.pending is None else 1.5 * self.calm
        phase = plan.phase if plan.stage in (stage, STARTING, "") else "soon after it"
        state = self.world.state(stage or "nothing")
        kill = Kill(plan.target, stage, phase, kept(state), says(state), now - self.began)
        if plan.target == "tree":
            kill_tree(self.world.folder)
        elif plan.target == "driver":
            driver.kill()
        else:
            victim = self.rng.choice(victims)
            victim.kill()
        if plan.target in ("tree", "driver"):
            driver.wait()
        else:
            self.doomed += [(process, now) for process in alive if process.stage == stage]
        self.doomed += [(process, now) for process in alive if plan.target == "driver" and process.stage]
        self.done.kills.append(kill)
        self.pending = (kill, now, was_there)
        return True

    def look_after(self, now: float) -> None:
        """Who of those that have to end has ended; whether there is something new since the last kill."""
        for process, since in list(self.doomed):
            if not process.is_alive:
                self.done.survivals.append(now - since)
            elif now - since > LONGEST_SURVIVAL_S:
                self.done.problems.append(f"{process} went on for more than {LONGEST_SURVIVAL_S:.0f} s after the kill")
            else:
                continue
            self.doomed.remove((process, since))
        if self.pending and self.world.kept() - self.pending[2]:
            self.pending[0].recovered_s = now - self.pending[1]
            self.pending = None

    def see_everybody_gone(self) -> None:
        while self.doomed:
            self.look_after(time.monotonic())
            time.sleep(SECONDS_BETWEEN_SCANS)
        end = time.monotonic() + 10
        while (left := processes(self.world.folder)) and time.monotonic() < end:
            time.sleep(SECONDS_BETWEEN_SCANS)
        self.done.problems += [f"{process} outlived everything" for process in left]

    def last_words(self) -> str:
        return " / ".join((self.world.folder / "driver.log").read_text(errors="replace").splitlines()[-6:])


# -- the board ---------------------------------------------------------------------------------------------------------------


def rows(size: int, *, seed: int, folder: Path, say: Say) -> list[Row]:
    """`size` kills, in passes two at a time; a storm of size / 2 kills (from 50 on); and that a difference would be seen."""
    code = copy_code(folder / "code")
    golden_world = World(folder / "golden", code)
    counts = [KILLS_A_PASS] * (size // KILLS_A_PASS) + [size % KILLS_A_PASS] * (size % KILLS_A_PASS > 0)
    with ThreadPoolExecutor(2) as pool:
        golden = pool.submit(make_golden, golden_world).result

        def trial(number: int, count: int, storm: int = 0) -> Pass:
            rng = random.Random(f"{seed}:{number}")
            plans = draw(count + 1, rng) if count else []  # one to spare, as a moment may not come
            done = Killer(World(folder / f"pass{number}", code), plans, rng, storm=storm).run(golden)
            came_to = "; ".join(done.problems) or "same bits"
            say(f"pass {number}: {len(done.kills)} kills, {done.drivers} starts, {done.seconds:.0f} s, {came_to}")
            if not done.problems:
                shutil.rmtree(done.world.folder)
            return done

        storms = [pool.submit(trial, 0, 0, size // 2)] if size >= 50 else []
        passes = list(pool.map(trial, range(1, len(counts) + 1), counts))
        missing = size - sum(len(done.kills) for done in passes)
        if missing > 0:
            passes.append(trial(len(counts) + 1, missing))
    failures = [f"{kill}: {'; '.join(done.problems)}" if done.problems else None for done in passes for kill in done.kills]
    promise = "SIGKILL to a rank, a launcher, the driver or everything, at any moment: the same command ends in the same bits"
    found = [row("kills", promise, failures, **details(passes)), control(golden(), golden_world)]
    return found + [storm_row(storm.result()) for storm in storms]


def storm_row(storm: Pass) -> Row:
    promise = "SIGKILL to everything every 0.5 to 8 s, less often while nothing is kept in between: the same bits"
    failures = ["; ".join(storm.problems) if storm.problems else None] * len(storm.kills)
    return row("kills", promise, failures, seconds=round(storm.seconds), **details([storm]))


def details(passes: list[Pass]) -> dict:
    kills = [kill for done in passes for kill in done.kills]
    return {
        "passes": len(passes),
        "starts": sum(done.drivers for done in passes),
        "trainings_resumed_from_a_commit": sum(done.resumed for done in passes),
        "targets": dict(Counter(kill.target for kill in kills)),
        "stages": dict(Counter(kill.stage or "between stages" for kill in kills)),
        "phases": dict(Counter(kill.phase for kill in kills)),
        "seconds_from_kill_to_what_is_kept_next": p50_p95([kill.recovered_s for kill in kills if kill.recovered_s]),
        "longest_survivor_s": round(max((s for done in passes for s in done.survivals), default=0.0), 1),
        "temporary_files_left": sum(len(done.leftovers) for done in passes),
        "some_of_them": [name for done in passes for name in done.leftovers][:5],
    }


def p50_p95(seconds: Sequence[float]) -> list[float]:
    if len(seconds) < 2:
        return [round(second, 1) for second in seconds]
    cuts = quantiles(seconds, n=20, method="inclusive")
    return [round(cuts[9], 1), round(cuts[18], 1)]


def control(golden: Golden, world: World) -> Row:
    """The comparison itself: with one bit of the chat model flipped, it has to say so."""
    path = world.folder / RUN / "sft" / "model.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    found = golden.differences(world)
    path.write_bytes(good)
    return row("kills", "one bit of a finished model is flipped", ["; ".join(found) or None], is_control=True)
