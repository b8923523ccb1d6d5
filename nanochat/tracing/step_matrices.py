"""What Muon and AdamW do to single matrices of a step: singular values, samples of their numbers, and small pictures.

`MuonMatrices` and `AdamWMatrices` look at each line of the optimizers as it finishes and keep only what is shown: of a matrix
of millions of numbers a picture of at most SIDE x SIDE of them, its singular values at a few places, a sample.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanochat.adamw import AdamW
from nanochat.muon import Muon
from nanochat.tokenizer import Tokenizer
from nanochat.tracing.forward import token_text
from nanochat.tracing.lines import Line
from nanochat.tracing.pictures import as_numpy, encode, number, quantize

SIDE = 64  # rows and columns of a picture, at most
PLACES = 64  # of a curve of singular values
SAMPLE = 480  # numbers that a scatter plot shows
COUNTED = 20_000  # numbers that a histogram counts
BINS = 48
ROWS = 12  # of a table: so many of the text's tokens, and so many of others


# -- Muon --------------------------------------------------------------------------------------------------------------------


class MuonMatrix:
    """One matrix on its way through Muon: each stage's size, singular values and picture."""

    def __init__(self, name: str, stack: Mapping[str, Tensor], before: Tensor):
        self.name, self.place, self.num_alike = name, list(stack).index(name), len(stack)
        self.parameter, self.weight = stack[name], before
        self.stages: list[dict[str, Any]] = []
        self.rate = 0.0
        self.sizes: dict[str, float] = {}
        self.pictures: dict[str, dict] = {"weight": sampled(before)}

    def add(self, stage: str, matrix: Tensor, *, keep: bool = False) -> None:
        values = singular_values(matrix)
        size, largest = float(values.norm()), float(values[0])
        at = places(len(values))
        self.stages.append(
            {
                "stage": stage,
                "norm": number(size),
                "largest": number(largest),
                "median": number(float(values[len(values) // 2])),
                "smallest": number(float(values[-1])),
                # how many directions carry it: 1 if all is along one, the number of rows if all are equally strong
                "directions": number((size / largest) ** 2) if largest else 0.0,
                "singular": [number(v, digits=4) for v in values[at].tolist()],
            }
        )
        if keep:
            self.pictures[stage] = sampled(matrix)
            self.sizes[stage] = size

    def as_json(self) -> dict[str, Any]:
        after = self.parameter.detach()
        moved = after - self.weight
        weight, move = float(self.weight.norm()), float(moved.norm())
        self.pictures["after"] = sampled(after, scale=self.pictures["weight"]["scale"])
        return {
            "name": self.name,
            "shape": list(after.shape),
            "num_alike": self.num_alike,
            "places": [int(i) + 1 for i in places(min(after.shape))],
            "stages": self.stages,
            "rate": number(self.rate),
            "rms": {
                "gradient": number(self.sizes["gradient"] / math.sqrt(after.numel())),
                "update": number(self.sizes["update"] / math.sqrt(after.numel())),
                "weight": number(weight / math.sqrt(after.numel())),
                "moved": number(move / math.sqrt(after.numel())),
            },
            "relative": number(move / weight) if weight else None,
            "pictures": self.pictures,
        }


class MuonMatrices:
    """Watches `Muon.step` and `orthogonalize` for the named matrices, each of another shape."""

    def __init__(self, muon: Muon, names: Sequence[str], before: Mapping[str, Tensor]):
        self.matrices: dict[str, MuonMatrix] = {}
        for stack in muon.stacks:
            if found := next((name for name in names if name in stack), None):
                self.matrices[found] = MuonMatrix(found, stack, before[found])
        self.current: MuonMatrix | None = None
        self.after_gram = False
        self.seen: set[str] = set()
        self.iterations = 0

    def on_line(self, line: Line) -> None:
        if line.function == "Muon.step" and "stack" in line.values:
            stack = line.values["stack"]
            assert isinstance(stack, dict)
            self.current = next((matrix for name, matrix in self.matrices.items() if name in stack), None)
            self.seen, self.after_gram, self.iterations = set(), False, 0
        if self.current is None:
            return
        if line.function == "Muon.step":
            self._on_step(self.current, line)
        elif line.function == "orthogonalize":
            self._on_iteration(self.current, line)

    def _on_step(self, matrix: MuonMatrix, line: Line) -> None:
        for name, value in line.values.items():
            changed = name in self.seen
            self.seen.add(name)
            if name == "gradients" and not changed:
                matrix.add("gradient", one_of(value, matrix.place), keep=True)
            elif name == "gradients":
                matrix.add("look-ahead", one_of(value, matrix.place))
            elif name == "momenta" and changed:
                matrix.add("momentum", one_of(value, matrix.place))
            elif name == "updates":
                matrix.add("update", one_of(value, matrix.place), keep=True)
            elif name == "lr":
                assert isinstance(value, float)
                matrix.rate = value

    def _on_iteration(self, matrix: MuonMatrix, line: Line) -> None:
        """Each new `x` that follows a `gram` is the end of a round."""
        if "gram" in line.values:
            self.after_gram = True
        elif "x" in line.values and self.after_gram:
            self.after_gram = False
            self.iterations += 1
            matrix.add(f"round {self.iterations}", one_of(line.values["x"], matrix.place))

    def as_json(self) -> list[dict]:
        return [matrix.as_json() for matrix in self.matrices.values()]


def singular_values(matrix: Tensor) -> Tensor:
    """All singular values, largest first, from the Gram matrix of the smaller side: seconds less than a full decomposition."""
    m = matrix.double()
    gram = m @ m.mT if m.size(0) <= m.size(1) else m.mT @ m
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().flip(0)


def places(length: int) -> np.ndarray:
    """Indices at which a curve of so many values is shown: all of them, or PLACES spread evenly, both ends included."""
    return np.unique(np.linspace(0, length - 1, min(length, PLACES)).round().astype(int))


# -- AdamW -------------------------------------------------------------------------------------------------------------------


class AdamWMatrix:
    """One table in AdamW's hands: its numbers' gradients and moves, and the whole arithmetic of one of them."""

    def __init__(self, name: str, parameter: Tensor, before: Tensor, rows: "Rows"):
        self.name, self.parameter, self.before, self.rows = name, parameter, before, rows
        self.gradient = torch.zeros_like(parameter)
        self.mean = self.square = torch.empty(0)
        self.row, self.column = 0, 0
        self.one: dict[str, Any] = {}

    def begin(self, mean: Tensor, square: Tensor, gradient: Tensor) -> None:
        """Before the means change."""
        self.gradient, self.mean, self.square = gradient, mean, square
        # the number in the middle of its row: neither the largest nor one that hardly matters
        sizes = gradient[self.row].abs()
        self.column = int(sizes.sort(stable=True).indices[len(sizes) // 2])
        self.one = {"mean_before": self.at(mean), "square_before": self.at(square), "gradient": self.at(gradient)}

    def finish(self, spread: Tensor, scalars: Mapping[str, float]) -> None:
        """After the means changed."""
        self.one |= {"mean": self.at(self.mean), "square": self.at(self.square), "spread": self.at(spread)}
        self.one |= {key: number(value) for key, value in scalars.items()}

    def at(self, matrix: Tensor) -> float | None:
        return number(float(matrix[self.row, self.column]))

    def as_json(self) -> dict[str, Any]:
        after = self.parameter.detach()
        moved = after - self.before
        self.one |= {"weight_before": self.at(self.before), "weight": self.at(after), "moved": self.at(moved)}
        gradient_sizes, move_sizes = self.gradient.norm(dim=1), moved.norm(dim=1)  # (rows,) each
        has_gradient, has_moved = gradient_sizes > 0, move_sizes > 0
        shown = self.rows_to_show(gradient_sizes, move_sizes)
        weight, numbers = float(self.before.norm()), math.sqrt(moved.numel())
        return {
            "name": self.name,
            "shape": list(moved.shape),
            "one": {"row": self.rows(self.row), "column": self.column, **self.one},
            "rows": [
                self.rows(i) | {"gradient": number(float(gradient_sizes[i])), "moved": number(float(move_sizes[i]))}
                for i in shown
            ],
            "num_rows": {
                "with_gradient": int(has_gradient.sum()),
                "moved": int(has_moved.sum()),
                "moved_without_gradient": int((has_moved & ~has_gradient).sum()),
            },
            "pictures": {"gradient": sampled(self.gradient[shown]), "moved": sampled(moved[shown])},
            "rms": {
                "gradient": number(float(self.gradient.norm()) / numbers),
                "weight": number(weight / numbers),
                "moved": number(float(moved.norm()) / numbers),
            },
            "relative": number(float(moved.norm()) / weight) if weight else None,
            **self.sample(moved, has_gradient.nonzero()[:, 0]),
        }

    def rows_to_show(self, gradients: Tensor, moves: Tensor) -> list[int]:
        """Rows of the text's tokens, those with the largest gradients; some that moved without one; others, large to small."""
        order = gradients.argsort(descending=True, stable=True).tolist()
        in_text = [i for i in order if i in self.rows.counts][:ROWS]
        remembered = ((gradients == 0) & (moves > 0)).nonzero()[:, 0].tolist()[: ROWS // 3]
        others = [i for i in order if i not in self.rows.counts and i not in remembered]
        return in_text + remembered + others[:: max(1, math.ceil(len(others) / (ROWS - len(remembered))))]

    def sample(self, moved: Tensor, rows: Tensor) -> dict[str, Any]:
        """Numbers drawn (the same on each run) from the rows that have a gradient; without those that stood still."""
        generator = torch.Generator().manual_seed(0)
        chosen = rows[torch.randint(max(1, len(rows)), (COUNTED if len(rows) else 0,), generator=generator)]
        columns = torch.randint(moved.size(1), chosen.shape, generator=generator)
        gradients, moves = self.gradient[chosen, columns].abs(), moved[chosen, columns].abs()
        did_move = (gradients > 0) & (moves > 0)
        gradients, moves = gradients[did_move], moves[did_move]
        if not len(moves):
            return {"sample": None, "spread": None, "histogram": None}
        return {
            "sample": {
                "gradient": [number(v, digits=3) for v in gradients[:SAMPLE].tolist()],
                "moved": [number(v, digits=3) for v in moves[:SAMPLE].tolist()],
            },
            "spread": {"gradient": spread_of(gradients), "moved": spread_of(moves)},
            "histogram": decades(gradients, moves),
        }


class AdamWMatrices:
    """Watches `AdamW.step` for some tables. `before` and `rows` are by name: the weights, and whose rows a table has."""

    def __init__(self, parameters: Mapping[str, Tensor], before: Mapping[str, Tensor], rows: Mapping[str, "Rows"]):
        self.matrices = {name: AdamWMatrix(name, p, before[name], rows[name]) for name, p in parameters.items()}
        self.scalars: dict[str, float] = {}
        self.current: AdamWMatrix | None = None

    def follow(self, said: int, read: int) -> None:
        """Of which row one number is followed: of the head that of the token said, of the embedding that of the token read."""
        for name, matrix in self.matrices.items():
            matrix.row = said if name == "lm_head.weight" else read

    def on_line(self, line: Line) -> None:
        if line.function != "AdamW.step":
            return
        found = line.values
        self.scalars |= {name: value for name, value in found.items() if isinstance(value, float)}
        if "name" in found:
            self.current = self.matrices.get(str(found["name"]))
        if self.current is None:
            return
        if {"mean", "square", "gradient"} <= found.keys():
            self.current.begin(*(as_tensor(found[name]) for name in ("mean", "square", "gradient")))
        elif "spread" in found:
            assert isinstance(line.frame_self, AdamW)
            more = {"eps": line.frame_self.eps, "weight_decay": line.frame_self.weight_decay}
            self.current.finish(as_tensor(found["spread"]), self.scalars | more)

    def as_json(self) -> list[dict]:
        return [matrix.as_json() for matrix in self.matrices.values()]


class Rows:
    """Whose rows a table has: its tokens, and how often each occurs in the text of the step."""

    def __init__(self, tokenizer: Tokenizer, counts: Mapping[int, int]):
        self.tokenizer, self.counts = tokenizer, counts

    def __call__(self, token: int) -> dict[str, Any]:
        return {"text": token_text(self.tokenizer, token), "id": token, "count": self.counts.get(token, 0)}


def spread_of(values: Tensor) -> dict[str, float | None]:
    """The middle of positive numbers, and between which two 98 of 100 lie."""
    low, middle, high = torch.quantile(values, torch.tensor([0.01, 0.5, 0.99])).tolist()
    return {"low": number(low), "middle": number(middle), "high": number(high), "decades": number(math.log10(high / low))}


def decades(gradients: Tensor, moves: Tensor) -> dict[str, Any]:
    """Histograms of how far each number is from the middle one, in powers of ten: shares of the numbers in each bin."""
    logs = {"gradient": (gradients / gradients.median()).log10(), "moved": (moves / moves.median()).log10()}
    low, high = logs["gradient"].quantile(0.001).item(), logs["gradient"].quantile(0.999).item()
    low, high = math.floor(min(low, -1.0)), math.ceil(max(high, 1.0))
    edges = np.linspace(low, high, BINS + 1)
    shares = {key: np.histogram(values.clamp(low, high).numpy(), edges)[0] / len(values) for key, values in logs.items()}
    return {"middles": [number(v) for v in (edges[1:] + edges[:-1]) / 2]} | {
        key: [number(v) for v in share] for key, share in shares.items()
    }


# -- small parts -------------------------------------------------------------------------------------------------------------


def sampled(matrix: Tensor, *, side: int = SIDE, scale: float | None = None) -> dict[str, Any]:
    """A matrix as a picture like those of `nanochat.tracing.pictures`, of every n-th row and column.

    Not of the numbers furthest from zero: in a matrix of millions every cell would have one, and all would look alike. `scale`,
    if it is not given, is the size that all but one in 200 of the numbers stay below; what is larger is shown as it.
    """
    row_step, column_step = (max(1, math.ceil(length / side)) for length in matrix.shape)
    cells = as_numpy(matrix[::row_step, ::column_step])
    if scale is None:
        sizes = np.abs(cells[np.isfinite(cells)])
        scale = number(float(np.quantile(sizes, 0.995)) or float(sizes.max())) if sizes.size else None
    scale = scale or 1.0
    return {
        "rows": cells.shape[0],
        "columns": cells.shape[1],
        "row_step": row_step,
        "column_step": column_step,
        "planes": 1,
        "heads": 1,
        "scale": scale,
        "signed": True,
        "data": encode(quantize(np.clip(cells, -scale, scale), scale, True)),
    }


def one_of(stack: object, place: int) -> Tensor:
    return as_tensor(stack)[place].float()


def as_tensor(value: object) -> Tensor:
    assert isinstance(value, Tensor)
    return value.detach()
