"""Long work that shows it is alive: a line in the log every so often, with the time left."""

import logging
import time

log = logging.getLogger("nanochat")

SECONDS_BETWEEN_LINES = 30


class Progress:
    """Count what is done and say so now and then:  CORE squad: 412 of 1049 answers, about 95 s left"""

    def __init__(self, what: str, total: int, unit: str):
        self.what, self.total, self.unit = what, total, unit
        self.done = 0
        self.started = self.reported = time.monotonic()

    def add(self, num_done: int) -> None:
        self.done += num_done
        now = time.monotonic()
        if self.done and now - self.reported >= SECONDS_BETWEEN_LINES:
            self.reported = now
            left = (now - self.started) / self.done * (self.total - self.done)
            log.info("%s: %d of %d %s, about %.0f s left", self.what, self.done, self.total, self.unit, left)
