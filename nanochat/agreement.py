"""Whether all ranks hold the right numbers, and finite ones: asked before every commit and before a model is published.

After every step all ranks hold the same weights, to the bit. A flipped bit in the memory of one of them, or a GPU that
miscalculates, breaks that silently: the loss goes on falling, and the commit is what the main rank happens to hold. So every
rank adds up the bits of what it holds, and the ranks compare the sums. Of the optimizer's state each rank holds a share that
nobody else has: that is compared with itself, as it was after one step and is before the next.

A tensor's fingerprint is two exact sums of its bits, read as 64-bit integers, modulo 2**64: a plain one, and one in which row
i weighs 2i + 1. One flipped bit changes both; two rows exchanged change the second. Integers have no rounding, so the order of
the sum does not matter, and neither does the device; and the sums of shares add up to those of the whole. Nothing but the sums
leaves a GPU. It takes a pass over memory for the sums and one for the finiteness, each at 25 GB/s on one core.

Covered: any one flipped bit in the weights, which `see` adds up in every step, just before the step is made of them, so that
nothing is rounded away before it was counted; any one in the optimizer's state from one step to the next; what a commit holds.
Not covered: a training on one rank, which has nobody to compare with (its numbers are still looked at for NaN and infinity);
what goes wrong within a step: in the shares of the summed gradients or in the state while it is worked on, which only their
rank has, or in a rank's arithmetic before its share is summed with the others'; the same error on all ranks.
"""

import hashlib
import json
import math
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanochat.distributed import Ranks
from nanochat.errors import UserError

NAMED = 5  # tensors in a message
STEPS = "what a step since the last comparison was made of"

REMEDY = (
    "A bit changed in memory, or a device miscalculated. No commit was made, and those before this step are good: run the same "
    "command again, and it goes on from the newest. If it happens again on the same machine, have its memory and its GPUs "
    "checked, and keep trainings away from it (SLURM: --exclude)"
)

Fingerprints = dict[str, tuple[int, int]]


class RanksDisagree(UserError):
    """Ranks that should hold the same numbers do not."""


@dataclass(frozen=True)
class Share:
    """What a rank found of a tensor of its own: the rows from `first` on."""

    first: int
    sums: tuple[int, int]  # as they count in the whole
    is_finite: bool
    is_changed: bool  # since the step that wrote it


