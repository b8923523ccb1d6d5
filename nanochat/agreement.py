"""Whether all ranks hold the same numbers, and finite ones: asked before every commit and before a model is published.

After every step all ranks hold the same weights and the same optimizer state, to the bit. A flipped bit in the memory of one
of them, or a GPU that miscalculates, breaks that silently: the loss goes on falling, and the commit is what the main rank
happens to hold. So every rank adds up the bits of what it holds, and the ranks compare the sums.

A tensor's fingerprint is two exact sums of its bits, read as 64-bit integers, modulo 2**64: a plain one, and one in which row
i weighs 2i + 1. One flipped bit changes both; two rows exchanged change the second. Integers have no rounding, so the order of
the sum does not matter, and neither does the device. Nothing but the sums leaves a GPU. It takes a pass over memory for the
sums and one for the finiteness, each at 25 GB/s on one core.

Covered: any one flipped bit, in the weights, in the optimizer's state, and in the gradients after they were summed: `see` adds
up all of it in every step, just before the step is made of it, so that nothing is rounded away before it was counted.
Not covered: a training on one rank, which has nobody to compare with (its numbers are still looked at for NaN and infinity); an
error in a rank's own arithmetic before its share is summed with the others', which is then in everybody's numbers; the same
error on all ranks.
"""

import hashlib
import json
import math
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from nanochat.distributed import Ranks
from nanochat.errors import UserError

NAMED = 5  # tensors in a message
STEPS = "what a step since the last comparison was made of"

Fingerprints = dict[str, tuple[int, int]]


class RanksDisagree(UserError):
    """Ranks that should hold the same numbers do not."""


class Agreement:
    """What the ranks of one training should hold in common.

    >>> agreement = Agreement(ranks, {**weights, **optimizer.state()})
    >>> agreement.see(gradients)  # every step: added up, not yet compared
    >>> agreement.require(step=250)  # all ranks together; UserError on all of them if one differs
    """

    def __init__(self, ranks: Ranks, held: Mapping[str, Tensor]):
        self.ranks, self.held = ranks, dict(held)
        self.seen = torch.zeros(2, dtype=torch.int64, device=ranks.device)
        self.odd = torch.empty(0, dtype=torch.int64, device=ranks.device)

    @torch.no_grad()
    def see(self, gradients: Iterable[Tensor]) -> None:
        """What a step is about to be made of: the same on all ranks, and gone by the time that they compare.

        A wrong bit there may leave no other trace: rounded away on its own rank, after what came of it went to everybody.
        """
        if self.ranks.world_size > 1:
            everything = [*self.held.values(), *gradients]
            rows = torch.cat([as_integers(tensor).sum(dim=1, dtype=torch.int64) for tensor in everything])
            if len(self.odd) != len(rows):
                self.odd = odd_numbers(rows)
            self.seen = 3 * self.seen + torch.stack([rows.sum(), (self.odd * rows).sum()])  # an odd factor loses no bit

    @torch.no_grad()
    def require(self, step: int) -> str:
        """UserError if not all ranks hold the same, finite numbers; else a digest of them."""
        found, not_finite = look_at(self.held)
        held = {**found, STEPS: tuple(self.seen.tolist())}
        of_ranks = self.ranks.gather_objects(held)
        if any(other != held for other in of_ranks):
            places = self.ranks.gather_objects(f"{platform.node()}, {self.ranks.hardware}")
            raise RanksDisagree(f"step {step:,}: {disagreement(of_ranks, places)}")
        if not_finite:
            raise UserError(
                f"step {step:,}: {some(not_finite)}: NaN or infinity. No commit was made, and those before this step are good. "
                "Lower the learning rate"
            )
        return digest(found)


def look_at(tensors: Mapping[str, Tensor]) -> tuple[Fingerprints, list[str]]:
    """The fingerprint of each tensor, by name; and the names of those that are not finite."""
    sums = torch.stack([bit_sums(tensor) for tensor in tensors.values()]).tolist()
    extremes = torch.stack([torch.stack(tensor.detach().aminmax()) for tensor in tensors.values()]).tolist()
    not_finite = [name for name, pair in zip(tensors, extremes, strict=True) if not all(map(math.isfinite, pair))]
    return {name: (plain, weighed) for name, (plain, weighed) in zip(tensors, sums, strict=True)}, not_finite


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """One text for all these tensors, and what `Agreement.require` returns for them."""
    return digest(look_at(tensors)[0])


def digest(found: Fingerprints) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def bit_sums(tensor: Tensor) -> Tensor:
    """(2,) int64, on the tensor's device: the sum of its bits as integers, and the one in which row i weighs 2i + 1."""
    rows = as_integers(tensor).sum(dim=1, dtype=torch.int64)  # (R,)
    return torch.stack([rows.sum(), (odd_numbers(rows) * rows).sum()])


def as_integers(tensor: Tensor) -> Tensor:
    """The bits of a tensor as a matrix of integers, a row for each of its rows; of 64 bits where they fit, which is fast."""
    tensor = tensor.detach().contiguous()
    rows = tensor.reshape(len(tensor), -1) if tensor.ndim > 1 else tensor.reshape(1, -1)
    size = rows.element_size()
    if rows.size(1) * size % 8 == 0 and rows.storage_offset() * size % 8 == 0:
        return rows.view(torch.int64)
    return rows.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[size])


def odd_numbers(rows: Tensor) -> Tensor:
    """1, 3, 5, ... for each row, to multiply with."""
    return 2 * torch.arange(len(rows), device=rows.device) + 1


# -- in words ----------------------------------------------------------------------------------------------------------------


def disagreement(of_ranks: Sequence[Fingerprints], places: Sequence[str]) -> str:
    """Who differs in what, and what to do."""
    names = [name for name in of_ranks[0] if len({found.get(name) for found in of_ranks}) > 1]
    groups = Counter(digest(found) for found in of_ranks)
    most, number = groups.most_common(1)[0]
    odd_ones = [rank for rank, found in enumerate(of_ranks) if digest(found) != most]
    if number * 2 > len(of_ranks):
        who = f"{ranks_in_words(odd_ones, places)} of {len(of_ranks)} no longer {verb(odd_ones)} the numbers of the others"
    else:
        everybody = ranks_in_words(range(len(of_ranks)), places)
        who = f"{everybody} no longer hold the same numbers, and no majority tells which are right"
    return (
        f"{who}: {some(names)}. A bit changed in memory, or a device miscalculated. No commit was made, and those before this "
        "step are good: run the same command again, and it goes on from the newest. If it happens again on the same machine, "
        "have its memory and its GPUs checked, and keep trainings away from it (SLURM: --exclude)"
    )


def ranks_in_words(ranks: Iterable[int], places: Sequence[str]) -> str:
    found = [f"{rank} ({places[rank]})" for rank in ranks]
    return f"{'ranks' if len(found) > 1 else 'rank'} {', '.join(found)}"


def verb(ranks: Sequence[int]) -> str:
    return "hold" if len(ranks) > 1 else "holds"


def some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
