"""Texts of any length in bounded memory and processor time, and vocabularies that depend on the texts alone."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

Trials = Iterator[str | None]
PATHS = {"PYTHONPATH": str(Path(__file__).parents[1])}  # to find this package in the processes started here
MEMORY_MB = 3_000  # for a text of 100 million characters; it takes less than half

LONG_TEXTS: dict[str, Callable[[int], str]] = {
    "words": lambda n: "the quick brown fox " * (n // 20),
    "blanks": lambda n: " " * (n - 1) + "x",
    "one word": lambda n: "abcdefghij" * (n // 10),
    "runs just short of a cut": lambda n: ("x" * 9_999 + " ") * (n // 10_000),
    "blanks just short of a cut": lambda n: (" " * 9_999 + "x") * (n // 10_000),
    "combining marks": lambda n: "e" + "\u0301" * (n // 2),
    "line ends": lambda n: "\r\n" * (n // 2 - 1) + "x",
}
PROGRAM = """
import json, resource, sys
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq
from nanochat.tokenizer import Tokenizer
from nanochat.tokens import tokenize_conversations, tokenize_shard
from nanochat.tasks import build
from torture.hostile_sizes import LONG_TEXTS
name, length, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
tokenizer = Tokenizer([b"th", b"e "])
text = LONG_TEXTS[name](length)
pq.write_table(pa.table({"text": [text]}), folder / "huge.parquet")
(folder / "huge.jsonl").write_text(json.dumps([{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]))
num_bytes = len(text.encode())
del text
counts = tokenize_shard(folder / "huge.parquet", folder / "rows.npy", tokenizer, sequence_len=2048)
assert counts["documents"] == 1 and counts["bytes"] == num_bytes, counts
talk = build("custom", split="train", files={}, file=folder / "huge.jsonl")
counts = tokenize_conversations(talk, folder / "c.npy", folder / "m.npy", tokenizer, sequence_len=2048, mask_user=True)
assert counts["truncated"] == 1 and counts["tokens_in"] - counts["tokens_truncated"] == 2049, counts
"""


def huge(length: int, folder: Path) -> Trials:
    """Documents and answers of `length` characters, each in a process of limited processor time and memory, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        yield from pool.map(lambda name: one_huge(name, length, folder / name.replace(" ", "_")), LONG_TEXTS)


def one_huge(name: str, length: int, folder: Path) -> str | None:
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name, str(length), str(folder)],
        preexec_fn=partial(limit, cpu_s=20 + length // 1_000_000),  # it takes 2 to start, and a tenth of a second a million
        env=os.environ | PATHS,
        capture_output=True,
        text=True,
    )
    shutil.rmtree(folder)
    return None if done.returncode == 0 else f"{name}: exit code {done.returncode}, {done.stderr[-300:]}"


def limit(cpu_s: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_MB * 2**20, MEMORY_MB * 2**20))


# -- the same vocabulary -----------------------------------------------------------------------------------------------------


def vocabularies(seed: int, *, runs: int) -> Trials:
    """Trained on hostile text in processes with other numbers of threads, hash seeds and orders of the texts."""
    program = (
        "import random, sys; from nanochat.tokenizer import Tokenizer; from torture import ingredients;"
        "rng = random.Random(sys.argv[1]); texts = [ingredients.text(rng, surrogates=True) for _ in range(800)];"
        "random.Random(int(sys.argv[2])).shuffle(texts); print(Tokenizer.train(texts, 600).identity)"
    )
    found: list[str] = []
    for number in range(runs):
        threads = ("1", "2", "4", "7")[number % 4]
        environment = os.environ | PATHS | {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": str(number)}
        command = [sys.executable, "-c", program, f"{seed}/training", str(number)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        found.append(done.stdout)
        same = done.returncode == 0 and found[-1] == found[0]
        yield None if same else f"{threads} threads, order {number}: another vocabulary, or {done.stderr[-200:]}"
