"""Speed of the data path beside the plain ways: tokenizer training, encoding, shards to rows, packing, loading.

    python benchmarks/data.py
    python benchmarks/data.py --shards base_data/*.parquet --vocab-size 32768 --seconds 30 --nanochat ../nanochat

Ours and theirs take turns; printed are the medians, and the median of the ratios within a turn.

rustbpe    learns the same vocabulary from texts that are already in memory
tiktoken   encodes texts that are already in memory with its own batches (encode_ordinary_batch), same vocabulary, same threads
nanochat   its own loader, which tokenizes as it goes, in a process of its own; with --nanochat, from two shards on
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from bisect import bisect_right, insort
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rustbpe
import torch

from nanochat.dataloader import Loader, PackedRows
from nanochat.dataset import iterate_training_text, read_documents
from nanochat.distributed import choose_dtype
from nanochat.gpt import GPT, GPTConfig
from nanochat.optimizer import build_optimizer
from nanochat.packing import PackingStatistics, pack_conversations, pack_documents
from nanochat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer
from nanochat.tokens import tokenize_shard
from nanochat.train import sum_of_losses

SEQUENCE_LEN = 2_048
BATCH_ROWS = 32
DOCUMENT_CHARACTERS = 10_000
STEP = {"depth": 6, "sequence_len": 512, "rows": 32, "micro_batch": 8}  # the training step that loading is compared with
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "base_data"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, nargs="+", help="parquet files with a column text (default: those of the class, "
                        "or made-up text where there are none)")  # fmt: skip
    parser.add_argument("--vocab-size", type=int, default=16_384, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=15, help="of each comparison, at least (default: %(default)s)")
    parser.add_argument("--num-threads", type=int, default=2, help="of the encoders (default: %(default)s)")
    parser.add_argument("--nanochat", type=Path, help="a checkout of karpathy/nanochat")
    args = parser.parse_args()
    torch.set_num_threads(args.num_threads)
    with tempfile.TemporaryDirectory() as folder:
        shards = args.shards or sorted(DATA.glob("*.parquet")) or [write_made_up_shard(Path(folder) / "shard.parquet")]
        measure(shards, Path(folder), args)


def measure(shards: Sequence[Path], folder: Path, args: argparse.Namespace) -> None:
    texts = [document for shard in shards for document in read_documents(shard)]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    print(f"{len(shards)} shards from {shards[0].name} on, {len(texts):,} documents, {megabytes:.1f} MB of text; vocabulary "
          f"{args.vocab_size:,}, rows of {SEQUENCE_LEN:,} + 1, {args.num_threads} threads, {os.cpu_count()} cores")  # fmt: skip
    compare_pairs = partial(take_turns, seconds=args.seconds)

    capped = [text[:DOCUMENT_CHARACTERS] for text in texts]
    capped_megabytes = sum(len(text.encode()) for text in capped) / 1e6
    compare_pairs(
        "tokenizer training, from parquet", capped_megabytes, "MB/s",
        ours=lambda: Tokenizer.train(iterate_training_text(shards, 10**12, DOCUMENT_CHARACTERS), args.vocab_size),
        rustbpe=lambda: rustbpe.Tokenizer().train_from_iterator(
            iter(capped), args.vocab_size - len(SPECIAL_TOKENS), pattern=SPLIT_PATTERN
        ),
    )  # fmt: skip
    tokenizer = Tokenizer.train(capped, args.vocab_size)
    tiktoken_batch = tokenizer._encoding.encode_ordinary_batch
    for threads in sorted({1, args.num_threads}):
        compare_pairs(
            f"encoding, threads: {threads}", megabytes, "MB/s",
            ours=lambda threads=threads: tokenizer.encode_batch(texts, num_threads=threads, bos=True),
            tiktoken=lambda threads=threads: tiktoken_batch(texts, num_threads=threads),
        )  # fmt: skip
    rows = [folder / f"{number:05d}.npy" for number in range(len(shards))]

    def shards_to_rows() -> None:
        for shard, path in zip(shards, rows, strict=True):
            tokenize_shard(shard, path, tokenizer, sequence_len=SEQUENCE_LEN, num_threads=args.num_threads)

    compare_pairs(
        f"parquet to files of rows, threads: {args.num_threads}", megabytes, "MB/s",
        ours=shards_to_rows,
        tiktoken=lambda: tiktoken_batch(texts, num_threads=args.num_threads),
    )  # fmt: skip
    show(
        "of these, reading parquet alone",
        megabytes / seconds_of(lambda: [list(read_documents(shard)) for shard in shards]),
        "MB/s",
    )
    measure_packing(tokenizer.encode_batch(texts, num_threads=args.num_threads, bos=True), tokenizer.bos_id)
    measure_loading(rows, tokenizer, args.seconds)
    if args.nanochat:
        compare_loaders(rows, shards, tokenizer, folder, args)


def measure_packing(documents: list[np.ndarray], bos_id: int) -> None:
    pack = partial(pack_documents, documents, sequence_len=SEQUENCE_LEN, bos_id=bos_id)
    list(pack(statistics=(statistics := PackingStatistics())))
    seconds = seconds_of(lambda: list(pack()))
    show("packing documents", statistics.tokens_in / seconds / 1e6, "M tokens/s")
    show("  lost in the last row", 100 * statistics.tokens_lost / statistics.tokens_in, "% of the tokens")
    show("  <|bos|> added", 100 * statistics.bos_added / statistics.tokens_in, "% of the tokens")
    show("  cuts, after which a document goes on in a further row", statistics.cuts / statistics.documents, "a document")
    cropped = share_cropped([len(document) for document in documents], SEQUENCE_LEN + 1)
    show("  cropped away by nanochat's rule", 100 * cropped, "% of the tokens")
    short = [(document[:300], np.ones(len(document[:300]), np.uint8)) for document in documents]
    seconds = seconds_of(lambda: list(pack_conversations(short, sequence_len=SEQUENCE_LEN, bos_id=bos_id)))
    show("packing conversations of 300 tokens", sum(len(ids) for ids, _ in short) / seconds / 1e6, "M tokens/s")


def share_cropped(lengths: Sequence[int], row_len: int, buffer_size: int = 1_000) -> float:
    """Share of the tokens lost by nanochat (July 2026): best fit among 1,000 documents, else the shortest is cropped to fit.

    Of the second to fourth time through the documents: in the first, the long ones gather in the buffer.
    """
    buffer, taken, cropped, space = sorted(lengths[:buffer_size]), 0, 0, row_len
    for number, length in enumerate([*lengths[buffer_size:], *lengths * 3]):  # one comes as one goes
        document = buffer.pop(max(bisect_right(buffer, space) - 1, 0))
        insort(buffer, length)
        if number >= len(lengths) - buffer_size:
            taken += document
            cropped += max(document - space, 0)
        space = space - document if document < space else row_len
    return cropped / taken


def measure_loading(paths: Sequence[Path], tokenizer: Tokenizer, seconds: float) -> None:
    loader = Loader(PackedRows(paths), batch_rows=BATCH_ROWS, seed=0)
    show(f"loading batches of {BATCH_ROWS} rows, one core", loading_speed(loader, seconds) / 1e6, "M tokens/s")
    depth, length, num_rows = STEP["depth"], STEP["sequence_len"], STEP["rows"]
    step_s = training_step_s(tokenizer.vocab_size)
    load_s = num_rows * length / loading_speed(Loader(PackedRows(paths), num_rows * length // SEQUENCE_LEN, 0), seconds)
    show(f"  of a training step of d{depth}, {num_rows} x {length} tokens, {step_s:.2f} s", 100 * load_s / step_s, "%")


def loading_speed(loader: Loader, seconds: float) -> float:
    """Tokens a second, in steps that follow one another."""
    began, step = time.perf_counter(), 0
    while time.perf_counter() - began < seconds / 5:
        loader.batch(step)
        step += 1
    return step * loader.tokens_per_step / (time.perf_counter() - began)


def training_step_s(vocab_size: int) -> float:
    depth, length, num_rows = STEP["depth"], STEP["sequence_len"], STEP["rows"]
    shape = {"vocab_size": vocab_size, "n_layer": depth, "n_embd": 64 * depth, "n_head": depth // 2, "n_kv_head": depth // 2}
    model = GPT(GPTConfig.preset("nanochat", sequence_len=length, **shape)).init_weights(0)
    model.compute_dtype = choose_dtype("auto", torch.device("cpu"))
    optimizer = build_optimizer(model, matrix_lr=0.02, embedding_lr=0.2, unembedding_lr=0.004)
    x = torch.randint(0, vocab_size, (num_rows, length), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        for inputs in x.split(STEP["micro_batch"]):
            (sum_of_losses(model, inputs, inputs) / x.numel()).backward()
        optimizer.step(step=0, lr_scale=1.0)
        for parameter in model.parameters():
            parameter.grad = None

    step()
    return timed(step)


NANOCHAT = """
import json, sys, time
import tiktoken
from nanochat.dataloader import tokenizing_distributed_data_loader_bos_bestfit as make_loader
from nanochat.tokenizer import RustBPETokenizer

