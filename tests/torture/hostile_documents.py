"""Hostile documents: parquet -> read_documents -> tokens -> rows, compared with what plain Python says of the same bytes.

A trial is told as what went wrong, or None.
"""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.dataset import DocumentStatistics, read_documents
from nanochat.tokenizer import Tokenizer
from nanochat.tokens import tokenize_shard
from torture import ingredients

FILE_ITEMS = 250  # documents or conversations a file
STRING_TYPES = (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.large_string()))
Trials = Iterator[str | None]


def attempt(what: str, function: Callable[[], str | None]) -> str | None:
    """What went wrong in a trial: what `function` says, or whatever it raises. Also panics, which are no Exception."""
    try:
        found = function()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        found = f"{type(error).__name__}: {str(error)[:300]}"
    return found and f"{what}: {found}"


# -- documents ---------------------------------------------------------------------------------------------------------------


def documents(num_files: int, seed: int, tokenizer: Tokenizer, folder: Path, items: int = FILE_ITEMS) -> Trials:
    """A trial a document, and one a file for what files promise as a whole."""
    for number in range(num_files):
        rng = random.Random(f"{seed}/documents/{number}")
        raw = [ingredients.document(rng) for _ in range(items)]
        path = write_documents(raw, folder / "documents.parquet", rng)
        expected = [text for text in map(decoded, raw) if text is not None and text.strip()]
        for place, text in enumerate(expected):
            yield attempt(f"seed {seed}, file {number}, document {place}", lambda text=text: check_encoding(text, tokenizer))
        yield attempt(f"seed {seed}, file {number}", lambda: check_shard(path, raw, expected, tokenizer, rng))  # noqa: B023


def decoded(raw: bytes | None) -> str | None:
    return raw if raw is None else raw.decode(errors="replace")


def write_documents(raw: list[bytes | None], path: Path, rng: random.Random) -> Path:
    """A file as somebody's program may have written it: any kind of strings, row groups and neighbours."""
    binary = pa.array(raw, pa.binary())
    array = pa.Array.from_buffers(pa.string(), len(raw), binary.buffers())  # not checked, as in a file from elsewhere
    kind = rng.choice(STRING_TYPES)
    if pa.types.is_dictionary(kind):
        values = dict.fromkeys(value for value in raw if value is not None)
        places = {value: place for place, value in enumerate(values)}
        strings = pa.array(list(values), pa.binary())
        strings = pa.Array.from_buffers(pa.string(), len(strings), strings.buffers())
        indices = pa.array([None if value is None else places[value] for value in raw], pa.int32())
        array = pa.DictionaryArray.from_arrays(indices, strings)
    else:
        array = binary.cast(pa.large_binary()).view(kind) if pa.types.is_large_string(kind) else array
        array = array.cast(kind)
    columns = {"text": array, "id": range(len(raw)), "text_": ["decoy"] * len(raw), "meta": [{"text": "decoy"}] * len(raw)}
    names = rng.sample(sorted(columns), len(columns))
    table = pa.table({name: columns[name] for name in names if name == "text" or rng.random() < 0.5})
    pq.write_table(table, path, row_group_size=rng.choice([1, 7, 64, 1024]), compression=rng.choice(["zstd", "snappy", "none"]))
    return path


def check_encoding(text: str, tokenizer: Tokenizer) -> str | None:
    ids = tokenizer.encode_array(text)
    if len(ids) and int(ids.max()) >= tokenizer.bos_id:
        return f"id {ids.max()} is a special token's, or none"
    if tokenizer.decode_bytes(ids) != text.encode():
        return "decoded, it is another text"
    return None


def check_shard(path: Path, raw: list, expected: list[str], tokenizer: Tokenizer, rng: random.Random) -> str | None:
    statistics = DocumentStatistics()
    if list(read_documents(path, statistics=statistics)) != expected:
        return "other documents were read than are in the file"
    empty = sum(value is not None and not decoded(value).strip() for value in raw)
    broken = sum(value is not None and value != decoded(value).encode() for value in raw)
    told = (statistics.documents, statistics.null_documents, statistics.empty_documents, statistics.invalid_documents)
    if told != (len(expected), raw.count(None), empty, broken):
        return f"the file has {(len(expected), raw.count(None), empty, broken)}, the counts say {told}"
    return check_document_rows(path, expected, tokenizer, sequence_len=rng.choice([1, 2, 7, 64, 513]))


def check_document_rows(path: Path, expected: list[str], tokenizer: Tokenizer, *, sequence_len: int) -> str | None:
    files = [path.with_name(f"rows{threads}.npy") for threads in (1, 2)]
    counts = [
        tokenize_shard(path, file, tokenizer, sequence_len=sequence_len, num_threads=threads)
        for threads, file in enumerate(files, start=1)
    ]
    if files[0].read_bytes() != files[1].read_bytes() or counts[0] != counts[1]:
        return "one and two threads made different rows"
    found, count = np.load(files[0]), counts[0]
    in_text = np.zeros(tokenizer.vocab_size, np.int64)
    for text in expected:
        in_text += np.bincount(tokenizer.encode_array(text), minlength=tokenizer.vocab_size)
    if count["tokens_in"] != in_text.sum() + len(expected):
        return f"the texts have {in_text.sum() + len(expected)} tokens, the counts say {count['tokens_in']}"
    if found.size != count["tokens_in"] + count["bos_added"] - count["tokens_lost"]:
        return "rows x (T+1) is not tokens_in + bos_added - tokens_lost"
    in_rows = np.bincount(found.ravel(), minlength=tokenizer.vocab_size)
    if in_rows[tokenizer.bos_id + 1 :].any() or not (found[:, 0] == tokenizer.bos_id).all():
        return "special ids in the rows, or a row without <|bos|> in front"
    lost = (in_text - in_rows)[: tokenizer.bos_id]
    if (lost < 0).any() or lost.sum() > count["tokens_lost"] > sequence_len:
        return "tokens appeared or disappeared"
    return None
