"""AdamW: every number moves at its own pace (Kingma and Ba, arXiv 1412.6980; decoupled decay, arXiv 1711.05101)."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from nanochat.distributed import Ranks

PIECE = 2**15  # numbers: with their moments and gradient 512 KiB, which is half of a core's own cache
ROWS = 64  # a piece has a multiple of so many rows, so that vector instructions begin and end where they would in the whole
SMALL = 1024  # numbers in a tensor below which every rank keeps all of its state: to share it out would cost more than it saves


class AdamW:
    """The gradient's running mean, divided by the root of its running square: a step of about `lr` for each number.

    Equals `torch.optim.AdamW` (a test compares them). For tables, the head and vectors; matrices go to Muon.

    Ranks share out the rows of a table (`Ranks.share`). A rank keeps the means and squares of its own rows and moves these;
    then everybody gets them.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        *,
        lr: float,
        betas: tuple[float, float] = (0.8, 0.95),
        eps: float = 1e-10,
        weight_decay: float = 0.0,
        ranks: Ranks = Ranks(),
    ):
        self.parameters, self.ranks, self.piece = dict(parameters), ranks, PIECE
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.shares: dict[str, Tensor] = {}  # among several ranks: of the summed gradients, those of this rank's rows
        self.own = {name: parameter.detach()[self.rows(name)] for name, parameter in parameters.items()}
        self.means = {name: torch.zeros_like(own) for name, own in self.own.items()}
        self.squares = {name: torch.zeros_like(own) for name, own in self.own.items()}

    @torch.no_grad()
    def step(self, *, step: int, lr_scale: float) -> None:
        """Move every parameter. `step` counts from 0; the first steps are corrected for the means having started at zero."""
        beta1, beta2 = self.betas
        lr = self.lr * lr_scale
        mean_bias, square_bias = 1 - beta1 ** (step + 1), 1 - beta2 ** (step + 1)
        for name in self.own:
            for parameter, mean, square, gradient in self.pieces(name):
                mean.lerp_(gradient, 1 - beta1)
                square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                spread = (square / square_bias).sqrt_().add_(self.eps)
                if self.weight_decay:
                    parameter.mul_(1 - lr * self.weight_decay)
                parameter.addcdiv_(mean, spread, value=-lr / mean_bias)
            self._give_out(name)
        self.shares = {}

    def pieces(self, name: str) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """A parameter, its mean, its square and its gradient: on GPUs whole; on CPUs some rows after the others, so few that
        they stay in the cache through all the arithmetic. The same bits in 0.6 of the time."""
        own = self.own[name]
        rows = max(1, len(own))
        if own.device.type == "cpu" and own.ndim > 1:
            rows = ROWS * max(1, self.piece // (ROWS * own.size(1)))
        whole = (own, self.means[name], self.squares[name], self.gradient(name))
        yield from zip(*(tensor.split(rows) for tensor in whole), strict=True)

    def gradient(self, name: str) -> Tensor:
        """Of this rank's rows."""
        return self.shares[name] if name in self.shares else gradient_of(self.parameters[name])

    # -- among several ranks -----------------------------------------------------------------------------------------------

    def is_shared(self, name: str) -> bool:
        return self.ranks.world_size > 1 and self.parameters[name].numel() >= SMALL

    def rows(self, name: str) -> slice:
        """This rank's rows of a parameter."""
        return self.ranks.share(len(self.parameters[name])) if self.is_shared(name) else slice(None)

    @torch.no_grad()
    def sum_gradients(self, dtype: torch.dtype = torch.float32) -> None:
        """Sum the gradients over all ranks, which exchange those of tables in `dtype`. A rank keeps those of its own rows."""
        self.ranks.sum_([gradient_of(parameter) for name, parameter in self.parameters.items() if not self.is_shared(name)])
        for name, parameter in self.parameters.items():
            if self.is_shared(name):
                gradient = gradient_of(parameter)
                self.shares[name] = self.ranks.sum_shares(gradient.to(dtype)).to(gradient.dtype)
                parameter.grad = None

    def shared_gradients(self) -> list[Tensor]:
        """Those that no other rank has, after `sum_gradients`."""
        return list(self.shares.values())

    def _give_out(self, name: str) -> None:
        """Everybody gets the new rows of a table."""
        if self.is_shared(name):
            parameter = self.parameters[name]
            parameter.copy_(self.ranks.join_shares(self.own[name], len(parameter)))

    # -- state -------------------------------------------------------------------------------------------------------------

    def own_state(self) -> dict[str, Tensor]:
        """This rank's."""
        means = {f"adamw.mean.{name}": mean for name, mean in self.means.items()}
        return means | {f"adamw.square.{name}": square for name, square in self.squares.items()}

    def first_rows(self) -> dict[str, int]:
        """Where this rank's rows begin in the whole, for each name of `own_state`."""
        rows = {name: self.rows(name).start or 0 for name in self.parameters}
        return {f"adamw.{moment}.{name}": first for moment in ("mean", "square") for name, first in rows.items()}

    def whole_state(self) -> Iterator[tuple[str, Tensor]]:
        """Everybody's, one tensor at a time; all ranks together."""
        for moment, tensors in (("mean", self.means), ("square", self.squares)):
            for name, own in tensors.items():
                whole = self.ranks.join_shares(own, len(self.parameters[name])) if self.is_shared(name) else own
                yield f"adamw.{moment}.{name}", whole

    def state_shapes(self) -> dict[str, torch.Size]:
        """Of the whole state."""
        return {
            f"adamw.{moment}.{name}": parameter.shape
            for moment in ("mean", "square")
            for name, parameter in self.parameters.items()
        }

    @torch.no_grad()
    def load_state(self, whole: Mapping[str, Tensor]) -> None:
        """Take this rank's share."""
        for name in self.parameters:
            self.means[name].copy_(whole[f"adamw.mean.{name}"][self.rows(name)])
            self.squares[name].copy_(whole[f"adamw.square.{name}"][self.rows(name)])


def gradient_of(parameter: Tensor) -> Tensor:
    """A parameter's gradient, which every parameter of our models has after a backward pass."""
    assert parameter.grad is not None, "the optimizer was asked for a step before a backward pass"
    return parameter.grad
