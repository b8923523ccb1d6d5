"""What the exercises of docs/transformer.md begin with: a trained run, opened, and small models that train in seconds.

    run = open_run("results/tiny")
    model = small_model(run, mlp="gelu")
    losses = train_small(model, run.rows, steps=100)
    print(losses[-1], loss_of(model, run.validation))

All in float32 on the CPU, so that the same code gives the same numbers on every run. Everything is done by the code that trains
the large models: `nanochat.train.update` makes the steps, `nanochat.loss_eval` measures.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanochat.checkpoint import load_model
from nanochat.dataloader import Loader, PackedRows, open_rows, validation_batches
from nanochat.distributed import Ranks
from nanochat.errors import UserError
from nanochat.gpt import GPT, GPTConfig
from nanochat.identities import require_same_tokenizer
from nanochat.loss_eval import evaluate_bpb
from nanochat.manifest import MANIFEST, open_verified
from nanochat.optimizer import build_optimizer
from nanochat.sections import BaseTrain
from nanochat.tokenizer import Tokenizer
from nanochat.train import Numerics, Schedule, update

SMALL = {"n_layer": 2, "n_head": 2, "n_kv_head": 2, "n_embd": 64}


@dataclass(frozen=True)
class TrainedRun:
    """A run's pretrained model with its tokenizer, the rows that it was trained on, and those that it never saw."""

    model: GPT
    tokenizer: Tokenizer
    rows: PackedRows
    validation: PackedRows


def open_run(folder: str | Path, stage: str = "base_train") -> TrainedRun:
    """Open `results/{run}`, which must have been trained as far as `stage`, and have its own tokens."""
    if not (Path(folder) / stage / MANIFEST).exists():
        raise UserError(f"{folder}: there is no trained model in {stage}. `make demo` trains results/tiny in minutes")
    model, tokenizer = load_model(Path(folder) / stage, dtype="float32")
    tokens = open_verified(Path(folder) / "tokens" / "pretrain" / MANIFEST)
    trained = open_verified(Path(folder) / stage / MANIFEST)
    require_same_tokenizer(tokens, trained.inputs.get("tokenizer"), whose=trained.folder)
    return TrainedRun(model, tokenizer, open_rows(tokens, "train"), open_rows(tokens, "validation"))


def small_model(run: TrainedRun, preset: str = "nanochat", *, seed: int = 1, **changes) -> GPT:
    """A fresh model for the run's tokens: 2 blocks of width 64, unless `changes` (fields of GPTConfig) say otherwise."""
    sizes = {"vocab_size": run.tokenizer.vocab_size, "sequence_len": run.rows.sequence_len, **SMALL}
    return GPT(GPTConfig.preset(preset, **{**sizes, **changes})).init_weights(seed)


def train_small(
    model: GPT,
    rows: PackedRows,
    *,
    steps: int,
    batch_rows: int = 4,
    seed: int = 0,
    matrix_lr: float = BaseTrain().matrix_lr,
    embedding_lr: float = BaseTrain().embedding_lr,
    unembedding_lr: float = BaseTrain().unembedding_lr,
) -> list[float]:
    """Train for so many steps, at the rates and with the schedule of base_train; returns each step's loss (nats a token)."""
    loader, schedule = Loader(rows, batch_rows, seed), Schedule(steps)
    optimizer = build_optimizer(model, matrix_lr=matrix_lr, embedding_lr=embedding_lr, unembedding_lr=unembedding_lr)
    numerics = Numerics("cpu", 1, model.dtype_name, batch_rows)
    losses = []
    for step in range(steps):
        loss, _, _ = update(
            model,
            optimizer,
            loader,
            step=step,
            lr_scale=schedule.scale(step),
            progress=step / steps,
            grad_clip=BaseTrain().grad_clip,
            numerics=numerics,
            ranks=Ranks(),
        )
        losses.append(loss)
    return losses


def loss_of(model: GPT, rows: PackedRows, *, num_rows: int = 32) -> float:
    """Mean loss (nats a token) on rows spread evenly over the file."""
    # every token counts as one byte here: only the loss is asked for
    return evaluate_bpb(model, validation_batches(rows, 8, num_rows), np.ones(model.config.vocab_size, dtype=np.int32))["loss"]
