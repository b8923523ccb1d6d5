"""Evaluate a base model: bits per byte on train and validation rows, the CORE tasks, samples."""

from pathlib import Path

from nanochat.checkpoint import load_model
from nanochat.core_eval import evaluate_core
from nanochat.dataloader import PackedRows, validation_batches
from nanochat.distributed import Ranks, join_ranks
from nanochat.engine import Engine
from nanochat.gpt import GPT
from nanochat.loss_eval import evaluate_bpb
from nanochat.manifest import Artefact, open_verified, write_json, write_json_lines
from nanochat.stage import Stage, by_key, log, run_program, stage_parser, verified_files
from nanochat.tokenizer import Tokenizer

EVAL_ROWS_AT_ONCE = 8


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="manifest of the base model")
    parser.add_argument("--tokens", type=Path, required=True, help="manifest of the packed text")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="manifest of the CORE bundle")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    args = parser.parse_args()

    with join_ranks(args.device) as ranks:
        data = by_key(args.data)
        inputs = {"model": args.model, "tokens": args.tokens, **data}
        stage = Stage(args.manifest, specification=args.specification, inputs=inputs)
        if ranks.from_main(ranks.is_main and stage.is_done()):
            return
        model, tokenizer = load_model(args.model.parent, ranks.device)
        bits_per_byte = evaluate_rows(model, tokenizer, open_verified(args.tokens), args.specification["eval_tokens"], ranks)
        core, examples = evaluate_core(
            model,
            tokenizer,
            verified_files(data)["eval_bundle"],
            tasks=args.specification["tasks"],
            max_per_task=args.specification["max_per_task"],
            rank=ranks.rank,
            world_size=ranks.world_size,
            gather=ranks.gather_objects,
        )
        if ranks.is_main:
            samples = draw_samples(model, tokenizer, args.specification)
            publish(stage, bits_per_byte, core, examples, samples, {**ranks.record(), "dtype": model.dtype_name})
        ranks.wait()


def evaluate_rows(model: GPT, tokenizer: Tokenizer, tokens: Artefact, eval_tokens: int, ranks: Ranks) -> dict[str, float]:
    found = {}
    for split in ("train", "validation"):
        names = sorted(name for name in tokens.files if name.startswith(split))
        rows = PackedRows([tokens.path(name, verify=ranks.is_main) for name in names])
        max_rows = eval_tokens // rows.sequence_len
        batches = validation_batches(rows, EVAL_ROWS_AT_ONCE, max_rows, ranks.rank, ranks.world_size)
        found[split] = evaluate_bpb(model, batches, tokenizer.token_bytes(), sum_floats=ranks.sum_floats)["bpb"]
        log.info(f"bits per byte on {split} rows: {found[split]:.4f}")
    return found


def draw_samples(model: GPT, tokenizer: Tokenizer, specification: dict) -> list[dict[str, str]]:
    prompts = specification["samples"]
    texts = Engine(model, tokenizer).complete(
        prompts, max_new_tokens=specification["sample_tokens"], seed=specification["seed"]
    )
    return [{"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)]


def publish(stage: Stage, bits_per_byte: dict, core: dict, examples: list[dict], samples: list[dict], record: dict) -> None:
    results = {"bits_per_byte": bits_per_byte, **core, "samples": samples}
    write_json(stage.folder / "core.json", core)
    write_json(stage.folder / "samples.json", samples)
    write_json_lines(stage.folder / "examples.jsonl", examples)
    stage.publish(["core.json", "examples.jsonl", "samples.json"], results=results, record=record)


if __name__ == "__main__":
    run_program(main)