class Agreement:
    """What the ranks of one training should hold in common, and what each should still hold as it left it.

    >>> agreement = Agreement(ranks, weights, own=optimizer.own_state(), first_rows=optimizer.first_rows())
    >>> agreement.see()  # before every step: added up, not yet compared among the ranks
    >>> agreement.keep()  # after it
    >>> agreement.require(step=250)  # all ranks together; UserError on all of them if one differs
    """

    def __init__(
        self,
        ranks: Ranks,
        held: Mapping[str, Tensor],
        *,
        own: Mapping[str, Tensor] | None = None,
        first_rows: Mapping[str, int] | None = None,
    ):
        self.ranks, self.held, self.own = ranks, dict(held), dict(own or {})
        self.has_shares = own is not None  # on all ranks, though one of them may have an empty one
        self.first_rows = dict.fromkeys(self.own, 0) | dict(first_rows or {})
        self.seen = torch.zeros(2, dtype=torch.int64, device=ranks.device)
        self.odd = torch.empty(0, dtype=torch.int64, device=ranks.device)
        self.changed = torch.zeros(len(self.own), dtype=torch.bool, device=ranks.device)
        self.keep()

    @torch.no_grad()
    def see(self, gradients: Iterable[Tensor] = ()) -> None:
        """What a step is about to be made of: weights and gradients that all ranks have, and the rank's own state, as kept.

        A wrong bit there may leave no other trace: rounded away on its own rank, after what came of it went to everybody.
        """
        if self.ranks.world_size > 1:
            everything = [*self.held.values(), *gradients]
            rows = torch.cat([as_integers(tensor).sum(dim=1, dtype=torch.int64) for tensor in everything])
            if len(self.odd) != len(rows):
                self.odd = odd_numbers(rows)
            self.seen = 3 * self.seen + torch.stack([rows.sum(), (self.odd * rows).sum()])  # an odd factor loses no bit
            self._look_for_changes()

    @torch.no_grad()
    def keep(self) -> None:
        """What a step has made of this rank's own state."""
        if self.ranks.world_size > 1:
            self.kept = self._own_sums()

    def _look_for_changes(self) -> None:
        self.changed |= (self._own_sums() != self.kept).any(dim=1)

    def _own_sums(self) -> Tensor:
        """(K, 2) of K tensors."""
        return torch.stack([bit_sums(tensor) for tensor in self.own.values()]) if self.own else self.seen.new_empty(0, 2)

    @torch.no_grad()
    def require(self, step: int) -> str:
        """UserError if not all ranks hold the same, finite numbers, and their own unchanged; else a digest of all of them."""
        found, not_finite = look_at(self.held)
        held = {**found, STEPS: tuple(self.seen.tolist())}
        of_ranks = self.ranks.gather_objects(held)
        if any(other != held for other in of_ranks):
            raise RanksDisagree(f"step {step:,}: {disagreement(of_ranks, self._places())}")
        shares = self.ranks.gather_objects(self._look_at_own()) if self.has_shares else []
        changed = {rank: [name for name, share in found.items() if share.is_changed] for rank, found in enumerate(shares)}
        if any(changed.values()):
            raise RanksDisagree(f"step {step:,}: {changes(changed, self._places())}")
        whole, different = joined(shares)
        if different:
            raise RanksDisagree(f"step {step:,}: {disagreement(different, self._places())}")
        not_finite += [name for found in shares for name, share in found.items() if not share.is_finite]
        if not_finite:
            names = some(list(dict.fromkeys(not_finite)))
            raise UserError(
                f"step {step:,}: {names}: NaN or infinity. No commit was made, and those before this step are good. "
                "Lower the learning rate"
            )
        return digest({**found, **whole})

    def _look_at_own(self) -> dict[str, Share]:
        if self.ranks.world_size > 1:
            self._look_for_changes()
        found, not_finite = look_at(self.own)
        changed = dict(zip(self.own, self.changed.tolist(), strict=True))
        return {
            name: Share(
                self.first_rows[name], as_in_the_whole(sums, self.first_rows[name]), name not in not_finite, changed[name]
            )
            for name, sums in found.items()
        }

    def _places(self) -> list[str]:
        return self.ranks.gather_objects(f"{platform.node()}, {self.ranks.hardware}")


def joined(shares: Sequence[Mapping[str, Share]]) -> tuple[Fingerprints, list[Fingerprints]]:
    """The fingerprints of the whole tensors; and, if ranks hold other numbers in the same place, what each has there."""
    parts: dict[str, dict[int, tuple[int, int]]] = {}
    for found in shares:
        for name, share in found.items():
            parts.setdefault(name, {}).setdefault(share.first, share.sums)
    different = {
        name for found in shares for name, share in found.items() if share.sums != parts[name][share.first]
    }  # fmt: skip
    whole = {
        name: (signed(sum(p for p, _ in of.values())), signed(sum(w for _, w in of.values()))) for name, of in parts.items()
    }
    return whole, [{name: found[name].sums for name in different if name in found} for found in shares] if different else []


def as_in_the_whole(sums: tuple[int, int], first: int) -> tuple[int, int]:
    """The sums of rows that are row `first` and its followers of a whole tensor: there, row i weighs 2 (first + i) + 1."""
    plain, weighed = sums
    return plain, signed(weighed + 2 * first * plain)


def signed(number: int) -> int:
    """Modulo 2**64, as an int64 shows it."""
    return (number + 2**63) % 2**64 - 2**63


def look_at(tensors: Mapping[str, Tensor]) -> tuple[Fingerprints, list[str]]:
    """The fingerprint of each tensor, by name; and the names of those that are not finite."""
    if not tensors:
        return {}, []
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
    return f"{who}: {some(names)}. {REMEDY}"


def changes(of_ranks: Mapping[int, Sequence[str]], places: Sequence[str]) -> str:
    """Whose own numbers changed between two steps, and what to do."""
    ranks = [rank for rank, names in of_ranks.items() if names]
    names = [name for rank in ranks for name in of_ranks[rank]]
    return f"of {ranks_in_words(ranks, places)}, what nobody wrote changed between two steps: {some(names)}. {REMEDY}"


def ranks_in_words(ranks: Iterable[int], places: Sequence[str]) -> str:
    found = [f"{rank} ({places[rank]})" for rank in ranks]
    return f"{'ranks' if len(found) > 1 else 'rank'} {', '.join(found)}"


def verb(ranks: Sequence[int]) -> str:
    return "hold" if len(ranks) > 1 else "holds"


def some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
