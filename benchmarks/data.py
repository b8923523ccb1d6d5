"""Speed of the data path: tokenizer training, encoding, packing, loading. About half a minute.

python benchmarks/data.py [--shard ../shared/data/base_data/shard_00000.parquet] [--num-threads 2]
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.dataloader import Loader, PackedRows
from nanochat.dataset import iterate_training_text, read_documents
from nanochat.packing import PackingStatistics, pack_conversations, pack_documents
from nanochat.tokenizer import Tokenizer
from nanochat.tokens import tokenize_shard

VOCAB_SIZE = 16_384
SEQUENCE_LEN = 2_048
DEFAULT_SHARD = Path(__file__).resolve().parents[2] / "shared" / "data" / "base_data" / "shard_00000.parquet"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shard", type=Path, default=DEFAULT_SHARD, help="a parquet file with a column text")
    parser.add_argument("--num-threads", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shard = args.shard if args.shard.is_file() else write_made_up_shard(Path(folder) / "shard.parquet")
        print(f"{shard}, {args.num_threads} threads, vocabulary {VOCAB_SIZE:,}, T = {SEQUENCE_LEN:,}")
        measure(shard, Path(folder) / "rows.npy", args.num_threads)


def measure(shard: Path, rows_path: Path, num_threads: int) -> None:
    documents = list(read_documents(shard))
    megabytes = sum(len(document.encode()) for document in documents) / 1e6
    _, seconds = timed(lambda: list(read_documents(shard)))
    show("parquet reading", megabytes / seconds, "MB/s")
    tokenizer, seconds = timed(lambda: Tokenizer.train(iterate_training_text([shard], 10**9, 10**4), VOCAB_SIZE))
    show("tokenizer training", megabytes / seconds, "MB/s")

    tiktoken_batch = tokenizer._encoding.encode_ordinary_batch
    for threads in sorted({1, num_threads}):
        _, seconds = timed(lambda threads=threads: tiktoken_batch(documents, num_threads=threads))
        show(f"encoding, tiktoken's own batch, {threads} threads", megabytes / seconds, "MB/s")
        ids, seconds = timed(lambda threads=threads: tokenizer.encode_batch(documents, num_threads=threads, bos=True))
        show(f"encoding, ours, {threads} threads", megabytes / seconds, "MB/s")

    measure_packing(ids, tokenizer.bos_id)
    counts, seconds = timed(
        lambda: tokenize_shard(shard, rows_path, tokenizer, sequence_len=SEQUENCE_LEN, num_threads=num_threads)
    )
    show("shard to row file", counts["tokens_in"] / seconds / 1e6, "M tokens/s")
    measure_loading(rows_path)


def measure_packing(ids: list[np.ndarray], bos_id: int) -> None:
    num_tokens = sum(map(len, ids))
    statistics = PackingStatistics()
    pack = lambda: list(pack_documents(ids, sequence_len=SEQUENCE_LEN, bos_id=bos_id, statistics=statistics))  # noqa: E731
    _, seconds = timed(pack)
    show("packing documents", num_tokens / seconds / 1e6, "M tokens/s")
    show("  tokens lost", 100 * statistics.tokens_lost / num_tokens, "%")
    show("  <|bos|> added", 100 * statistics.bos_added / num_tokens, "%")
    short = [(document[:300], np.ones(len(document[:300]), np.uint8)) for document in ids]
    _, seconds = timed(lambda: list(pack_conversations(short, sequence_len=SEQUENCE_LEN, bos_id=bos_id)))
    show("packing conversations of 300 tokens", sum(len(tokens) for tokens, _ in short) / seconds / 1e6, "M tokens/s")


def measure_loading(rows_path: Path) -> None:
    loader = Loader(PackedRows([rows_path]), batch_rows=32, seed=0)
    _, seconds = timed(lambda: [loader.batch(step) for step in range(200)])
    show("loading", 200 * loader.tokens_per_step / seconds / 1e6, "M tokens/s")


def timed(work: Callable):
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def show(what: str, value: float, unit: str) -> None:
    print(f"  {what:45} {value:10.3f} {unit}")


def write_made_up_shard(path: Path) -> Path:
    """3,000 documents of made-up words, for machines without the real data."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlucmfw", k=rng.randint(1, 9))) for _ in range(20_000)]
    texts = [" ".join(rng.choices(words, k=rng.randint(50, 2_000))) for _ in range(3_000)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=1024)
    return path


if __name__ == "__main__":
    main()
