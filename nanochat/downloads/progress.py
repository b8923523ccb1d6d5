"""How far a download is: a line every few seconds, or on a terminal a bar, with bytes, rate and time left."""

import logging
import sys

log = logging.getLogger("nanochat")

SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_BARS = 0.2
BAR_LETTERS = 24


class Progress:
    """Count bytes:  shard_00007.parquet  41.2 of 100.3 MB  8.3 MB/s, 7 s left"""

    def __init__(self, name: str, *, size: int | None, already: int, now: float):
        self.name, self.size, self.done = name, size, already
        self.already = already  # bytes of an earlier start do not count for the rate
        self.began = self.last = now
        self.is_terminal = sys.stderr.isatty()

    def add(self, num_bytes: int, now: float) -> None:
        self.done += num_bytes
        if now - self.last < (SECONDS_BETWEEN_BARS if self.is_terminal else SECONDS_BETWEEN_LINES):
            return
        self.last = now
        if self.is_terminal:
            sys.stderr.write(f"\r{self.bar()}{self.line(now)}\033[K")  # clears what is left of a longer line
            sys.stderr.flush()
        else:
            log.info(self.line(now))

    def end(self) -> None:
        if self.is_terminal and self.last > self.began:
            sys.stderr.write("\r\033[K")

    def line(self, now: float) -> str:
        rate = (self.done - self.already) / max(now - self.began, 1e-9)
        of = f" of {self.size / 1e6:,.1f}" if self.size else ""
        left = f", {(self.size - self.done) / rate:,.0f} s left" if self.size and rate else ""
        return f"{self.name}  {self.done / 1e6:,.1f}{of} MB  {rate / 1e6:,.1f} MB/s{left}"

    def bar(self) -> str:
        if not self.size:
            return ""
        filled = min(BAR_LETTERS, self.done * BAR_LETTERS // self.size)
        return f"[{'#' * filled}{'.' * (BAR_LETTERS - filled)}] "
