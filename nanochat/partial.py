"""The finished tasks of a long evaluation, kept so that one that was stopped or killed goes on behind them.

    part_{task}.json    what a task came to, the seconds it took, and the identity of its evaluation; written atomically into
                        the stage's state folder (see nanochat.jobs.attempt; without a launcher nothing is kept)

A task is kept whole or not at all, so a stop costs at most the task that it interrupts. Batches are always made anew from the
whole task, so an evaluation that was interrupted any number of times ends in the same bytes as one that was not.

Covered: parts of another specification, of other inputs, of another generation of the code (`nanochat.identities`), or of
another numeric identity (hardware, number of ranks, dtype, versions: each of them changes batches or sums, and so the last
digits) are removed and said; so is a part that is damaged. Not covered, as in trainings: the number of threads on a CPU.
"""

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar

from nanochat.identities import differing, identity_of, require_same_work
from nanochat.jobs.attempt import Attempt
from nanochat.manifest import write_json
from nanochat.stage import Stage, now, versions

log = logging.getLogger("nanochat")

T = TypeVar("T")

SECONDS_BETWEEN_REPORTS = 2


class Stopped(Exception):
    """The evaluation ends here because somebody asked for it. Nothing failed, and what is finished is kept."""


class Ranks(Protocol):
    """What this module needs of the processes that evaluate together (`nanochat.distributed`)."""

    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    @property
    def is_main(self) -> bool: ...
    def gather_objects(self, item: Any) -> list: ...
    def from_main(self, item: Any) -> Any: ...
    def sum_floats(self, *values: float) -> list[float]: ...


@dataclass(frozen=True)
class Work:
    """How much a task is, in a unit that its kind has in common: seconds a unit are learned from tasks of the same kind."""

    kind: str
    amount: float


@dataclass(frozen=True)
class Part:
    """A finished task."""

    content: Any
    seconds: float
    is_kept: bool  # from an earlier attempt


