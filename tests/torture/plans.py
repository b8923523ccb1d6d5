"""What is to be killed, and when: drawn from a seed, spread over the whole run."""

import random
from dataclasses import dataclass

from torture.victims import RUNNING, STARTING, STEPPING, TARGETS, phases
from torture.world import DOWNLOAD, SECONDS


@dataclass(frozen=True)
class Plan:
    """A kill that is to come: `after_s` after `stage` is seen in `phase`. If the stage is over by then: soon."""

    stage: str
    phase: str
    target: str
    after_s: float = 0.0
    soon_s: float = 0.0


def draw(count: int, rng: random.Random) -> list[Plan]:
    """Half of them at random moments of the run, half in named phases; both spread over the whole of it."""
    targets = [TARGETS[number % len(TARGETS)] for number in range(count)]
    rng.shuffle(targets)
    num_random = count // 2
    return [random_moment((number + rng.random()) / num_random, targets.pop(), rng) for number in range(num_random)] + [
        named_phase((number + rng.random()) / (count - num_random), targets.pop(), rng) for number in range(count - num_random)
    ]


def random_moment(share: float, target: str, rng: random.Random) -> Plan:
    """After this share of all seconds: the driver's start, then one stage after the other."""
    start_s = 4.0
    left = share * (start_s + sum(SECONDS.values()))
    for stage, seconds in ((STARTING, start_s), *SECONDS.items()):
        if left < seconds:
            return Plan(stage, RUNNING, possible(target, stage), left, rng.uniform(0, 6))
        left -= seconds
    return Plan("report", RUNNING, target, 1.0, 0.0)


def named_phase(share: float, target: str, rng: random.Random) -> Plan:
    named = [(stage, phase) for stage in SECONDS for phase in phases(stage) if phase != RUNNING]
    stage, phase = named[int(share * len(named))]
    return Plan(stage, phase, possible(target, stage), rng.random() if phase == STEPPING else 0.0, rng.uniform(0, 6))


def possible(target: str, stage: str) -> str:
    """Downloads have no launcher, and a driver that starts has nothing else."""
    if stage == STARTING or (stage == DOWNLOAD and target == "launcher"):
        return "tree" if target in ("tree", "launcher") else "driver"
    return target
