"""AdamW: every number moves at its own pace (Kingma and Ba, arXiv 1412.6980; decoupled decay, arXiv 1711.05101)."""

from collections.abc import Mapping

import torch
from torch import Tensor


class AdamW:
    """The gradient's running mean, divided by the root of its running square: a step of about `lr` for each number.

    Equals `torch.optim.AdamW` (a test compares them). For tables, the head and vectors; matrices go to Muon.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        *,
        lr: float,
        betas: tuple[float, float] = (0.8, 0.95),
        eps: float = 1e-10,
        weight_decay: float = 0.0,
    ):
        self.parameters = dict(parameters)
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.means = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self.squares = {name: torch.zeros_like(p) for name, p in parameters.items()}

    @torch.no_grad()
    def step(self, *, step: int, lr_scale: float) -> None:
        """Move every parameter. `step` counts from 0; the first steps are corrected for the means having started at zero."""
        beta1, beta2 = self.betas
        lr = self.lr * lr_scale
        mean_bias, square_bias = 1 - beta1 ** (step + 1), 1 - beta2 ** (step + 1)
        for name, parameter in self.parameters.items():
            mean, square, gradient = self.means[name], self.squares[name], gradient_of(parameter)
            mean.lerp_(gradient, 1 - beta1)
            square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            spread = (square / square_bias).sqrt_().add_(self.eps)
            parameter.mul_(1 - lr * self.weight_decay)
            parameter.addcdiv_(mean, spread, value=-lr / mean_bias)

    def state(self) -> dict[str, Tensor]:
        means = {f"adamw.mean.{name}": mean for name, mean in self.means.items()}
        return means | {f"adamw.square.{name}": square for name, square in self.squares.items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for name in self.parameters:
            self.means[name].copy_(state[f"adamw.mean.{name}"])
            self.squares[name].copy_(state[f"adamw.square.{name}"])


def gradient_of(parameter: Tensor) -> Tensor:
    """A parameter's gradient, which every parameter of our models has after a backward pass."""
    assert parameter.grad is not None, "the optimizer was asked for a step before a backward pass"
    return parameter.grad
