"""Tokenize and pack text: every shard becomes one file of rows, the validation shard another."""

from pathlib import Path

from nanochat.manifest import open_verified
from nanochat.stage import Stage, by_key, log, run_program, stage_parser, verified_files
from nanochat.storage import atomic_path
from nanochat.tokenizer import Tokenizer
from nanochat.tokens import tokenize_shard


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True, help="manifest of the tokenizer")
    parser.add_argument("--shards", type=Path, nargs="+", required=True, help="manifests of the shards to train on")
    parser.add_argument("--validation-shard", type=Path, required=True, help="manifest of the shard to validate on")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    shards, held_out = by_key(args.shards), by_key([args.validation_shard])
    stage = Stage(args.manifest, specification=args.specification, inputs={"tokenizer": args.tokenizer, **shards, **held_out})
    if stage.is_done():
        return
    tokenizer = Tokenizer.load(open_verified(args.tokenizer).path("tokenizer.json"))
    sources = {f"train_{number:05d}.npy": path for number, path in enumerate(verified_files(shards).values())}
    sources["validation.npy"] = next(iter(verified_files(held_out).values()))
    counts = {}
    for number, (name, source) in enumerate(sources.items(), start=1):
        with atomic_path(stage.folder / name) as path:
            counts[name] = tokenize_shard(
                source, path, tokenizer, sequence_len=args.specification["sequence_len"], num_threads=args.threads
            )
        log.info(f"tokens  {number} of {len(sources)} shards  {source.name}  {counts[name]['tokens_in']:,} tokens")
    validation = counts.pop("validation.npy")
    total = {key: sum(count[key] for count in counts.values()) for key in validation}
    stage.publish(list(sources), results={"train": total, "validation": validation})


if __name__ == "__main__":
    run_program(main)
