"""tests/training.py as a program that notes every step it makes, and asks for a stop of its own at a chosen step.

TORTURE_EXECUTED=FILE    a line for each step made: its number, and the machine's monotonic clock
TORTURE_STOP_AT=STEP     ask for a stop, as before the wall, so that the commit is at exactly this step
TORTURE_STEP_S=SECONDS   take so much longer for each step
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent


def main() -> None:
    sys.path.insert(0, str(TESTS))
    import training

    training.module.update = counted(training.module.update)
    training.main()


def counted(update: Callable[..., Any]) -> Callable[..., Any]:
    executed, stop_at = Path(os.environ["TORTURE_EXECUTED"]), int(os.environ.get("TORTURE_STOP_AT", 0))
    seconds = float(os.environ.get("TORTURE_STEP_S", 0))

    def update_and_count(*arguments: Any, step: int, **more: Any) -> Any:
        result = update(*arguments, step=step, **more)
        with open(executed, "a") as file:
            file.write(f"{step + 1} {time.monotonic()}\n")
        if step + 2 == stop_at:  # the question comes before a step, the stop after it
            ask_for_stop()
        time.sleep(seconds)
        return result

    if stop_at and stop_at == int(os.environ.get("TORTURE_FROM", 0)) + 1:
        ask_for_stop()
    return update_and_count


def ask_for_stop() -> None:
    from nanochat.jobs.attempt import ask_to_stop

    ask_to_stop(
        Path(os.environ["NANOCHAT_STATE"]), int(os.environ["NANOCHAT_CLAIM"]), reason="deadline", text="the wall is near"
    )


if __name__ == "__main__":
    main()
