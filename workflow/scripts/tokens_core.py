"""Render and tokenize the prompts of the CORE tasks."""

from pathlib import Path

from nanochat.core_tokens import prepare, save
from nanochat.manifest import open_verified
from nanochat.stage import Stage, by_key, log, run_program, stage_parser, verified_files
from nanochat.tokenizer import Tokenizer


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True, help="manifest of the tokenizer")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="manifest of the CORE bundle")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    data = by_key(args.data)
    stage = Stage(args.manifest, specification=args.specification, inputs={"tokenizer": args.tokenizer, **data})
    if stage.is_done():
        return
    tokenizer = Tokenizer.load(open_verified(args.tokenizer).path("tokenizer.json"))
    bundle = verified_files(data)["eval_bundle"]
    core = prepare(bundle, tokenizer, **args.specification, num_threads=args.threads)
    for task in core.tasks:
        log.info(f"tokens  {task.label}: {len(task):,} of {task.num_available:,} items, {task.num_tokens():,} tokens")
    stage.publish(save(core, stage.folder), results=core.summary())


if __name__ == "__main__":
    run_program(main)
