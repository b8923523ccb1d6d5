"""What is seen of a training step while its lines run: losses, gradients, how far each component moved.

T = tokens of the text that are given, V = vocabulary.
"""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat import train
from nanochat.gpt import GPT
from nanochat.optimizer import Optimizer
from nanochat.tokenizer import Tokenizer
from nanochat.tracing.forward import token_text
from nanochat.tracing.lines import Line, LineRecorder
from nanochat.tracing.pictures import number
from nanochat.tracing.step_code import STEP_CHAPTERS, Listing
from nanochat.tracing.step_matrices import AdamWMatrices, MuonMatrices, Rows

NUM_ALTERNATIVES = 3  # the likeliest tokens, beside the one that came


class Watcher:
    """Looks at each line of a step as it finishes, and keeps the little of it that is shown. x, y (1, T): the step's batch."""

    def __init__(self, model: GPT, optimizer: Optimizer, tokenizer: Tokenizer, x: Tensor, y: Tensor):
        self.model, self.optimizer, self.tokenizer = model, optimizer, tokenizer
        self.x, self.y = x, y
        self.logits = torch.empty(0)
        self.gradients: dict[str, float] = {}
        self.clipped: dict[str, float] = {}
        self.before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        matrices, tables = matrices_to_show(model), tables_to_show(model)
        self.muon = MuonMatrices(optimizer.muon, matrices, self.before)
        parameters = {name: model.get_parameter(name) for name in tables}
        self.adamw = AdamWMatrices(parameters, self.before, {name: self.rows_of(name) for name in tables})
        self.listing = Listing(*STEP_CHAPTERS, matrix=matrices[-1], table=tables[-1])

    def on_line(self, line: Line) -> None:
        with torch.no_grad():
            if line.function == "sum_of_losses" and "logits" in line.values:
                self.logits = logits_of(line)
            elif line.function == "clip_gradients" and "norm" in line.values:
                self.gradients = self.norms()
            elif line.function == "clip_gradients" and "return" in line.values:
                self.clipped = self.norms()
                self.adamw.follow(*self.worst_prediction())
            self.muon.on_line(line)
            self.adamw.on_line(line)
            self.listing.on_line(line)

    def norms(self) -> dict[str, float]:
        """Name of each parameter -> the length of its gradient as it is now."""
        return {name: norm(p.grad) for name, p in self.model.named_parameters() if p.grad is not None}

    @property
    def clipped_norm(self) -> float:
        return math.hypot(*self.clipped.values())

    def worst_prediction(self) -> tuple[int, int]:
        """The token of the text that was least expected, and the token before it."""
        place = int(losses_of(self.logits, self.y).argmax())
        return int(self.y[0, place]), int(self.x[0, place])

    def rows_of(self, table: str) -> Rows:
        """Of the embedding the rows are those of the tokens that are read, of the head of those that are to be said."""
        says = table == "lm_head.weight"
        return Rows(self.tokenizer, Counter((self.y if says else self.x).flatten().tolist()))

    # ---- what was seen

    def tokens(self, after: Tensor) -> list[dict[str, Any]]:
        """The text, T+1 tokens: the first is given, each other one was to be predicted. `after`: losses (T,) after the step."""
        losses = losses_of(self.logits, self.y)
        probabilities = self.logits[0].float().softmax(dim=1)  # (T, V)
        best = probabilities.topk(min(NUM_ALTERNATIVES, probabilities.size(1)), dim=1)
        ids = self.x[0].tolist()
        tokens: list[dict[str, Any]] = [{"text": token_text(self.tokenizer, ids[0]), "id": ids[0]}]
        for place, target in enumerate(self.y[0].tolist()):
            # what is not supervised is read all the same; behind the last token given, it is not known
            token = target if target >= 0 else ids[place + 1] if place + 1 < len(ids) else None
            if token is None:
                continue
            entry: dict[str, Any] = {"text": token_text(self.tokenizer, token), "id": token}
            if target >= 0:
                p = probabilities[place, target]
                entry |= {
                    "loss": number(float(losses[place])),
                    "after": number(float(after[place])),
                    "p": number(float(p)),
                    "rank": 1 + int((probabilities[place] > p).sum()),
                    "preferred": [
                        [token_text(self.tokenizer, other), number(share)]
                        for other, share in zip(best.indices[place].tolist(), best.values[place].tolist(), strict=True)
                    ],
                }
            tokens.append(entry)
        return tokens

    def components(self, lr_scale: float) -> list[dict[str, Any]]:
        """Each component that has parameters: its gradient, its weights, and how far the step moved them."""
        squares: dict[str, Tensor] = {}
        sizes: Counter[str] = Counter()
        moved_by: dict[str, tuple[str, float]] = {}
        for name, parameter in self.model.named_parameters():
            component = name.rpartition(".")[0] or name
            before = self.before[name]
            lengths = [self.gradients[name], self.clipped[name], norm(before), norm(parameter.detach() - before)]
            squares[component] = squares.get(component, 0) + torch.tensor(lengths, dtype=torch.float64) ** 2
            sizes[component] += parameter.numel()
            moved_by.setdefault(component, self.mover(name, lr_scale))
        return [describe_component(c, squares[c].sqrt().tolist(), sizes[c], *moved_by[c]) for c in squares]

    def mover(self, name: str, lr_scale: float) -> tuple[str, float]:
        """Which optimizer moves a parameter, and at which rate in this step."""
        muon = self.optimizer.muon
        if name in muon.momenta:
            num_rows, num_columns = muon.momenta[name].shape
            return "Muon", muon.lr * lr_scale * max(1.0, num_rows / num_columns) ** 0.5
        return "AdamW", next(group.lr * lr_scale for group in self.optimizer.adamws.values() if name in group.parameters)


