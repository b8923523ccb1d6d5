"""Train the tokenizer on the first shards, and compare its compression with known vocabularies."""

from pathlib import Path

from nanochat.dataset import iterate_training_text
from nanochat.stage import Stage, by_key, log, run_program, stage_parser, verified_files
from nanochat.storage import atomic_path
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer_eval import compare_compression


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--shards", type=Path, nargs="+", required=True, help="manifests of the shards to train on")
    parser.add_argument("--validation-shard", type=Path, required=True, help="manifest of the shard to compare on, too")
    parser.add_argument(
        "--vocabularies", type=Path, nargs="*", default=[], help="manifests of GPT-2's and GPT-4's vocabularies"
    )
    args = parser.parse_args()
    specification = args.specification

    shards, vocabularies = by_key(args.shards), by_key(args.vocabularies)
    inputs = {**shards, **by_key([args.validation_shard]), **vocabularies}
    stage = Stage(args.manifest, specification=specification, inputs=inputs)
    if stage.is_done():
        return
    files = verified_files(inputs)
    training = [files[key] for key in shards]
    text = iterate_training_text(training, specification["max_characters"], specification["document_characters"])
    tokenizer = Tokenizer.train(text, specification["vocab_size"])
    with atomic_path(stage.folder / "tokenizer.json") as path:
        tokenizer.save(path)
    log.info(f"trained a vocabulary of {tokenizer.vocab_size:,}")
    (validation,) = by_key([args.validation_shard])
    texts = {"train": training[0], "val": files[validation]}
    results = compare_compression(tokenizer, texts, {key: files[key] for key in vocabularies})
    stage.publish(["tokenizer.json"], results={"vocab_size": tokenizer.vocab_size, "bytes_per_token": results})


if __name__ == "__main__":
    run_program(main)
