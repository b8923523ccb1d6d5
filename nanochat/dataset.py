"""Read parquet files: pretraining documents as a stream, task rows as dicts.

A pretraining shard is a parquet file with one string column `text`, a document a row. Whole files never need to be in
memory. Anything wrong with a file is a UserError that names it.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.errors import UserError

log = logging.getLogger("nanochat")

BATCH_ROWS = 1024


@dataclass
class DocumentStatistics:
    """What was read, counted while it is read."""

    documents: int = 0
    characters: int = 0
    bytes: int = 0
    null_documents: int = 0  # skipped
    empty_documents: int = 0  # skipped; blanks alone count as empty
    invalid_documents: int = 0  # not UTF-8: read with U+FFFD in place of the broken bytes


def read_documents(path: Path | str, column: str = "text", statistics: DocumentStatistics | None = None) -> Iterator[str]:
    """The documents of a shard in their order, without the null and the empty ones.

    UserError if the file cannot be read, has no rows, or has no such column of strings.
    """
    statistics = statistics if statistics is not None else DocumentStatistics()
    with _open_parquet(path, [column]) as file:
        _require_strings(path, file, column)
        for group in range(file.num_row_groups):
            with _readable(path, f"row group {group}"):
                yield from _group_documents(file, group, column, statistics)


def iterate_training_text(paths: Sequence[Path | str], max_characters: int, document_characters: int) -> Iterator[str]:
    """Text to train a tokenizer on: each document cut at `document_characters`, `max_characters` in all.

    The cap keeps a few very long documents from deciding the vocabulary.
    """
    remaining = max_characters
    for path in paths:
        for document in read_documents(path):
            text = document[: min(document_characters, remaining)]
            remaining -= len(text)
            yield text
            if remaining <= 0:
                return
        log.info("tokenizer: read %s, %.0f million characters so far", path, (max_characters - remaining) / 1e6)


def _group_documents(file: pq.ParquetFile, group: int, column: str, statistics: DocumentStatistics) -> Iterator[str]:
    for batch in file.iter_batches(batch_size=BATCH_ROWS, row_groups=[group], columns=[column]):
        for document in _strings(batch.column(0), statistics):
            if document is None:
                statistics.null_documents += 1
            elif not document or document.isspace():
                statistics.empty_documents += 1
            else:
                statistics.documents += 1
                statistics.characters += len(document)
                statistics.bytes += len(document.encode())
                yield document


def _strings(array: pa.Array, statistics: DocumentStatistics) -> list[str | None]:
    """Python strings of an arrow array. Arrow does not promise that its strings are UTF-8, whoever wrote the file."""
    try:
        return array.to_pylist()
    except UnicodeDecodeError:
        return [_decode(value, statistics) for value in array.cast(pa.large_binary()).to_pylist()]


def _decode(value: bytes | None, statistics: DocumentStatistics) -> str | None:
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        statistics.invalid_documents += 1
        return value.decode(errors="replace")


@contextmanager
def _readable(path: Path | str, what: str) -> Iterator[None]:
    """Turn what arrow raises about a broken file into a UserError."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise UserError(f"{path}: cannot read {what} of this parquet file: {reason}. Download it again") from error


@contextmanager
def _open_parquet(path: Path | str, columns: Iterable[str]) -> Iterator[pq.ParquetFile]:
    if not Path(path).is_file():
        raise UserError(f"{path}: there is no such file")
    with _readable(path, "the footer"):
        file = pq.ParquetFile(path)
    with file:
        names = file.schema_arrow.names
        missing = [column for column in columns if column not in names]
        if missing:
            raise UserError(f"{path}: no column {', '.join(missing)}; its columns are: {', '.join(names)}")
        if file.metadata.num_rows == 0:
            raise UserError(f"{path}: the file has no rows")
        yield file


def _require_strings(path: Path | str, file: pq.ParquetFile, column: str) -> None:
    kind = file.schema_arrow.field(column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise UserError(f"{path}: column {column} must hold strings, found {kind}")
