"""Muon: momentum whose matrix is made orthogonal before it is applied (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

A gradient matrix is dominated by a few directions. Setting all its singular values to about 1 lets every direction learn at the
same pace. That is done without a decomposition, by five rounds of a polynomial in the matrix (a Newton-Schulz iteration).
For the matrices inside the blocks only; tables, heads and vectors go to AdamW.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from nanochat.adamw import gradient_of
from nanochat.distributed import Ranks, choose_dtype

# x -> a x + b x^3 + c x^5, found to lift small singular values fastest; the large ones end anywhere in about [0.7, 1.2]
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


class Muon:
    """One optimizer for many matrices; those of one shape are stacked and updated together.

    Every rank keeps all momenta, and orthogonalises only its share of each stack: that is where the arithmetic is.
    """

    def __init__(self, parameters: Mapping[str, Tensor], *, lr: float, ranks: Ranks = Ranks()):
        self.lr = lr
        self.ranks = ranks
        self.stacks = list(group_by_shape(parameters))
        self.momenta = {name: torch.zeros_like(p) for name, p in parameters.items()}

    @torch.no_grad()
    def step(self, *, lr_scale: float, momentum: float) -> None:
        """Move every parameter that has a gradient. `momentum` changes with the step, so it is the caller's."""
        for stack in self.stacks:
            gradients = torch.stack([gradient_of(parameter) for parameter in stack.values()])  # (K, rows, columns)
            momenta = torch.stack([self.momenta[name] for name in stack])
            momenta.lerp_(gradients, 1 - momentum)
            gradients.lerp_(momenta, momentum)  # Nesterov: look ahead along the momentum
            updates = self.orthogonalize_together(gradients)
            # a tall matrix with orthogonal columns moves its outputs less than a square one does
            lr = self.lr * lr_scale * max(1.0, gradients.size(1) / gradients.size(2)) ** 0.5
            for (name, parameter), update, new in zip(stack.items(), updates, momenta, strict=True):
                self.momenta[name].copy_(new)
                parameter.sub_(update, alpha=lr)

    def orthogonalize_together(self, stack: Tensor) -> Tensor:
        mine = slice(self.ranks.rank, None, self.ranks.world_size)
        updates = torch.zeros_like(stack)
        if stack.size(0) > self.ranks.rank:
            updates[mine] = orthogonalize(stack[mine])
        self.ranks.sum_([updates])  # each is somebody's, and zero at everybody else: the sum is exact
        return updates

    def state(self) -> dict[str, Tensor]:
        return {f"muon.{name}": momentum for name, momentum in self.momenta.items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for name, momentum in self.momenta.items():
            momentum.copy_(state[f"muon.{name}"])


def orthogonalize(matrices: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The nearest orthogonal matrices, roughly: (K, rows, columns) -> the same shape, singular values near 1.

    Computed in bfloat16, whose error of some per cent is far below the spread that the polynomial leaves; in float32 where the
    device has no instructions for bfloat16 and emulates it, many times slower.
    """
    a, b, c = QUINTIC
    x = matrices.to(dtype or choose_dtype("auto", matrices.device))
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT  # the products below are then of the smaller side
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # the Frobenius norm bounds the largest singular value by 1
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


def group_by_shape(parameters: Mapping[str, Tensor]) -> Iterable[dict[str, Tensor]]:
    groups: dict[torch.Size, dict[str, Tensor]] = {}
    for name, parameter in parameters.items():
        groups.setdefault(parameter.shape, {})[name] = parameter
    return groups.values()
