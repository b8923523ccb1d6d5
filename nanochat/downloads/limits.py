"""How long a download waits, how often it tries, how much it takes; and the clock that tests replace."""

import random
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """How long, how often, how much."""

    connect_s: float = 10
    read_s: float = 30  # without a single byte
    answer_s: float = 90  # from the question to the end of the headers, with names looked up and redirects followed
    slow_s: float = 60  # in any such span ...
    slow_bytes_per_s: float = 10_000  # ... at least this rate, or the connection is given up for a better one
    tries: int = 7  # in a row without real progress
    progress_bytes: int = 1 << 20  # real progress, or a tenth of the file if that is less
    first_wait_s: float = 1
    longest_wait_s: float = 60
    longest_retry_after_s: float = 600
    total_s: float = 4 * 3600
    max_unknown_bytes: int = 4 << 30  # of a file whose size nobody says


class Clock:
    """Time and chance; tests bring their own."""

    def monotonic(self) -> float:
        return time.monotonic()

    def now(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def jitter(self) -> float:
        """Between 0 and 1: many processes that failed together should not come back together."""
        return random.random()


LIMITS = Limits()
CLOCK = Clock()


class TryAgain(Exception):
    """Says in words why a try failed that is worth another one."""

    def __init__(self, text: str, *, wait_s: float | None = None):
        super().__init__(text)
        self.wait_s = wait_s
