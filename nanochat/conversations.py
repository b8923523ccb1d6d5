"""Mix the conversations of several tasks into one shuffled sequence, each as often as its part says.

A mixture holds two small integers a conversation (task, number) and asks the task when it is asked: the 848,000
conversations of the reference run are never in memory together. The order is a pure function of the seed and the parts.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nanochat.errors import UserError
from nanochat.tasks import Task, build

PART_KEYS = {"task", "split", "rows", "epochs", "weight", "file", "source"}


class Mixture(Sequence):
    """Conversations of several tasks in shuffled order.

    `statistics`: a dict a part, for the report, with what was replaced or passed over in its file, if anything was.
    """

    def __init__(self, tasks: Sequence[Task], items: Sequence[np.ndarray], statistics: list[dict[str, Any]], seed: int):
        self.tasks = tasks
        self.statistics = statistics
        task_of = np.repeat(np.arange(len(items), dtype=np.int16), [len(numbers) for numbers in items])
        order = np.random.default_rng(seed).permutation(len(task_of))
        self.task_of = task_of[order]
        self.item_of = np.concatenate([np.empty(0, np.int32), *items])[order]

    def __len__(self) -> int:
        return len(self.item_of)

    def __getitem__(self, index):
        return self.tasks[int(self.task_of[index])][int(self.item_of[index])]


def build_mixture(
    parts: Sequence[Mapping[str, Any]],
    *,
    files: Mapping[str, Path],
    identity: Mapping[str, Any] | None = None,
    seed: int,
    mixture_rows: int | None = None,
) -> Mixture:
    """The mixture of these parts.

    A part: {"task", "split", and, each optional, "rows", "epochs" or "weight", "file" or "source"}. "epochs" 2.5 is every
    conversation twice and a seeded sample of half of them a third time. With `mixture_rows`, every part has a "weight" and
    they share that number out; none has "epochs".
    """
    for part in parts:
        check_part(part, is_weighted=mixture_rows is not None)
    tasks = build_tasks(parts, files=files, identity=identity)
    available = [len(task) for task in tasks]
    if mixture_rows is None:
        counts = [round(length * epochs_of(part)) for part, length in zip(parts, available, strict=True)]
    else:
        counts = share_out(mixture_rows, [part["weight"] for part in parts])
    # one generator a part: what one part samples does not depend on the others
    items = [
        choose(length, count, np.random.default_rng([seed, number]))
        for number, (length, count) in enumerate(zip(available, counts, strict=True))
    ]
    statistics = [
        {"task": task.name, "split": task.split, **named_source(part), "available": length, "rows": count,
         "epochs": round(count / length, 4), **task.oddities}
        for part, task, length, count in zip(parts, tasks, available, counts, strict=True)
    ]  # fmt: skip
    return Mixture(tasks, items, statistics, seed)


def check_part(part: Mapping[str, Any], *, is_weighted: bool) -> None:
    unknown = sorted(set(part) - PART_KEYS)
    if unknown or "task" not in part:
        raise UserError(
            f"A part of a mixture has a task and may have {', '.join(sorted(PART_KEYS - {'task'}))}; found {dict(part)}"
        )
    has_epochs, has_weight = part.get("epochs") is not None, part.get("weight") is not None
    if is_weighted and (has_epochs or not has_weight):
        raise UserError(f"Part {part['task']}: with mixture_rows every part needs a weight, and none has epochs")
    if has_weight and not is_weighted:
        raise UserError(f"Part {part['task']}: a weight needs mixture_rows, the number of conversations to share out")
    if (part["weight"] if is_weighted else epochs_of(part)) <= 0:
        raise UserError(f"Part {part['task']}: {'weight' if is_weighted else 'epochs'} must be above 0")


def epochs_of(part: Mapping[str, Any]) -> float:
    return 1.0 if part.get("epochs") is None else part["epochs"]


def build_tasks(
    parts: Sequence[Mapping[str, Any]], *, files: Mapping[str, Path], identity: Mapping[str, Any] | None
) -> list[Task]:
    built: dict[tuple, Task] = {}  # a file that two parts name is read once
    tasks = []
    for part in parts:
        options = {key: part[key] for key in ("file", "source") if part.get(key) is not None}
        if part["task"] == "identity":
            options["identity"] = identity
        key = (part["task"], part.get("split", "train"), part.get("rows"), part.get("file"), part.get("source"))
        if key not in built:
            built[key] = build(key[0], split=key[1], rows=key[2], files=files, **options)
        tasks.append(built[key])
    return tasks


def named_source(part: Mapping[str, Any]) -> dict[str, str]:
    source = part.get("file") or part.get("source")
    return {"source": str(source)} if source else {}


def share_out(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers that add up to `total`, as near to the weights as can be.  10, [1, 1, 1] -> [4, 3, 3]"""
    shares = [total * weight / sum(weights) for weight in weights]
    counts = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: counts[i] - shares[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def choose(available: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` numbers below `available`: all of them as often as that goes, then a sample of them without repetition."""
    whole, rest = divmod(count, available)
    everything = np.arange(available, dtype=np.int32)
    return np.concatenate([np.tile(everything, whole), rng.permutation(everything)[:rest]])
