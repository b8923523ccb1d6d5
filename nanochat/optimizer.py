"""Which parameter moves by which rule, and how fast: Muon for the matrices in the blocks, AdamW for everything else.

A step among several ranks, each of which keeps only its share of the optimizer's state (ZeRO-2, arXiv 1910.02054):

    optimizer.sum_gradients()   # afterwards a rank has the summed gradients of what it owns, and no others
    optimizer.clip(1.0)         # by the norm of all of them together
    optimizer.step(...)         # each rank moves what it owns; then everybody has all new weights

On one rank it owns everything, and nothing is sent or copied.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanochat.adamw import AdamW, gradient_of
from nanochat.distributed import Ranks
from nanochat.gpt import GPT
from nanochat.muon import Muon
from nanochat.schedule import cosine_to_zero, muon_momentum, warmdown_done, width_scale


@dataclass(frozen=True)
class Parts:
    """What the optimizer is made of, beside its rates: the keys of `base_train.optimizer`. As written: October 2025."""

    orthogonalizer: str = "newton_schulz"  # newton_schulz | polar_express
    equilibrate_rows: bool = False
    renormalize: bool = False
    normalize_variance: bool = False
    momentum: Sequence[float] | None = None  # Muon's: from, to, over so many steps; none: schedule.MUON_MOMENTUM
    final_momentum: float | None = None  # where it goes during the warm-down; none: it stays
    matrix_decay: float = 0.0  # Muon's weight decay
    cautious: bool = False
    matrix_decay_schedule: str = "constant"  # constant | cosine
    groups: str = "nanochat"  # AdamW's averages and decays, table by table: nanochat | speedrun
    scalar_lr: float = 0.5
    comm_dtype: str = "float32"  # in which ranks exchange gradients: float32 | bfloat16


class Optimizer:
    """All parameter groups of a model, as one."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        muon: Muon,
        adamws: Mapping[str, AdamW],
        *,
        ranks: Ranks = Ranks(),
        parts: Parts = Parts(),
        warmdown_ratio: float = 0.0,
    ):
        self.parameters = dict(parameters)
        self.muon, self.adamws = muon, adamws
        self.ranks, self.parts, self.warmdown_ratio = ranks, parts, warmdown_ratio

    def sum_gradients(self) -> None:
        """Of all parameters, over all ranks; all ranks together. `grad` is then empty for what ranks have shared out."""
        if self.ranks.world_size > 1:
            for group in self._groups():
                group.sum_gradients({"float32": torch.float32, "bfloat16": torch.bfloat16}[self.parts.comm_dtype])

    @torch.no_grad()
    def clip(self, limit: float) -> Tensor:
        """Scale the gradients so that their common norm is at most `limit` (0: leave them); all ranks together.

        Returns the norm before, a number in fp32 on the device.
        """
        if self.ranks.world_size == 1:
            return clip_gradients(list(self.parameters.values()), limit)
        shares, common = self.gradients()
        # what every rank has counts once
        square = torch.nn.utils.get_total_norm([*shares, *(common if self.ranks.is_main else [])]).to(self.ranks.device) ** 2
        self.ranks.sum_([square])
        norm = square.sqrt()
        if limit > 0:
            torch._foreach_mul_([*shares, *common], (limit / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def gradients(self) -> tuple[list[Tensor], list[Tensor]]:
        """After `sum_gradients` among several ranks: those that this rank alone has, and those that all ranks have."""
        shares = [share for group in self._groups() for share in group.shared_gradients()]
        return shares, [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]

    def step(self, *, step: int, lr_scale: float, progress: float | None = None) -> None:
        """Move all weights; all ranks together. `progress`: the share of the training's steps that are over, for schedules."""
        momentum = muon_momentum(step, self.parts.momentum, final=self.parts.final_momentum, fallen=self._fallen(progress))
        self.muon.step(lr_scale=lr_scale, momentum=momentum, weight_decay=self.parts.matrix_decay * self._decay(progress))
        for adamw in self.adamws.values():
            adamw.step(step=step, lr_scale=lr_scale)

    def _fallen(self, progress: float | None) -> float:
        if self.parts.final_momentum is None:
            return 0.0
        assert progress is not None, "Muon's momentum falls with the progress of the training"
        return warmdown_done(progress, self.warmdown_ratio)

    def _decay(self, progress: float | None) -> float:
        if self.parts.matrix_decay_schedule == "constant":
            return 1.0
        assert progress is not None, "Muon's weight decay falls with the progress of the training"
        return cosine_to_zero(progress)

    # -- state -------------------------------------------------------------------------------------------------------------

    def own_state(self) -> dict[str, Tensor]:
        """This rank's share by name, without a copy; of a table its rows from `first_rows` on. On one rank, everything."""
        state = {name: tensor for group in self._groups() for name, tensor in group.own_state().items()}
        return {name: tensor for name, tensor in state.items() if len(tensor)}  # beyond the last block there is nothing

    def first_rows(self) -> dict[str, int]:
        """For each name of `own_state`, the row of the whole tensor with which this rank's begins."""
        found = {name: first for adamw in self.adamws.values() for name, first in adamw.first_rows().items()}
        return {name: found.get(name, 0) for name in self.own_state()}

    def gather(self) -> dict[str, Tensor] | None:
        """The whole state on the CPU, on the main rank, None elsewhere; all ranks together. One stack or table at a time."""
        state = {}
        for group in self._groups():
            for name, tensor in group.whole_state():
                if self.ranks.is_main:
                    state[name] = tensor.cpu()
        return state if self.ranks.is_main else None

    def empty_state(self) -> dict[str, Tensor]:
        """Names, shapes and dtypes of the whole state, on the meta device: what a commit must hold."""
        shapes = {name: shape for group in self._groups() for name, shape in group.state_shapes().items()}
        return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}

    def load_state(self, whole: Mapping[str, Tensor]) -> None:
        """Take this rank's share of what `gather` gave, on however many ranks."""
        for group in self._groups():
            group.load_state(whole)

    def _groups(self) -> list[Muon | AdamW]:
        return [self.muon, *self.adamws.values()]


def clip_gradients(parameters: Sequence[Tensor], limit: float) -> Tensor:
    """Scale all gradients so that their common norm is at most `limit` (0: leave them); returns the norm before."""
    norm = torch.nn.utils.get_total_norm([gradient_of(parameter) for parameter in parameters])
    if limit > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm


# -- groups ------------------------------------------------------------------------------------------------------------------

SMEAR_LR = 0.2
# AdamW's averages and decays: what occurs rarely, as the row of a token, is averaged over longer
JULY_2026: dict[str, dict[str, Any]] = {
    "embedding": {"betas": (0.8, 0.995), "weight_decay": 0.001},
    "unembedding": {"betas": (0.8, 0.96), "weight_decay": 0.01},
    "value_embedding": {"betas": (0.8, 0.995), "weight_decay": 0.01},
    "residual_scale": {"betas": (0.8, 0.95), "weight_decay": 0.05},
    "embedding_scale": {"betas": (0.96, 0.95), "weight_decay": 0.0},
    "smear_and_backout": {"betas": (0.8, 0.95), "weight_decay": 0.0},
}
SCALARS = {"resid_lambdas": "residual_scale", "x0_lambdas": "embedding_scale"}


def october_2025(weight_decay: float) -> dict[str, dict[str, Any]]:
    """Of the groups that there were then: the averages of all, and one decay."""
    return {group: {"betas": (0.8, 0.95), "weight_decay": weight_decay} for group in ("embedding", "unembedding")}


def group_of(name: str, parameter: Tensor, *, has_unit_tables: bool) -> str:
    """matrix (Muon), or one of the groups of JULY_2026; vectors and small tables are with the head."""
    if name.startswith("blocks.") and parameter.ndim == 2:
        return "matrix"
    if name in ("wte.weight", "wpe.weight") and has_unit_tables:
        return "embedding"
    if name.startswith("value_embeds."):
        return "value_embedding"
    if name.startswith(("smear_", "backout_")):
        return "smear_and_backout"
    return SCALARS.get(name, "unembedding")


def build_optimizer(
    model: GPT,
    *,
    matrix_lr: float,
    embedding_lr: float,
    unembedding_lr: float,
    weight_decay: float = 0.0,
    parts: Parts = Parts(),
    warmdown_ratio: float = 0.0,
    ranks: Ranks = Ranks(),
) -> Optimizer:
    """Matrices of the blocks (Muon); tables, head, vectors and scales (AdamW, tables at rates that fall with the width).

    `weight_decay` is AdamW's of the groups `nanochat`; those of `speedrun` have their own. `warmdown_ratio`: when Muon's
    momentum falls, if it does.
    """
    parameters = dict(model.named_parameters())
    members: dict[str, dict[str, Tensor]] = {group: {} for group in ("matrix", "embedding", "unembedding")}
    for name, parameter in parameters.items():
        # embedding_lr suits tables of unit variance. Tables drawn from N(0, 0.02) would be gone after one step of 0.2
        group = group_of(name, parameter, has_unit_tables=model.config.init != "gpt2")
        members.setdefault(group, {})[name] = parameter
    scale = width_scale(model.config.n_embd)
    rates = {
        "embedding": embedding_lr * scale,
        "unembedding": unembedding_lr * scale,
        "value_embedding": 0.5 * embedding_lr * scale,
        "residual_scale": 0.01 * parts.scalar_lr,  # they multiply the whole stream, layer after layer
        "embedding_scale": parts.scalar_lr,
        "smear_and_backout": SMEAR_LR,
    }
    muon = Muon(
        members.pop("matrix"),
        lr=matrix_lr,
        ranks=ranks,
        orthogonalizer=parts.orthogonalizer,
        equilibrate_rows=parts.equilibrate_rows,
        renormalize=parts.renormalize,
        normalize_variance=parts.normalize_variance,
        cautious=parts.cautious,
    )
    settings = {**JULY_2026, **(october_2025(weight_decay) if parts.groups == "nanochat" else {})}
    adamws = {group: AdamW(found, lr=rates[group], ranks=ranks, **settings[group]) for group, found in members.items()}
    return Optimizer(parameters, muon, adamws, ranks=ranks, parts=parts, warmdown_ratio=warmdown_ratio)
