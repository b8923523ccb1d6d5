"""Render, tokenize and pack the conversations of a mixture, and those to validate on."""

from pathlib import Path

from nanochat.conversations import build_mixture
from nanochat.manifest import open_verified
from nanochat.stage import Stage, by_key, log, run_program, stage_parser, verified_files
from nanochat.storage import atomic_path
from nanochat.tokenizer import Tokenizer
from nanochat.tokens import tokenize_conversations


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True, help="manifest of the tokenizer")
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="manifests of the catalogue's files that are read")
    parser.add_argument("--files", type=Path, nargs="*", default=[], help="conversation files of your own (JSON lines)")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    specification = args.specification

    data, own_files = by_key(args.data), {str(path): path for path in args.files}
    inputs = {"tokenizer": args.tokenizer, **data, **own_files}
    stage = Stage(args.manifest, specification=specification, inputs=inputs)
    if stage.is_done():
        return
    tokenizer = Tokenizer.load(open_verified(args.tokenizer).path("tokenizer.json"))
    files = verified_files(data) | own_files
    results, names = {}, []
    for split, parts in (("train", specification["mixture"]), ("validation", specification["validation"])):
        mixture = build_mixture(
            parts,
            files=files,
            identity=specification.get("identity"),
            seed=specification["seed"],
            mixture_rows=specification.get("mixture_rows") if split == "train" else None,
        )
        rows, masks = f"{split}.npy", f"{split}_mask.npy"
        with atomic_path(stage.folder / rows) as rows_path, atomic_path(stage.folder / masks) as masks_path:
            counts = tokenize_conversations(
                mixture,
                rows_path,
                masks_path,
                tokenizer,
                sequence_len=specification["sequence_len"],
                mask_user=specification["mask_user"],
                num_threads=args.threads,
            )
        results[split] = {**counts, "parts": mixture.statistics}
        names += [rows, masks]
        log.info(f"tokens  {split}: {len(mixture):,} conversations, {counts['rows']:,} rows")
    stage.publish(names, results=results)


if __name__ == "__main__":
    run_program(main)
