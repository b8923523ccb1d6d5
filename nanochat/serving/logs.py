"""What is logged: that something failed, and where. Never what was said: not even an error's message, which may quote it."""

import logging
import traceback
from pathlib import Path

log = logging.getLogger("nanochat")


def log_failure(what: str, error: BaseException) -> None:
    """An answer failed: ValueError in engine.py, line 123 <- answer.py, line 60"""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    places = " <- ".join(f"{Path(frame.filename).name}, line {frame.lineno}" for frame in reversed(frames))
    log.error("%s failed: %s in %s", what, type(error).__name__, places)
