"""One flipped bit on one rank of a small training, anywhere: does it ever reach a commit?

A trial flips a bit of a weight or of the optimizer's state of one rank, at some step; then the training must end in an error on
every rank, with no commit made after the flip. Errors that name another tensor than the flipped one, or among three ranks
another rank, count as failures, too.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nanochat.agreement import STEPS, Agreement, digest, fingerprint, joined, look_at
from nanochat.checkpoint import Commits, weights
from nanochat.dataloader import Loader, PackedRows
from nanochat.distributed import Ranks
from nanochat.errors import UserError
from nanochat.gpt import GPT, GPTConfig
from nanochat.optimizer import Optimizer, build_optimizer
from nanochat.train import Numerics, Schedule, Training, train
from torture import forked

SIZES = {"vocab_size": 41, "n_layer": 2, "n_head": 2, "n_kv_head": 1, "n_embd": 16, "sequence_len": 8}
NUM_STEPS, COMMIT_EVERY = 4, 2
WHERE = ("weight before the forward pass", "weight after the update", "optimizer before the forward pass")


@dataclass(frozen=True)
class Flip:
    """Which bit of which element of which tensor, on which rank, and when. `place` is one of WHERE."""

    rank: int
    step: int
    place: str
    tensor: str
    element: int
    bit: int

    def __str__(self) -> str:
        return f"rank {self.rank}, step {self.step}, {self.place}: {self.tensor}[{self.element}] bit {self.bit}"


@dataclass(frozen=True)
class Outcome:
    """How a training with a flip ended on a rank."""

    error: str | None
    kind: str
    last_commit: int
    published: str | None  # a fingerprint of the final weights


def plan(number: int, world_size: int, seed: int) -> list[Flip]:
    """Flips over all ranks, steps, places and tensors; all 32 bits come up equally often."""
    rng = random.Random(f"{seed} {world_size}")
    of_ranks = [build(Ranks(rank, world_size)) for rank in range(world_size)]
    flips = []
    for index in range(number):
        place, rank = WHERE[index % len(WHERE)], rng.randrange(world_size)
        model, optimizer = of_ranks[rank]
        tensors = optimizer.own_state() if place.startswith("optimizer") else dict(model.named_parameters())
        tensor = rng.choice(sorted(tensors))
        bit, element = index // len(WHERE) * 13 % 32, rng.randrange(tensors[tensor].numel())
        flips.append(Flip(rank, rng.randrange(NUM_STEPS), place, tensor, element, bit))
    return flips


def try_all(flips: Sequence[Flip], folder: Path, world_size: int, *, compares: bool = True) -> list[list[Outcome]]:
    """The outcomes of each flip's training, a list a rank. One group of processes makes many trainings, one after the other."""
    outcomes: list[list[Outcome]] = []
    while len(outcomes) < len(flips):
        left = list(enumerate(flips))[len(outcomes) :]
        of_ranks = forked.run(make_trainings, left, folder, compares, world_size=world_size)
        broken = [found for found in of_ranks if isinstance(found, forked.Failed)]
        if broken:
            raise AssertionError(f"{broken[0].message}\n{broken[0].trace}")
        # a rank that failed alone has left its group, as under torchrun: its trial counts, and the next begins with new ones
        together = min(map(len, of_ranks))
        outcomes += [list(trial) for trial in zip(*(found[:together] for found in of_ranks), strict=True)]
    return outcomes


def make_trainings(ranks: Ranks, numbered: list[tuple[int, Flip]], folder: Path, compares: bool) -> list[Outcome]:
    """On a rank: the trainings one after the other, until one of them ends on this rank alone."""
    if not compares:
        Agreement.require = add_up  # negative control
    outcomes = []
    for number, flip in numbered:
        outcome = train_with(ranks, flip, folder / f"{number:05d}")
        outcomes.append(outcome)
        if outcome.kind not in ("", "RanksDisagree"):
            break
    return outcomes


def add_up(self: Agreement, step: int) -> str:
    """What `require` returns, without a look at what the ranks found."""
    shares = self.ranks.gather_objects(self._look_at_own())
    return digest(look_at(self.held)[0] | joined(shares)[0])


def train_with(ranks: Ranks, flip: Flip | None, folder: Path) -> Outcome:
    model, optimizer = build(ranks)
    loader = Loader(make_rows(ranks, folder), batch_rows=2 * ranks.world_size, seed=1)
    if flip:
        inject(flip, ranks, model, optimizer, loader)
    error, kind, training = None, "", None
    try:
        training = train_small(model, optimizer, loader, ranks, folder)
    except (UserError, RuntimeError) as problem:  # RuntimeError: gloo, when another rank is gone
        error, kind = str(problem), type(problem).__name__
    steps = [int(path.name.removeprefix("step_")) for path in (folder / "resume").glob("step_*")]
    return Outcome(error, kind, max(steps, default=0), fingerprint(weights(model)) if training else None)


def train_small(model: GPT, optimizer: Optimizer, loader: Loader, ranks: Ranks, folder: Path) -> Training | None:
    return train(
        model,
        optimizer,
        loader,
        name="test",
        schedule=Schedule(NUM_STEPS),
        grad_clip=1.0,
        evaluate=lambda model: {},
        eval_every=0,
        commits=Commits(folder / "resume", {"specification": {}}),
        commit_every=COMMIT_EVERY,
        numerics=Numerics("cpu", ranks.world_size, "float32", 2),
        ranks=ranks,
    )


