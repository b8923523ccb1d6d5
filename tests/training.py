"""A small training as a program of its own, for tests that kill it, resume it, or run it on several ranks.

    python tests/training.py FOLDER [--steps 12] [--die-at STEP] [--nan-at STEP] ...

Prints one JSON object on success: the losses, and the sha256 of the final weights.
"""

import argparse
import hashlib
import json
import os
import signal
from pathlib import Path

import numpy as np
import torch

from nanochat import train as module
from nanochat.attention import use_attention
from nanochat.checkpoint import Commits, weights
from nanochat.compiling import compile_blocks
from nanochat.dataloader import Loader, PackedRows
from nanochat.determinism import use_deterministic_kernels
from nanochat.distributed import join_ranks
from nanochat.gpt import GPT, GPTConfig
from nanochat.jobs.attempt import Attempt, follow_launcher
from nanochat.optimizer import Parts, build_optimizer
from nanochat.recompute import recompute_blocks
from nanochat.train import Numerics, Schedule, train

SIZES = {"vocab_size": 97, "n_layer": 2, "n_head": 2, "n_kv_head": 1, "n_embd": 32, "sequence_len": 16}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", default="nanochat")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--length", type=int, default=SIZES["sequence_len"])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--eval-every", type=int, default=4)
    parser.add_argument("--commit-every", type=int, default=3)
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--determinism", default="strict", help="what the training says of its kernels")
    parser.add_argument("--parts", type=json.loads, default={}, help="the optimizer's, as JSON")
    parser.add_argument("--masked", action="store_true", help="supervise a varying part of each row")
    parser.add_argument("--die-at", type=int, help="SIGKILL in the middle of this step's update")
    parser.add_argument("--nan-at", type=int, help="a NaN in the gradient of this step")
    parser.add_argument("--forget", action="store_true", help="negative control: resume without the optimizer's state")
    args = parser.parse_args()
    follow_launcher()
    with join_ranks(args.device) as ranks:
        if ranks.device.type == "cuda":
            use_deterministic_kernels()
        run(args, ranks)


def run(args, ranks) -> None:
    model = (
        GPT(GPTConfig.preset(args.preset, **{**SIZES, "sequence_len": args.length})).init_weights(args.seed).to(ranks.device)
    )
    model.compute_dtype = getattr(torch, args.dtype)
    if model.config.attention != "naive":
        use_attention(model, args.attention)
    if args.recompute:
        recompute_blocks(model)
    if args.compile:
        compile_blocks(model)
    loader = Loader(make_rows(args, ranks), batch_rows=8, seed=args.seed)
    optimizer = build_optimizer(
        model, matrix_lr=0.02, embedding_lr=0.1, unembedding_lr=0.01, parts=Parts(**args.parts), warmdown_ratio=0.5, ranks=ranks
    )
    disturb(args, optimizer, loader)
    training = train(
        model,
        optimizer,
        loader,
        name="test",
        schedule=Schedule(num_steps=args.steps),
        grad_clip=1.0,
        evaluate=lambda model: {"validation_loss": loss_of_first_batch(model, loader, ranks)},
        eval_every=args.eval_every,
        commits=Commits(args.folder / "resume", {"specification": {"seed": args.seed, "steps": args.steps}}),
        commit_every=args.commit_every,
        numerics=Numerics(
            ranks.device.type,
            ranks.world_size,
            args.dtype,
            args.micro_batch,
            determinism=args.determinism,
            hardware=ranks.hardware,
        ),
        ranks=ranks,
        attempt=Attempt.from_environment(),
    )
    if training is None:
        return
    digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in weights(model).values())).hexdigest()
    digests = ranks.gather_objects(digest)
    if ranks.is_main:
        shown = {"metrics": training.metrics, "weights": digests, "segments": training.segments, "is_exact": training.is_exact}
        shown["speeds"] = training.speeds
        print(json.dumps(shown))


def loss_of_first_batch(model, loader, ranks) -> float:
    return float(module.sum_of_losses(model, *(part.to(ranks.device) for part in loader.batch(0))).detach())


def make_rows(args, ranks) -> PackedRows:
    """Rows that can be learned: each counts upwards in steps of its own."""
    if ranks.is_main:
        start, stride = np.arange(40)[:, None], 1 + np.arange(40)[:, None] % 5
        rows = ((start + stride * np.arange(args.length + 1)) % SIZES["vocab_size"]).astype(np.uint16)
        args.folder.mkdir(parents=True, exist_ok=True)
        np.save(args.folder / "rows.npy", rows)
        np.save(args.folder / "mask.npy", (np.arange(rows.shape[1]) < 2 + np.arange(40)[:, None] % 13).astype(np.uint8))
    ranks.wait()
    return PackedRows([args.folder / "rows.npy"], [args.folder / "mask.npy"] if args.masked else None)


def disturb(args, optimizer, loader) -> None:
    """Make the step that was asked for go wrong: in the middle of its update, or before it."""
    adamw, sum_gradients, batch = optimizer.adamws["embedding"], optimizer.sum_gradients, loader.batch
    adamw_step = adamw.step
    current = {}

    def batch_of(step, *others):
        current["step"] = step
        return batch(step, *others)

    def sum_with_nan():
        if current["step"] == args.nan_at:
            next(iter(optimizer.parameters.values())).grad[0] = float("nan")
        sum_gradients()

    def die_or_step(*, step, lr_scale):
        if step == args.die_at:
            os.kill(os.getpid(), signal.SIGKILL)  # Muon has moved its matrices already, AdamW has not
        adamw_step(step=step, lr_scale=lr_scale)

    loader.batch, optimizer.sum_gradients, adamw.step = batch_of, sum_with_nan, die_or_step
    if args.forget:
        optimizer.load_state = lambda whole: None


if __name__ == "__main__":
    main()
