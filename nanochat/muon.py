"""Muon: momentum whose matrix is made orthogonal before it is applied (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

A gradient matrix is dominated by a few directions. Setting all its singular values to about 1 lets every direction learn at the
same pace. That is done without a decomposition, by five rounds of a polynomial in the matrix (a Newton-Schulz iteration).
For the matrices inside the blocks only; tables, heads and vectors go to AdamW.

As written, a step is that of nanochat in October 2025. What came later are parts: each a function below and a switch of `Muon`.
In the order of a step:

    momentum -> equilibrate_rows -> orthogonalize -> renormalize -> normalize_variance -> weight decay -> the move
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from nanochat.adamw import gradient_of
from nanochat.distributed import Ranks, choose_dtype

# x -> a x + b x^3 + c x^5, found to lift small singular values fastest; the large ones end anywhere in about [0.7, 1.2]
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
# A polynomial of its own for each round, the best one for the interval that the round before leaves (Polar Express, arXiv
# 2505.16932, for five rounds with a safety factor of 0.02). The first wants the norm a little below 1: hence the margin
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
POLAR_MARGIN = 1.01
VARIANCE_BETA = 0.9  # the running mean of the squares goes back about ten steps
TINY = 1e-6  # what is zero stays zero


class Muon:
    """One optimizer for many matrices; those of one shape are stacked and updated together.

    Ranks share out whole matrices, in blocks of each stack (`Ranks.share`). A rank keeps the momenta of its own matrices and
    moves these; then everybody gets them.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        *,
        lr: float,
        ranks: Ranks = Ranks(),
        orthogonalizer: str = "newton_schulz",
        equilibrate_rows: bool = False,
        renormalize: bool = False,
        normalize_variance: bool = False,
        cautious: bool = False,
    ):
        self.lr, self.ranks = lr, ranks
        self.orthogonalizer, self.equilibrate_rows, self.renormalize = orthogonalizer, equilibrate_rows, renormalize
        self.normalize_variance, self.cautious = normalize_variance, cautious
        self.stacks = list(group_by_shape(parameters))
        self.own = [dict(list(stack.items())[ranks.share(len(stack))]) for stack in self.stacks]
        self.shares: list[Tensor] = []  # among several ranks: of the summed gradients, a stack for each of `own`
        self.momentum_stacks = list(self._zeros(lambda shape: shape))
        self.variance_stacks = list(self._zeros(variance_shape)) if normalize_variance else []
        self.momenta = self._by_name(self.momentum_stacks)  # of this rank's matrices; views into the stacks
        self.variances = self._by_name(self.variance_stacks)

    @torch.no_grad()
    def step(self, *, lr_scale: float, momentum: float, weight_decay: float = 0.0) -> None:
        """Move every matrix. `momentum` and `weight_decay` change with the step, so they are the caller's."""
        for place, stack in enumerate(self.stacks):
            own = self.own[place]
            gradients = self.shares[place] if self.shares else stacked_gradients(stack)  # (K, rows, columns)
            momenta = self.momentum_stacks[place]
            momenta.lerp_(gradients, 1 - momentum)
            gradients.lerp_(momenta, momentum)  # Nesterov: look ahead along the momentum
            updates = self.updates_of(gradients, place)
            # a tall matrix with orthogonal columns moves its outputs less than a square one does
            lr = self.lr * lr_scale * max(1.0, gradients.size(1) / gradients.size(2)) ** 0.5
            for name, update in zip(own, updates, strict=True):
                parameter = own[name]
                if weight_decay:
                    update = with_decay(update, parameter, weight_decay, cautious=self.cautious)
                parameter.sub_(update, alpha=lr)
            self._give_out(stack, place)
        self.shares = []

    def updates_of(self, ahead: Tensor, place: int) -> Tensor:
        """What a stack of momenta, looked ahead, becomes: (K, rows, columns) -> the same shape."""
        if self.equilibrate_rows:
            ahead = equilibrate_rows(ahead)
        updates = orthogonalize(ahead, method=self.orthogonalizer)
        if self.renormalize:
            updates = renormalize(updates)
        if self.normalize_variance:
            updates = normalize_variance(updates, self.variance_stacks[place])
        return updates

    # -- among several ranks -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sum_gradients(self, dtype: torch.dtype = torch.float32) -> None:
        """Sum the gradients over all ranks, which exchange them in `dtype`. A rank keeps those of its own matrices."""
        self.shares = []
        for stack in self.stacks:
            gradients = stacked_gradients(stack)
            for parameter in stack.values():
                parameter.grad = None  # before the next stack is made: together they are as large as the model
            self.shares.append(self.ranks.sum_shares(gradients.to(dtype)).to(gradients.dtype))

    def _give_out(self, stack: Mapping[str, Tensor], place: int) -> None:
        """Everybody gets the new weights of a stack."""
        if self.ranks.world_size > 1:
            new = self.ranks.join_shares(stack_of(self.own[place].values(), like=self.momentum_stacks[place]), len(stack))
            for parameter, weight in zip(stack.values(), new, strict=True):
                parameter.copy_(weight)

    # -- state -------------------------------------------------------------------------------------------------------------

    def own_state(self) -> dict[str, Tensor]:
        """This rank's."""
        momenta = {f"muon.{name}": momentum for name, momentum in self.momenta.items()}
        return momenta | {f"muon.variance.{name}": variance for name, variance in self.variances.items()}

    def whole_state(self) -> Iterator[tuple[str, Tensor]]:
        """Everybody's, one stack at a time; all ranks together."""
        for prefix, stacks in (("muon", self.momentum_stacks), ("muon.variance", self.variance_stacks)):
            for own, stack in zip(stacks, self.stacks, strict=False):  # no variances: nothing
                for name, tensor in zip(stack, self.ranks.join_shares(own, len(stack)), strict=True):
                    yield f"{prefix}.{name}", tensor

    def shared_gradients(self) -> list[Tensor]:
        """Those that no other rank has, after `sum_gradients`."""
        return self.shares

    def state_shapes(self) -> dict[str, torch.Size]:
        """Of the whole state."""
        parameters = {name: parameter for stack in self.stacks for name, parameter in stack.items()}
        momenta = {f"muon.{name}": parameter.shape for name, parameter in parameters.items()}
        if not self.normalize_variance:
            return momenta
        return momenta | {f"muon.variance.{name}": variance_shape(parameter.shape) for name, parameter in parameters.items()}

    @torch.no_grad()
    def load_state(self, whole: Mapping[str, Tensor]) -> None:
        """Take this rank's share."""
        for name, tensor in self.own_state().items():
            tensor.copy_(whole[name])

    def _zeros(self, shape_of: Callable[[torch.Size], torch.Size]) -> Iterator[Tensor]:
        for stack, own in zip(self.stacks, self.own, strict=True):
            first = next(iter(stack.values()))
            yield torch.zeros((len(own), *shape_of(first.shape)), dtype=first.dtype, device=first.device)

    def _by_name(self, stacks: list[Tensor]) -> dict[str, Tensor]:
        return {
            name: tensor for own, stack in zip(self.own, stacks, strict=False) for name, tensor in zip(own, stack, strict=True)
        }


