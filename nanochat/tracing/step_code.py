"""The functions of a training step as they are written, with what each of their lines made.

A `Listing` is told every line that finishes, keeps the first time that a line of a shown function ran, and describes the values
it made. A loop over many matrices is shown in the round of one of them; of the Newton-Schulz iteration every round is kept.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanochat import adamw, gpt, loss_eval, muon, optimizer, schedule, train
from nanochat.adamw import AdamW
from nanochat.text import visible
from nanochat.tracing.lines import Function, Line, read_source
from nanochat.tracing.pictures import number
from nanochat.tracing.step_matrices import sampled

FILES = [Path(str(module.__file__)) for module in (train, schedule, gpt, optimizer, muon, adamw, loss_eval)]
# chapter -> its functions, in the order in which the page shows them
CHAPTERS = {
    "step": ("update",),
    "loss": ("sum_of_losses", "GPT.forward", "GPT.logits"),
    "clipping": ("clip_gradients",),
    "optimizer": ("Optimizer.step",),
    "muon": ("Muon.step", "orthogonalize"),
    "adamw": ("AdamW.step",),
    "schedule": ("Schedule.scale", "learning_rate_scale", "muon_momentum"),
    "evaluation": ("evaluate_bpb", "batch_sums"),
}
CHAPTER_OF = {function: chapter for chapter, functions in CHAPTERS.items() for function in functions}
STEP_CHAPTERS = tuple(chapter for chapter in CHAPTERS if chapter != "evaluation")
EVERY_ROUND = ("orthogonalize",)
SIDE = 40
FEW = 6  # numbers that are shown as they are
LONGEST_TEXT = 60


class Listing:
    """Collects what the lines of the shown functions made, in the given chapters.

    `matrix` is the one with which Muon is followed, `table` the one with which AdamW is.
    """

    def __init__(self, *chapters: str, matrix: str = "", table: str = ""):
        self.chapters, self.matrix, self.table = chapters, matrix, table
        self.place = 0  # of the matrix in its stack
        self.in_stack = self.in_round = True
        self.group: AdamW | None = None
        self.functions: dict[str, tuple[Path, Function]] = {}
        self.events: dict[str, list[dict[str, Any]]] = {}
        self.told: set[tuple[str, int]] = set()

    def on_line(self, line: Line) -> None:
        chapter = CHAPTER_OF.get(line.function)
        if chapter not in self.chapters or not self.is_followed(line, chapter):
            return
        key = (line.function, line.line)
        repeats = line.function in EVERY_ROUND and bool(line.values.keys() & {"gram", "x"})
        if key in self.told and not repeats:
            return
        self.told.add(key)
        if line.function not in self.functions:
            self.functions[line.function] = (line.file, read_source(line.file).functions[line.function])
        place = self.place if chapter == "muon" else None
        event: dict[str, Any] = {"line": line.line, "end_line": line.end_line, "letters": line.letters}
        event["values"] = [describe(name, value, place) for name, value in line.values.items() if is_telling(name, value)]
        if line.taken is not None:
            event["taken"] = line.taken
        self.events.setdefault(line.function, []).append(event)

    def is_followed(self, line: Line, chapter: str) -> bool:
        """Whether a line of an optimizer is about the followed matrix: the head of its loop says which one comes."""
        if chapter == "muon":
            if isinstance(stack := line.values.get("stack"), dict):
                self.in_stack, self.in_round = self.matrix in stack, True
                self.place = list(stack).index(self.matrix) if self.in_stack else 0
            elif "name" in line.values:
                self.in_round = line.values["name"] == self.matrix
            return self.in_stack and self.in_round
        if chapter == "adamw":
            assert isinstance(line.frame_self, AdamW)
            if line.frame_self is not self.group:
                self.group, self.in_round = line.frame_self, True
            if "name" in line.values:
                self.in_round = line.values["name"] == self.table
            return self.in_round and self.table in self.group.parameters
        return True

    def as_json(self) -> list[dict]:
        """The functions in the order of CHAPTERS, those that ran."""
        return [self._describe(function) for function in CHAPTER_OF if function in self.functions]

    def _describe(self, name: str) -> dict[str, Any]:
        file, function = self.functions[name]
        lines = read_source(file).lines[function.line - 1 : function.end_line]
        return {
            "chapter": CHAPTER_OF[name],
            "function": name,
            "file": "/".join(file.parts[-2:]),
            "line": function.line,
            "followed": {"muon": self.matrix, "adamw": self.table}.get(CHAPTER_OF[name], ""),
            "code": list(lines),
            "events": self.events[name],
        }


# -- values ------------------------------------------------------------------------------------------------------------------


def is_telling(name: str, value: object) -> bool:
    """Whether a value can be put in words: objects (a model, a device) cannot."""
    return name != "_" and (value is None or isinstance(value, Tensor | np.ndarray | int | float | str | tuple | list | dict))


def describe(name: str, value: object, place: int | None = None) -> dict[str, Any]:
    """A value for people: a number, a text, a tensor's shape, numbers and picture; of a stack of matrices, matrix `place`."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, Tensor):
        return {"name": name, **describe_tensor(value.detach(), place)}
    if isinstance(value, bool) or value is None:
        return {"name": name, "text": str(value)}
    if isinstance(value, int | float):
        return {"name": name, "number": value if isinstance(value, int) else number(value)}
    if isinstance(value, str):
        return {"name": name, "text": repr(visible(value[:LONGEST_TEXT]))}
    if isinstance(value, tuple | list) and value and len(value) <= 4 and all(isinstance(v, int | float) for v in value):
        return {"name": name, "text": "(" + ", ".join(f"{v:.6g}" for v in value) + ")"}
    if isinstance(value, dict) and value and len(value) <= 4 and all(isinstance(v, int | float) for v in value.values()):
        return {"name": name, "text": ", ".join(f"{visible(str(key))} {v:.6g}" for key, v in value.items())}
    assert isinstance(value, tuple | list | dict)
    return {"name": name, "text": f"{type(value).__name__} of {len(value):,}"}


def describe_tensor(tensor: Tensor, place: int | None) -> dict[str, Any]:
    described: dict[str, Any] = {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
    if tensor.numel() == 0:
        return described
    if tensor.dim() == 0:
        return described | {"number": number(float(tensor))}
    if place is not None and tensor.dim() == 3:
        described["place"] = place
        tensor = tensor[place]
    if tensor.numel() <= FEW:
        described["numbers"] = [number(float(v)) for v in tensor.flatten()]
    numbers = tensor.float()
    low, high = torch.aminmax(numbers)
    described |= {
        "mean": number(float(numbers.mean())),
        "std": number(float(numbers.std(correction=0))),
        "min": number(float(low)),
        "max": number(float(high)),
    }
    matrix = numbers.reshape(-1, numbers.size(-1))
    if tensor.is_floating_point() and min(matrix.shape) > 1:
        described["picture"] = sampled(matrix, side=SIDE)
    return described