def build(ranks: Ranks) -> tuple[GPT, Optimizer]:
    model = GPT(GPTConfig.preset("nanochat", **SIZES)).init_weights(3)
    return model, build_optimizer(model, matrix_lr=0.02, embedding_lr=0.1, unembedding_lr=0.01, ranks=ranks)


def make_rows(ranks: Ranks, folder: Path) -> PackedRows:
    if ranks.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        start, stride = np.arange(16)[:, None], 1 + np.arange(16)[:, None] % 5
        rows = (start + stride * np.arange(SIZES["sequence_len"] + 1)) % SIZES["vocab_size"]
        np.save(folder / "rows.npy", rows.astype(np.uint16))
    ranks.wait()
    return PackedRows([folder / "rows.npy"])


def inject(flip: Flip, ranks: Ranks, model: GPT, optimizer: Optimizer, loader: Loader) -> None:
    """Have the bit flipped when its moment comes, if this is its rank."""
    batch, step_of = loader.batch, optimizer.step
    parameters, now = dict(model.named_parameters()), {"step": -1}

    def is_now(place: str) -> bool:
        return (flip.rank, flip.step, flip.place) == (ranks.rank, now["step"], place)

    def batch_with(step: int, *others):
        now["step"] = step
        if is_now(WHERE[0]):
            flip_bit(parameters[flip.tensor], flip)
        if is_now(WHERE[2]):
            flip_bit(optimizer.own_state()[flip.tensor], flip)
        return batch(step, *others)

    def step_with(**arguments):
        step_of(**arguments)
        if is_now(WHERE[1]):
            flip_bit(parameters[flip.tensor], flip)

    loader.batch, optimizer.step = batch_with, step_with


@torch.no_grad()
def flip_bit(tensor: torch.Tensor, flip: Flip) -> None:
    bits = tensor.view(torch.int32).view(-1)
    bits[flip.element] ^= torch.tensor(1 << flip.bit, dtype=torch.int64).to(torch.int32)


# -- judging -----------------------------------------------------------------------------------------------------------------


def require_undisturbed(folder: Path, world_size: int) -> None:
    """A training without a flip ends well, on all ranks alike: or no flip would prove anything."""
    first, *others = forked.run(train_with, None, folder, world_size=world_size)
    assert all(other == first for other in others) and first.published, (first, others)


def failure_of(flip: Flip, outcomes: Sequence[Outcome]) -> str | None:
    """What is wrong with how a training with a flipped bit ended; None if all is as promised."""
    if any(outcome.published for outcome in outcomes):
        return f"{flip}: the training ended as if nothing had happened"
    if any(outcome.last_commit > flip.step for outcome in outcomes):
        return f"{flip}: it is in the commit of step {max(outcome.last_commit for outcome in outcomes)}"
    if any(outcome.error is None for outcome in outcomes):
        return f"{flip}: not every rank ended"
    told = [outcome.error or "" for outcome in outcomes if outcome.kind == "RanksDisagree"]
    others = [outcome.error or "" for outcome in outcomes if outcome.kind == "UserError"]
    if not told and not any("the update was not made" in error or "NaN or infinity" in error for error in others):
        return f"{flip}: {outcomes[0].error}"
    if told and not any(name in told[0] for name in (flip.tensor, STEPS, "more. A bit")):
        return f"{flip}: the message names neither it nor its step: {told[0]}"
    if told and len(outcomes) > 2 and re.findall(r"rank (\d+) \(", told[0]) != [str(flip.rank)]:
        return f"{flip}: the message names another rank: {told[0]}"
    return None


# -- NaN and infinity --------------------------------------------------------------------------------------------------------


def try_not_finite(ranks: Ranks, folder: Path) -> list[str | None]:
    """Each tensor in turn gets a NaN or an infinity just before a commit: what is wrong with how that ended, or None."""
    model, optimizer = build(ranks)
    names = [*dict(model.named_parameters()), *optimizer.own_state()]
    values = (float("nan"), float("inf"), float("-inf"))
    return [spoil(ranks, name, values[i % 3], folder / f"{i:03d}") for i, name in enumerate(names)]


def spoil(ranks: Ranks, name: str, value: float, folder: Path) -> str | None:
    model, optimizer = build(ranks)
    loader = Loader(make_rows(ranks, folder), batch_rows=2, seed=1)
    held, step_of = {**dict(model.named_parameters()), **optimizer.own_state()}, optimizer.step

    def step_with(*, step: int, **arguments):
        step_of(step=step, **arguments)
        if step == COMMIT_EVERY - 1:
            held[name].detach().view(-1)[-1] = value

    optimizer.step = step_with
    try:
        train_small(model, optimizer, loader, ranks, folder)
    except UserError as error:
        made = list((folder / "resume").glob("step_*"))
        right = name in str(error) and "NaN or infinity" in str(error) and not made
        return None if right else f"{name}: {error} {made}"
    return f"{name}: {value} was committed"