# -- the parts of a step -----------------------------------------------------------------------------------------------------


def equilibrate_rows(matrices: Tensor) -> Tensor:
    """Make all rows of a matrix equally long, and leave its Frobenius norm: (K, rows, columns) -> the same shape.

    What is then made orthogonal is better conditioned: fewer of its singular values are too small for five rounds (MuonEq,
    arXiv 2603.28254).
    """
    lengths = matrices.norm(dim=-1, keepdim=True).clamp_min(TINY)  # (K, rows, 1)
    typical = matrices.norm(dim=(-2, -1), keepdim=True) / matrices.size(-2) ** 0.5  # (K, 1, 1)
    return matrices * (typical / lengths)


def orthogonalize(matrices: Tensor, dtype: torch.dtype | None = None, *, method: str = "newton_schulz") -> Tensor:
    """The nearest orthogonal matrices, roughly: (K, rows, columns) -> the same shape, singular values near 1.

    `newton_schulz` applies one polynomial again and again, `polar_express` one of its own in each round, and comes nearer to 1.
    Computed in bfloat16, whose error of some per cent is far below the spread that the polynomial leaves; in float32 where the
    device has no instructions for bfloat16 and emulates it, many times slower.
    """
    rounds, margin = (POLAR_EXPRESS, POLAR_MARGIN) if method == "polar_express" else ((QUINTIC,) * ITERATIONS, 1.0)
    x = matrices.to(dtype or choose_dtype("auto", matrices.device))
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT  # the products below are then of the smaller side
    # the Frobenius norm bounds the largest singular value by 1
    x = x / (margin * x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for a, b, c in rounds:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


def renormalize(matrices: Tensor) -> Tensor:
    """Give each matrix the Frobenius norm that an orthogonal one has, the root of its smaller side (Muon+, arXiv 2602.21545).

    Five rounds leave some singular values short of 1, more of them in some matrices than in others: this evens out their rates.
    """
    wanted = min(matrices.size(-2), matrices.size(-1)) ** 0.5
    return matrices * (wanted / matrices.norm(dim=(-2, -1), keepdim=True).clamp_min(TINY))


def normalize_variance(updates: Tensor, variances: Tensor) -> Tensor:
    """Divide each neuron's update by the running root mean square of it, and leave the Frobenius norm (NorMuon, 2510.05491).

    Orthogonal as a whole, a matrix still moves some of its rows (of a wide matrix: columns) far more than others, step after
    step. `updates` (K, rows, columns) -> the same shape; `variances`, (K, rows, 1) or (K, 1, columns), are changed in place.
    """
    across = -1 if variances.size(-1) == 1 else -2
    squares = updates.square().mean(dim=across, keepdim=True)
    variances.lerp_(squares, 1 - VARIANCE_BETA)
    scale = variances.clamp_min(1e-10).rsqrt()
    before, after = squares.sum(dim=(-2, -1), keepdim=True), (squares * scale.square()).sum(dim=(-2, -1), keepdim=True)
    return updates * (scale * (before.sqrt() / after.sqrt().clamp_min(1e-10)))


def variance_shape(shape: torch.Size) -> torch.Size:
    """A number for each row of a tall or square matrix, for each column of a wide one."""
    rows, columns = shape
    return torch.Size((rows, 1) if rows >= columns else (1, columns))


def with_decay(update: Tensor, parameter: Tensor, weight_decay: float, *, cautious: bool) -> Tensor:
    """The update and a pull towards zero; cautious: only of numbers that the update moves there anyway (arXiv 2510.12402)."""
    decay = weight_decay * parameter
    return update + (decay * (update * parameter >= 0) if cautious else decay)


# -- stacks ------------------------------------------------------------------------------------------------------------------


def group_by_shape(parameters: Mapping[str, Tensor]) -> Iterable[dict[str, Tensor]]:
    groups: dict[torch.Size, dict[str, Tensor]] = {}
    for name, parameter in parameters.items():
        groups.setdefault(parameter.shape, {})[name] = parameter
    return groups.values()


def stacked_gradients(stack: Mapping[str, Tensor]) -> Tensor:
    """(K, rows, columns), a copy."""
    return torch.stack([gradient_of(parameter) for parameter in stack.values()])


def stack_of(matrices: Iterable[Tensor], *, like: Tensor) -> Tensor:
    """(K, rows, columns), also of no matrices at all, of which a rank beyond the last block has so many."""
    found = [matrix.detach() for matrix in matrices]
    return torch.stack(found) if found else torch.empty_like(like)
