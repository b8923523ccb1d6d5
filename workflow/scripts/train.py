"""Train a model: a fresh one (base_train), or one that another stage made (mid_train, sft). Resumes where it was."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat.errors import UserError
from nanochat.identities import GENERATIONS, identity_of, require_same_tokenizer, require_same_work
from nanochat.jobs.attempt import Attempt
from nanochat.manifest import open_verified, write_json_lines
from nanochat.schedule import flops_per_token, num_training_steps
from nanochat.stage import Stage, log, run_program, stage_parser

if TYPE_CHECKING:
    from nanochat.dataloader import Loader, PackedRows
    from nanochat.distributed import Ranks
    from nanochat.gpt import GPT
    from nanochat.tokenizer import Tokenizer
    from nanochat.train import Numerics, Schedule, Training


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--tokens", type=Path, required=True, help="manifest of the packed rows to train on")
    parser.add_argument("--tokenizer", type=Path, required=True, help="manifest of the tokenizer that made them")
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument("--model", type=json.loads, help="fields of GPTConfig, as JSON: start from fresh weights")
    start.add_argument("--start-from", type=Path, help="manifest of a trained model: start from its weights")
    parser.add_argument("--resume", type=Path, required=True, help="folder of the commits, which outlive this process")
    parser.add_argument("--micro-batch", type=int, default=0, help="rows in a forward pass (0: as many as memory allows)")
    parser.add_argument("--commit-every", type=int, default=0, help="steps between commits (0: only before evaluations)")
    parser.add_argument(
        "--attention-backend", default="auto", help="back end of fused attention: auto, or a name (nanochat.attention)"
    )
    parser.add_argument("--compile", default="auto", choices=["auto", "always", "never"], help="compile the model's blocks")
    parser.add_argument("--recompute", type=int, default=0, choices=[0, 1], help="make activations again, to save memory")
    parser.add_argument(
        "--determinism", default="strict", choices=["strict", "fast"], help="of GPUs: the same bits each time, or not"
    )
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    args = parser.parse_args()

    inputs = {"tokens": args.tokens, "tokenizer": args.tokenizer}
    if args.start_from:
        inputs["start_from"] = args.start_from
    stage = Stage(args.manifest, specification=args.specification, inputs=inputs)
    # before PyTorch is imported, which takes seconds, and this does not; so every rank looks for itself
    if stage.is_done():
        Attempt.from_environment().finished()
    else:
        run(args, stage)


def run(args, stage: Stage) -> None:
    from nanochat.attention import use_attention
    from nanochat.checkpoint import Commits
    from nanochat.compiling import compile_blocks
    from nanochat.dataloader import Loader, fingerprint, open_rows
    from nanochat.determinism import use_deterministic_kernels
    from nanochat.distributed import choose_dtype, join_ranks
    from nanochat.optimizer import Parts, build_optimizer
    from nanochat.recompute import recompute_blocks
    from nanochat.tokenizer import Tokenizer
    from nanochat.train import Schedule, train

    specification = args.specification
    with join_ranks(args.device) as ranks:
        if ranks.device.type == "cuda" and args.determinism == "strict":
            use_deterministic_kernels()  # on CPUs the fast kernels are
        inputs = stage.found
        tokens = open_verified(args.tokens)
        require_same_tokenizer(tokens, inputs["tokenizer"], whose=args.tokenizer)
        tokenizer = Tokenizer.load(open_verified(args.tokenizer).path("tokenizer.json"))
        model = build_model(args, tokenizer, ranks)
        rows, validation = (open_rows(tokens, split, verify=ranks.is_main) for split in ("train", "validation"))
        loader = Loader(rows, specification["total_batch_tokens"] // rows.sequence_len, specification["seed"])
        schedule = Schedule(
            num_steps=count_steps(specification, model, loader),
            lr_scale=specification.get("lr_scale", 1.0),
            warmup_ratio=specification["warmup_ratio"],
            warmdown_ratio=specification["warmdown_ratio"],
            final_lr_ratio=specification["final_lr_ratio"],
        )
        identity = identity_of("training", specification, inputs)
        commits = Commits(args.resume, identity, stage.inputs)
        # what the specification leaves open is chosen when the training begins, and kept wherever it goes on
        kept = commits.numerics() or {}
        model.compute_dtype = choose_dtype(kept.get("dtype", specification["dtype"]), ranks.device)
        numerics = choose_numerics(args, model, loader, schedule, kept, ranks)
        use_attention(model, numerics.attention)
        if args.recompute:
            recompute_blocks(model)
        if numerics.is_compiled:
            compile_blocks(model)
        optimizer = build_optimizer(
            model,
            matrix_lr=specification["matrix_lr"],
            embedding_lr=specification["embedding_lr"],
            unembedding_lr=specification["unembedding_lr"],
            weight_decay=specification["weight_decay"],
            parts=Parts(**specification.get("optimizer", {})),
            warmdown_ratio=specification["warmdown_ratio"],
            ranks=ranks,
        )
        data = {"train": fingerprint(rows), "validation": fingerprint(validation), "order": loader.fingerprint()}
        require_same_work(ranks, {**identity, "schedule": asdict(schedule), "numerics": asdict(numerics), "data": data})
        log.info(
            f"{stage.folder.name}: {model.num_parameters():,} parameters, {schedule.num_steps:,} steps of "
            f"{loader.tokens_per_step:,} tokens, on {ranks.world_size} x {ranks.device.type} in {numerics.dtype}, "
            f"{numerics.micro_batch} rows a forward pass, attention: {numerics.attention}, "
            f"{'sums in any order, ' if numerics.determinism == 'fast' else ''}"
            f"{'compiled, the first step takes longer' if numerics.is_compiled else 'not compiled'}"
        )
        attempt = Attempt.from_environment()
        training = train(
            model,
            optimizer,
            loader,
            name=stage.folder.name,
            schedule=schedule,
            grad_clip=specification["grad_clip"],
            evaluate=partial(
                evaluate,
                validation=validation,
                max_rows=specification["eval_tokens"] // loader.sequence_len,
                micro_batch=numerics.micro_batch,
                tokenizer=tokenizer,
                ranks=ranks,
            ),
            eval_every=specification["eval_every"],
            commits=commits,
            commit_every=args.commit_every,
            numerics=numerics,
            ranks=ranks,
            attempt=attempt,
        )
        if training and ranks.is_main:
            attempt.ensure_held()
            publish(stage, model, tokenizer, schedule, loader, training, ranks)
            attempt.finished()
        ranks.wait()


def build_model(args, tokenizer: Tokenizer, ranks: Ranks) -> GPT:
    from nanochat.checkpoint import load_model
    from nanochat.gpt import GPT, GPTConfig

    if args.start_from:
        model, own = load_model(args.start_from.parent, ranks.device)
        if own.identity != tokenizer.identity:
            size = ", of the same size" if own.vocab_size == tokenizer.vocab_size else ""
            raise UserError(f"{args.start_from}: this model was trained with another tokenizer than {args.tokenizer}{size}")
        tell_generation(args.start_from)
        return model.train()
    config = GPTConfig(**args.model)
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(f"the tokenizer has {tokenizer.vocab_size:,} tokens and the model {config.vocab_size:,}")
    if different := [key for key, value in args.specification["model"].items() if args.model.get(key) != value]:
        raise UserError(f"--model and the specification differ in {', '.join(different)}; the workflow makes both from one")
    return GPT(config).init_weights(args.specification["seed"]).to(ranks.device)


def tell_generation(start_from: Path) -> None:
    """A finished training stays finished when the code changes; what goes on from it should not hide that."""
    found, current = open_verified(start_from).record().get("generation"), GENERATIONS["training"]
    if found != current:
        log.warning(
            f"{start_from.parent}: trained by code of generation {found}; this is generation {current}, which would make other "
            "bits of it. Going on from it as it is; to train it again, delete its folder and its commits"
        )


def count_steps(specification: dict, model: GPT, loader: Loader) -> int:
    if "epochs" in specification:
        return loader.num_steps(specification["epochs"])
    return num_training_steps(
        steps=specification["steps"],
        tokens_per_parameter=specification["tokens_per_parameter"],
        num_parameters=model.num_parameters(),
        total_batch_tokens=specification["total_batch_tokens"],
    )


def choose_numerics(args, model: GPT, loader: Loader, schedule: Schedule, kept: dict, ranks: Ranks) -> Numerics:
    import torch

    from nanochat.attention import choose_attention
    from nanochat.compiling import choose_compiling
    from nanochat.distributed import choose_dtype
    from nanochat.planning.predict import table_speed
    from nanochat.train import Numerics, choose_micro_batch

    rows = loader.batch_rows // ranks.world_size
    requested = args.micro_batch
    if not requested and rows % kept.get("micro_batch", rows + 1) == 0:
        requested = kept["micro_batch"]
    micro_batch = choose_micro_batch(
        requested,
        rows=rows,
        model=model.config.as_dict(),
        dtype=model.dtype_name,
        memory_bytes=ranks.memory_bytes(),
        world_size=ranks.world_size,
        recompute=bool(args.recompute),
    )
    muon_dtype = str(choose_dtype("auto", ranks.device)).removeprefix("torch.")
    attention = kept.get("attention", "auto") if args.attention_backend == "auto" else args.attention_backend
    is_compiled = kept.get("is_compiled") if args.compile == "auto" else None
    if is_compiled is None:
        speed = table_speed(
            model.config.as_dict(), device=None, num_devices=1, cores=torch.get_num_threads() * ranks.world_size
        )
        seconds = schedule.num_steps * loader.tokens_per_step * speed.train_token_s
        is_compiled = choose_compiling(args.compile, device=ranks.device, seconds=seconds)
    return Numerics(
        device_type=ranks.device.type,
        world_size=ranks.world_size,
        dtype=model.dtype_name,
        micro_batch=micro_batch,
        muon_dtype=muon_dtype,
        attention=choose_attention(attention, model, ranks.device),
        is_compiled=is_compiled,
        determinism=args.determinism if ranks.device.type == "cuda" else "strict",
        hardware=ranks.hardware,
    )


def evaluate(
    model: GPT, *, validation: PackedRows, max_rows: int, micro_batch: int, tokenizer: Tokenizer, ranks: Ranks
) -> dict[str, float]:
    from nanochat.dataloader import validation_batches
    from nanochat.loss_eval import evaluate_bpb

    batches = validation_batches(validation, micro_batch, max_rows, rank=ranks.rank, world_size=ranks.world_size)
    found = evaluate_bpb(model, batches, tokenizer.token_bytes(), sum_floats=ranks.sum_floats)
    return {"validation_loss": found["loss"], "validation_bpb": found["bpb"]}


def publish(
    stage: Stage, model: GPT, tokenizer: Tokenizer, schedule: Schedule, loader: Loader, training: Training, ranks: Ranks
) -> None:
    from nanochat.checkpoint import save_model

    files = save_model(stage.folder, model, tokenizer)
    write_json_lines(stage.folder / "metrics.jsonl", training.metrics)
    tokens = schedule.num_steps * loader.tokens_per_step
    losses = [row["loss"] for row in training.metrics if "loss" in row]
    last = training.metrics[-1]
    stage.publish(
        [*files, "metrics.jsonl"],
        results={
            "parameters": model.num_parameters(),
            "steps": schedule.num_steps,
            "tokens": tokens,
            "flops": tokens * flops_per_token(model.config.as_dict()),
            "train_loss": sum(losses[-50:]) / max(1, len(losses[-50:])),
            "validation_loss": last["validation_loss"],
            "validation_bpb": last["validation_bpb"],
        },
        record=training.record(ranks),
    )


if __name__ == "__main__":
    run_program(main)
