"""Evaluate a base model: bits per byte on train and validation rows, the CORE tasks, samples. Goes on where it was."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat.identities import GENERATIONS, require_same_tokenizer
from nanochat.jobs.attempt import Attempt
from nanochat.manifest import Artefact, open_verified, write_json, write_json_lines
from nanochat.partial import Parts, Stopped, Work, finish
from nanochat.stage import Stage, log, run_program, stage_parser

if TYPE_CHECKING:
    from nanochat.gpt import GPT
    from nanochat.tokenizer import Tokenizer

SPLITS = ("train", "validation")
EVAL_ROWS_AT_ONCE = 8


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="manifest of the base model")
    parser.add_argument("--tokens", type=Path, required=True, help="manifest of the packed text")
    parser.add_argument("--core", type=Path, required=True, help="manifest of the prompts of CORE")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    args = parser.parse_args()

    attempt = Attempt.from_environment()
    inputs = {"model": args.model, "tokens": args.tokens, "core": args.core}
    stage = Stage(args.manifest, specification=args.specification, inputs=inputs)
    # before anything imports PyTorch, which takes seconds, and this does not; so every rank looks for itself
    if stage.is_done():
        finish(attempt)
    else:
        run(args, stage, attempt)


def run(args, stage: Stage, attempt: Attempt) -> None:
    from nanochat import core_tokens
    from nanochat.checkpoint import load_model
    from nanochat.core_eval import evaluate_core
    from nanochat.distributed import join_ranks
    from nanochat.inference import make_ready

    specification = args.specification
    with join_ranks(args.device) as ranks:
        if ranks.is_main:
            attempt.report(stage="base_eval", state="starting", **ranks.record())
        tokens, prompts = open_verified(args.tokens), open_verified(args.core)
        for artefact in (tokens, prompts):
            require_same_tokenizer(artefact, open_verified(args.model).inputs.get("tokenizer"), whose=args.model)
        model, tokenizer = load_model(args.model.parent, ranks.device)
        make_ready(model)
        tasks = core_tokens.load(prompts, verify=ranks.is_main)
        machine = {**ranks.record(), "hardware": ranks.hardware, "dtype": model.dtype_name}
        parts = Parts.of_stage(
            stage,
            ranks,
            name="base_eval",
            num_tasks=len(SPLITS) + len(tasks.tasks) + 1,  # and the samples
            attempt=attempt,
            machine=machine,
        )
        try:
            bits_per_byte = evaluate_rows(model, tokenizer, tokens, specification["eval_tokens"], parts)
            parts.expect({"samples": Work("samples", 0)})  # seconds, and nothing to tell them from
            core, examples = evaluate_core(model, tokenizer, tasks, parts=parts)
            draw = partial(draw_samples, model, tokenizer, specification)
            samples = parts.run("samples", lambda: draw() if ranks.is_main else [])
        except Stopped:
            parts.say_stopped()
            return
        if ranks.is_main:
            results = {"bits_per_byte": bits_per_byte, **core, "samples": samples}
            write_json(stage.folder / "core.json", core)
            write_json(stage.folder / "samples.json", samples)
            write_json_lines(stage.folder / "examples.jsonl", examples)
            parts.publish(
                stage,
                ["core.json", "examples.jsonl", "samples.json"],
                results=results,
                record={**machine, "generation": GENERATIONS["base_eval"]},
            )
        ranks.wait()


def evaluate_rows(model: GPT, tokenizer: Tokenizer, tokens: Artefact, eval_tokens: int, parts: Parts) -> dict[str, float]:
    parts.expect({f"bits_per_byte_{split}": Work("bits_per_byte", eval_tokens) for split in SPLITS})
    found = {}
    for split in SPLITS:
        name = f"bits_per_byte_{split}"
        found[split] = parts.run(name, partial(evaluate_split, model, tokenizer, tokens, split, eval_tokens, parts))
        log.info("bits per byte on %s rows: %.4f, %s", split, found[split], parts.took(name))
    return found


def evaluate_split(model: GPT, tokenizer: Tokenizer, tokens: Artefact, split: str, eval_tokens: int, parts: Parts) -> float:
    from nanochat.dataloader import open_rows, validation_batches
    from nanochat.loss_eval import evaluate_bpb

    ranks = parts.ranks
    rows = open_rows(tokens, split, verify=ranks.is_main)
    max_rows = eval_tokens // rows.sequence_len
    batches = validation_batches(rows, EVAL_ROWS_AT_ONCE, max_rows, ranks.rank, ranks.world_size)
    num_batches = -(-min(max_rows, len(rows)) // (EVAL_ROWS_AT_ONCE * ranks.world_size))
    batches = parts.until_stopped(batches, total=num_batches)
    return evaluate_bpb(model, batches, tokenizer.token_bytes(), sum_floats=parts.sum_floats)["bpb"]


def draw_samples(model: GPT, tokenizer: Tokenizer, specification: dict) -> list[dict[str, str]]:
    from nanochat.engine import Engine

    prompts = specification["samples"]
    texts = Engine(model, tokenizer).complete(
        prompts, max_new_tokens=specification["sample_tokens"], seed=specification["seed"]
    )
    return [{"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)]


if __name__ == "__main__":
    run_program(main)
