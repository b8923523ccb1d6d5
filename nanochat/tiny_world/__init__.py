"""A small world to train on without internet: people and their facts, sums and spellings, in the originals' formats.

The embedded default of the demo. Every file is a pure function of its name, so that a catalogue may name it by the URL
`generated:<name>` instead of an address. What a trained model can be asked, and why it can only know it from the text, is told
in `people.py` (facts, phrasings, held-out people) and `numbers.py` (sums, word problems, spellings).
"""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.errors import UserError
from nanochat.tiny_world import bundle, numbers, programs, tasks, text

ROW_GROUP = 1024  # documents, as in the pretraining shards of nanochat
DOCUMENTS = {"shard_00000": 16 * ROW_GROUP, "shard_00001": 16 * ROW_GROUP, "shard_00002": ROW_GROUP}
VALIDATION_SHARD = "shard_00002"

STRINGS = pa.list_(pa.string())
CHAT = pa.schema(
    [("messages", pa.list_(pa.struct([("content", pa.string()), ("role", pa.string())]))), ("source", pa.string())]
)
MMLU = pa.schema([("question", pa.string()), ("subject", pa.string()), ("choices", STRINGS), ("answer", pa.int64())])
ARC = pa.schema(
    [
        ("id", pa.string()),
        ("question", pa.string()),
        ("choices", pa.struct([("text", STRINGS), ("label", STRINGS)])),
        ("answerKey", pa.string()),
    ]
)
GSM8K = pa.schema([("question", pa.string()), ("answer", pa.string())])
HUMANEVAL = pa.schema([(name, pa.string()) for name in ("task_id", "prompt", "canonical_solution", "test", "entry_point")])
OPEN_QUESTIONS = pa.schema([("question", pa.string()), ("answer", pa.string()), ("candidates", STRINGS)])


def make_file(name: str, destination: Path) -> None:
    """Write one file of the world; the same bytes every time with the same versions of the libraries."""
    if name not in FILES:
        raise UserError(f"the tiny world has no file {name!r}; there are {', '.join(FILES)}")
    FILES[name](Path(destination))


def file_names() -> list[str]:
    """All names that `make_file` knows."""
    return list(FILES)


def write_shard(name: str) -> Callable[[Path], None]:
    def write(destination: Path) -> None:
        documents = text.documents(DOCUMENTS[name], name, is_validation=name == VALIDATION_SHARD)
        write_table(pa.table({"text": documents}), destination)

    return write


def write_rows(schema: pa.Schema, make_rows: Callable[..., list[dict]], *arguments) -> Callable[[Path], None]:
    return lambda destination: write_table(pa.Table.from_pylist(make_rows(*arguments), schema), destination)


def write_table(table: pa.Table, destination: Path) -> None:
    pq.write_table(table, destination, row_group_size=ROW_GROUP, compression="zstd")


def write_words(destination: Path) -> None:
    # one a line with CRLF line ends, as words_alpha.txt
    destination.write_bytes("".join(word + "\r\n" for word in sorted(numbers.WORDS)).encode("ascii"))


FILES: dict[str, Callable[[Path], None]] = {
    **{f"{shard}.parquet": write_shard(shard) for shard in DOCUMENTS},
    "eval_bundle.zip": bundle.write_bundle,
    "smoltalk/train.parquet": write_rows(CHAT, tasks.conversations, 4096, "smoltalk/train", False),
    "smoltalk/test.parquet": write_rows(CHAT, tasks.conversations, 256, "smoltalk/test", True),
    "open_questions/test.parquet": write_rows(OPEN_QUESTIONS, tasks.open_questions),
    "gsm8k/train.parquet": write_rows(GSM8K, tasks.gsm8k, 2048, "gsm8k/train", False),
    "gsm8k/test.parquet": write_rows(GSM8K, tasks.gsm8k, 100, "gsm8k/test", True),
    "mmlu/auxiliary_train.parquet": write_rows(MMLU, tasks.mmlu, 1024, "mmlu/auxiliary_train", False),
    "mmlu/test.parquet": write_rows(MMLU, tasks.mmlu, 100, "mmlu/test", True),
    "arc_easy/train.parquet": write_rows(ARC, tasks.arc, 512, "arc_easy/train", False, False),
    "arc_easy/test.parquet": write_rows(ARC, tasks.arc, 100, "arc_easy/test", True, False),
    "arc_challenge/train.parquet": write_rows(ARC, tasks.arc, 512, "arc_challenge/train", False, True),
    "arc_challenge/test.parquet": write_rows(ARC, tasks.arc, 100, "arc_challenge/test", True, True),
    "humaneval/test.parquet": write_rows(HUMANEVAL, programs.humaneval),
    "words.txt": write_words,
}
