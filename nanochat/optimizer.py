"""Which parameter moves by which rule, and how fast: Muon for the matrices in the blocks, AdamW for everything else."""

from collections.abc import Mapping

from torch import Tensor

from nanochat.adamw import AdamW
from nanochat.distributed import Ranks
from nanochat.gpt import GPT
from nanochat.muon import Muon
from nanochat.schedule import muon_momentum, width_scale


class Optimizer:
    """All parameter groups of a model, as one."""

    def __init__(self, muon: Muon, adamws: Mapping[str, AdamW]):
        self.muon = muon
        self.adamws = adamws

    def step(self, *, step: int, lr_scale: float) -> None:
        self.muon.step(lr_scale=lr_scale, momentum=muon_momentum(step))
        for adamw in self.adamws.values():
            adamw.step(step=step, lr_scale=lr_scale)

    def state(self) -> dict[str, Tensor]:
        state = self.muon.state()
        for adamw in self.adamws.values():
            state |= adamw.state()
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.muon.load_state(state)
        for adamw in self.adamws.values():
            adamw.load_state(state)


def build_optimizer(
    model: GPT,
    *,
    matrix_lr: float,
    embedding_lr: float,
    unembedding_lr: float,
    weight_decay: float = 0.0,
    ranks: Ranks = Ranks(),
) -> Optimizer:
    """nanochat's groups: matrices (Muon); tables, head and vectors (AdamW, at rates that fall with the model's width)."""
    parameters = dict(model.named_parameters())
    matrices = {name: p for name, p in parameters.items() if name.startswith("blocks.") and p.ndim == 2}
    # embedding_lr suits tables of unit variance. Tables drawn from N(0, 0.02) would be gone after one step of 0.2
    has_unit_tables = model.config.init == "nanochat"
    tables = {name: p for name, p in parameters.items() if name in ("wte.weight", "wpe.weight") and has_unit_tables}
    rest = {name: p for name, p in parameters.items() if name not in matrices and name not in tables}
    scale = width_scale(model.config.n_embd)
    adamws = {
        "embedding": AdamW(tables, lr=embedding_lr * scale, weight_decay=weight_decay),
        "unembedding": AdamW(rest, lr=unembedding_lr * scale, weight_decay=weight_decay),
    }
    return Optimizer(Muon(matrices, lr=matrix_lr, ranks=ranks), adamws)