def describe_component(name: str, lengths: list[float], size: int, moved_by: str, rate: float) -> dict[str, Any]:
    gradient, clipped, weight, moved = lengths
    parts = name.split(".")
    in_block = parts[0] == "blocks"
    return {
        "name": name,
        "kind": ".".join(parts[2:]) if in_block else name,
        "block": int(parts[1]) if in_block else None,
        "num_parameters": size,
        "optimizer": moved_by,
        "rate": number(rate),
        "gradient": number(gradient),
        "clipped": number(clipped),
        "weight": number(weight),
        "moved": number(moved),
        "relative": number(moved / weight) if weight else None,
    }


def matrices_to_show(model: GPT) -> list[str]:
    """One matrix of each shape, from the block in the middle; the last is the one whose lines are listed."""
    block = f"blocks.{model.config.n_layer // 2}"
    return [f"{block}.attn.c_q.weight", f"{block}.mlp.c_proj.weight", f"{block}.mlp.c_fc.weight"]


def tables_to_show(model: GPT) -> list[str]:
    """The embedding and the head, which are one table if the head is tied."""
    return [name for name, _ in model.named_parameters() if name in ("wte.weight", "lm_head.weight")]


# -- losses ------------------------------------------------------------------------------------------------------------------


def logits_of(line: Line) -> Tensor:
    logits = line.values["logits"]
    assert isinstance(logits, Tensor)
    return logits.detach()  # (1, T, V)


def losses_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Logits (1, T, V), targets (1, T) -> the loss of each target in nats, (T,); 0 where it does not count."""
    return F.cross_entropy(logits[0].float(), targets[0], ignore_index=-1, reduction="none")


@torch.no_grad()
def losses_now(model: GPT, x: Tensor, y: Tensor) -> Tensor:
    """The loss of each target (T,), of which `train.sum_of_losses` makes its sum."""
    found: list[Tensor] = []

    def on_line(line: Line) -> None:
        if line.function == "sum_of_losses" and "logits" in line.values:
            found.append(logits_of(line))

    with LineRecorder([Path(train.__file__)], on_line):
        train.sum_of_losses(model, x, y)
    return losses_of(found[0], y)


def norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))