class Parts:
    """The tasks of one evaluation: each is taken from an earlier attempt, or evaluated by all ranks together and kept.

        parts = Parts(ranks, stage="base_eval", num_tasks=3, attempt=Attempt.from_environment(), identity={...})
        rows = parts.rows("squad", evaluate_my_share)   # evaluate_my_share calls parts.poll(share) before each batch

    Ranks have different numbers of batches and do not meet between them. Each looks for a stop by itself and, having seen one,
    leaves its task; where all meet at the end of the task, one that left is enough, and `Stopped` is raised on every rank.
    """

    def __init__(
        self,
        ranks: Ranks,
        *,
        stage: str = "",
        num_tasks: int = 0,
        attempt: Attempt | None = None,
        identity: Mapping[str, Any] | None = None,
    ):
        self.ranks, self.attempt = ranks, attempt or Attempt()
        self.folder = self.attempt.state
        self.stage, self.num_tasks = stage, num_tasks
        self.identity = json.loads(json.dumps(identity or {}))  # as it will read back: tuples are lists
        self.expected: dict[str, Work] = {}
        self.current, self.share, self.began, self.reported = "", 0.0, 0.0, 0.0
        self.was_asked = False
        # one rank reads for all, so that none misses a part that another one sees
        self.finished: dict[str, Part] = ranks.from_main(self.read() if ranks.is_main else None)
        if ranks.is_main and self.finished:
            log.info("going on behind %d tasks that are finished: %s", len(self.finished), ", ".join(self.finished))

    @classmethod
    def of_stage(
        cls, stage: Stage, ranks: Ranks, *, name: str, num_tasks: int, attempt: Attempt, machine: Mapping[str, Any]
    ) -> "Parts":
        """Those of a stage's evaluation, with all that its bytes depend on as their identity."""
        whole = identity_of(name.split("/")[0], stage.specification, stage.input_identities())
        identity = {**whole, "numerics": {**machine, **versions()}}
        require_same_work(ranks, identity)
        return cls(ranks, stage=name, num_tasks=num_tasks, attempt=attempt, identity=identity)

    # -- doing ---------------------------------------------------------------------------------------------------------------

    def rows(self, name: str, evaluate_share: Callable[[], list[dict]]) -> list[dict]:
        """The rows of all ranks in the order of their "index"; `evaluate_share` makes those of this one."""

        def together() -> list[dict]:
            return sorted((row for rows in self.gather(evaluate_share) for row in rows), key=lambda row: row["index"])

        return self.run(name, together)

    def run(self, name: str, evaluate: Callable[[], T]) -> T:
        """What a task came to, plain JSON. `evaluate` raises Stopped on all ranks or on none."""
        if name not in self.finished:
            self.current, self.share, self.began = name, 0.0, time.monotonic()
            self.report()
            text = json.dumps(evaluate(), sort_keys=True, allow_nan=False)
            # through JSON here too, so that there is no difference between what was just found and what is read back
            self.finished[name] = Part(json.loads(text), time.monotonic() - self.began, is_kept=False)
            if self.folder is not None and self.ranks.is_main:
                self.write(name, self.finished[name])
            self.current = ""
        return self.finished[name].content

    def gather(self, evaluate_share: Callable[[], T]) -> list[T]:
        """Each rank's item, on every rank; Stopped on every rank if one of them left."""
        try:
            mine = evaluate_share()
        except Stopped:
            mine = None
        items = self.ranks.gather_objects(mine)
        if any(item is None for item in items):
            raise Stopped
        return items

    def poll(self, share: float) -> None:
        """Before each batch: so much of the task is done (0 to 1). Raises Stopped if this rank is to leave it."""
        self.share = share
        if self.is_asked_to_stop():
            raise Stopped
        if time.monotonic() - self.reported >= SECONDS_BETWEEN_REPORTS:
            self.report()

    def until_stopped(self, batches: Iterable[T], *, total: int) -> Iterator[T]:
        """The batches, up to where a stop was asked for; `sum_floats` then tells all ranks."""
        for number, batch in enumerate(batches):
            try:
                self.poll(number / total)
            except Stopped:
                return
            yield batch

    def sum_floats(self, *values: float) -> list[float]:
        """Sums over all ranks; Stopped on every rank if one of them was asked to stop. The question travels with the sums."""
        *sums, num_asked = self.ranks.sum_floats(*values, float(self.was_asked))
        if num_asked:
            raise Stopped
        return sums

    def is_asked_to_stop(self) -> bool:
        self.was_asked = self.was_asked or self.attempt.stop_requested() is not None
        return self.was_asked

    # -- telling -------------------------------------------------------------------------------------------------------------

    def expect(self, works: Mapping[str, Work]) -> None:
        """Tasks that are still to come, or kept, and how much they are."""
        self.expected |= works

    def report(self) -> None:
        """Progress for whoever watches: finished tasks of all."""
        self.reported = time.monotonic()
        if self.ranks.is_main:
            self.attempt.report(
                stage=self.stage,
                state="evaluating",
                step=len(self.finished),
                num_steps=self.num_tasks,
                unit="tasks",
                seconds_left=self.seconds_left(),
                message=self.current,
            )

    def took(self, name: str) -> str:
        """For the end of a task's line in the log:  12.3 s, 0:04:10 left"""
        part, left = self.finished[name], self.seconds_left()
        words = f"kept, {part.seconds:.1f} s" if part.is_kept else f"{part.seconds:.1f} s"
        return words if left is None else f"{words}, {timedelta(seconds=round(left))} left"

    def seconds_left(self) -> float | None:
        """None where it cannot be told: before all tasks are known, and before the first batches of each kind."""
        if len(self.expected) < self.num_tasks:
            return None
        left = 0.0
        for name, work in self.expected.items():
            amount = work.amount * (1 - self.share_done(name))
            if amount > 0:
                pace = self.seconds_per_unit(work.kind)
                if pace is None:
                    return None
                left += amount * pace
        return left

    def seconds_per_unit(self, kind: str) -> float | None:
        works = {name: work for name, work in self.expected.items() if work.kind == kind and self.share_done(name) > 0}
        amount = sum(work.amount * self.share_done(name) for name, work in works.items())
        return sum(map(self.seconds_spent, works)) / amount if amount else None

    def share_done(self, name: str) -> float:
        return 1.0 if name in self.finished else self.share if name == self.current else 0.0

    def seconds_spent(self, name: str) -> float:
        return self.finished[name].seconds if name in self.finished else time.monotonic() - self.began

    # -- ending --------------------------------------------------------------------------------------------------------------

    def say_stopped(self) -> None:
        """After Stopped: nothing is published, and the launcher and people are told so."""
        if self.ranks.is_main:
            log.info("%s: stopped as asked; %d of %d tasks are finished", self.stage, len(self.finished), self.num_tasks)
            self.attempt.stopped(len(self.finished), self.num_tasks)

    def publish(self, stage: Stage, files: Sequence[str], *, results: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        """Publish the whole evaluation, and remove its parts. The recorded time counts the tasks of earlier attempts."""
        self.attempt.ensure_held()
        kept = [part.seconds for part in self.finished.values() if part.is_kept]
        seconds = (now() - stage.started).total_seconds() + sum(kept)
        stage.publish(files, results=results, record={**record, "seconds": seconds, "tasks_of_earlier_attempts": len(kept)})
        finish(self.attempt)

    # -- keeping -------------------------------------------------------------------------------------------------------------

    def write(self, name: str, part: Part) -> None:
        assert self.folder is not None
        self.attempt.ensure_held()
        kept = {"task": name, "seconds": part.seconds, "sha256": digest(part.content), "content": part.content}
        file_name = "part_" + re.sub(r"[^\w.-]", "_", name) + ".json"
        write_json(self.folder / file_name, {"identity": self.identity, **kept})

    def read(self) -> dict[str, Part]:
        """The parts of this evaluation, by task; those that cannot serve are removed, and so is what a killed process left."""
        if self.folder is None:
            return {}
        for left in self.folder.glob(".part_*.json.tmp-*"):
            left.unlink(missing_ok=True)
        found: dict[str, Part] = {}
        for path in sorted(self.folder.glob("part_*.json")):
            try:
                kept = json.loads(path.read_bytes())
                name, part = kept["task"], Part(kept["content"], kept["seconds"], is_kept=True)
                is_whole = kept["sha256"] == digest(part.content)
                different = [key for key, _, _ in differing(dict(kept["identity"]), self.identity)]
            except (ValueError, KeyError, TypeError, AttributeError):
                is_whole, different = False, []
            if different or not is_whole:
                why = f"is of another evaluation, which differs in {', '.join(different)}" if different else "is damaged"
                log.warning("%s: %s; removed, its task is evaluated again", path, why)
                path.unlink()
            else:
                found[name] = part
        return found


def finish(attempt: Attempt) -> None:
    """What is left to do once an evaluation is published: nobody needs its parts any more."""
    for path in [] if attempt.state is None else attempt.state.glob("part_*.json"):
        path.unlink(missing_ok=True)
    attempt.finished()


def digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
