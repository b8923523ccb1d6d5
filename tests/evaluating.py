"""Stand-ins for tests of evaluations: ranks that are threads of one process, and an attempt that is asked to stop."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from nanochat.jobs.attempt import Attempt

MEETING_SECONDS = 60


class ThreadRanks:
    """One of them; speaks as `nanochat.distributed.Ranks` does."""

    def __init__(self, rank: int, world_size: int, said: list, meeting: threading.Barrier):
        self.rank, self.world_size = rank, world_size
        self.is_main = rank == 0
        self.said, self.meeting = said, meeting

    def gather_objects(self, item: Any) -> list:
        self.said[self.rank] = item
        self.meeting.wait(MEETING_SECONDS)
        items = list(self.said)
        self.meeting.wait(MEETING_SECONDS)
        return items

    def from_main(self, item: Any) -> Any:
        return self.gather_objects(item)[0]

    def sum_floats(self, *values: float) -> list[float]:
        return [sum(column) for column in zip(*self.gather_objects(values), strict=True)]


def on_ranks(world_size: int, work: Callable[[ThreadRanks], Any]) -> list:
    """What `work(ranks)` returns on each rank; where it raises, the exception. A rank left waiting breaks the meeting."""
    said, meeting = [None] * world_size, threading.Barrier(world_size)

    def do(rank: int) -> Any:
        try:
            return work(ThreadRanks(rank, world_size, said, meeting))
        except Exception as error:
            return error

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(do, range(world_size)))


class StopsAt(Attempt):
    """Asked to stop at the n-th question; keeps its files in `folder`."""

    def __init__(self, folder: Path, question: int):
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder)
        self.questions_left = question

    def stop_requested(self) -> str | None:
        self.questions_left -= 1
        return "deadline" if self.questions_left == 0 else None