tokens, pattern, special, rows, length, threads, seconds = json.load(sys.stdin)
encoding = tiktoken.Encoding("same", pat_str=pattern, special_tokens=special,
                             mergeable_ranks={bytes.fromhex(token): rank for rank, token in enumerate(tokens)})
loader = make_loader(RustBPETokenizer(encoding, "<|bos|>"), rows, length, "train", tokenizer_threads=threads, device="cpu")
next(loader)
began, batches = time.perf_counter(), 0
while time.perf_counter() - began < seconds:
    next(loader)
    batches += 1
print(batches * rows * length / (time.perf_counter() - began))
"""


def compare_loaders(
    paths: Sequence[Path], shards: Sequence[Path], tokenizer: Tokenizer, folder: Path, args: argparse.Namespace
) -> None:
    data = folder / "base_data_climbmix"
    data.mkdir()
    for shard in shards:  # its loader leaves the last one out, for validation
        (data / shard.name).symlink_to(shard.resolve())
    asked = [[token.hex() for token in tokenizer.tokens], tokenizer.pattern, tokenizer.specials,
             BATCH_ROWS, SEQUENCE_LEN, args.num_threads, args.seconds / 5]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(args.nanochat.resolve()), "NANOCHAT_BASE_DIR": str(folder)}
    ours, theirs = [], []
    for _ in range(3):
        ours.append(loading_speed(Loader(PackedRows(paths), batch_rows=BATCH_ROWS, seed=0), args.seconds / 5))
        done = subprocess.run([sys.executable, "-c", NANOCHAT], input=json.dumps(asked), cwd=args.nanochat, env=environment,
                              capture_output=True, text=True)  # fmt: skip
        if done.returncode:
            sys.exit(f"nanochat's loader failed:\n{done.stderr[-3_000:]}")
        theirs.append(float(done.stdout.split()[-1]))
    ratio = median(a / b for a, b in zip(ours, theirs, strict=True))
    print(f"  {'loading, nanochat tokenizes meanwhile':48} ours {median(ours) / 1e6:8.2f}   "
          f"nanochat {median(theirs) / 1e6:8.2f} M tokens/s   x {ratio:.0f}   (3 turns)")  # fmt: skip


def take_turns(what: str, amount: float, unit: str, *, seconds: float, **ways: Callable[[], object]) -> None:
    """Run two ways in turns for `seconds` and at least three times; print the speed of each in units of `amount`."""
    (ours, our_way), (theirs, their_way) = ways.items()
    turns: list[tuple[float, float]] = []
    began = time.perf_counter()
    while len(turns) < 3 or time.perf_counter() - began < seconds:
        turns.append((timed(our_way), timed(their_way)))
    our_s, their_s = (median(column) for column in zip(*turns, strict=True))
    ratio = median(b / a for a, b in turns)
    print(f"  {what:48} {ours} {amount / our_s:8.2f}   {theirs} {amount / their_s:8.2f} {unit}   x {ratio:.2f}   "
          f"({len(turns)} turns)", flush=True)  # fmt: skip


def seconds_of(work: Callable[[], object]) -> float:
    return min(timed(work) for _ in range(3))


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def show(what: str, value: float, unit: str) -> None:
    print(f"  {what:60} {value:10.4g} {unit}", flush=True)


def write_made_up_shard(path: Path) -> Path:
    """3,000 documents of made-up words, for machines without the real data."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlucmfw", k=rng.randint(1, 9))) for _ in range(20_000)]
    texts = [" ".join(rng.choices(words, k=rng.randint(50, 2_000))) for _ in range(3_000)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=1024)
    return path


if __name__ == "__main__":
    main()
