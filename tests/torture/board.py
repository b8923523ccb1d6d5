"""What a trial of a promise came to: the rows of the scoreboard in docs/reliability.md."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

Say = Callable[[str], None]
NUM_EXAMPLES = 5

PARTS = {  # in the order in which they run and are shown; each is a module of this package with a function `rows`
    "kills": "random SIGKILLs over the whole DAG",
    "chains": "trainings in planned segments",
    "drivers": "two drivers at once in one folder",
    "crash_points": "killed, and refused by the disk, at every system call of every publish path",
    "corruption": "damaged files of every type",
    "stamps": "time stamps, copies, deleted files",
    "identity": "commits and tokenizers of others, ranks that disagree",
    "hostile_text": "hostile documents, conversations and prompts",
}


@dataclass(frozen=True)
class Row:
    """A promise, and how often it was tried and broken. A control breaks the mechanism on purpose: it must fail."""

    part: str
    promise: str
    trials: int
    failures: int
    examples: tuple[str, ...] = ()  # the first failures, in words
    details: dict[str, Any] = field(default_factory=dict)
    is_control: bool = False

    @property
    def holds(self) -> bool:
        return self.failures > 0 if self.is_control else self.trials > 0 and self.failures == 0


def row(part: str, promise: str, failures: Iterable[str | None], *, is_control: bool = False, **details: Any) -> Row:
    """A row of trials, each told as what went wrong, or None."""
    trials = list(failures)
    bad = [what for what in trials if what is not None]
    return Row(part, promise, len(trials), len(bad), tuple(bad[:NUM_EXAMPLES]), details, is_control)
