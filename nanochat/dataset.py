"""Read pretraining documents from a parquet file, as a stream.

A shard is a parquet file with a column `text` of strings, a document a row; other columns are not read. Whole files never need
to be in memory, one row group does. Anything wrong with a file is a UserError that names it.

Covered: every kind of strings that parquet writers make (plain, large, views, dictionaries); documents that are null, empty,
    not UTF-8; row groups of any size. Every row of the file is in one of the counts, or the file is refused.
Not covered: what a document says. Byte-order marks, NUL and other control characters in it stay as they are.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.errors import UserError
from nanochat.text import listed

log = logging.getLogger("nanochat")

BATCH_ROWS = 1024


@dataclass
class DocumentStatistics:
    """What was read, counted while it is read: documents + null_documents + empty_documents == rows of the file."""

    documents: int = 0
    characters: int = 0
    bytes: int = 0
    null_documents: int = 0  # skipped
    empty_documents: int = 0  # skipped; blanks alone count as empty
    invalid_documents: int = 0  # not UTF-8: read with U+FFFD in place of the broken bytes

    @property
    def num_rows(self) -> int:
        return self.documents + self.null_documents + self.empty_documents


def read_documents(path: Path | str, column: str = "text", statistics: DocumentStatistics | None = None) -> Iterator[str]:
    """The documents of a shard in their order, without the null and the empty ones.

    UserError if the file cannot be read, has no rows, or has no such column of strings.
    """
    statistics = statistics if statistics is not None else DocumentStatistics()
    before = statistics.num_rows
    with _open_parquet(path, column) as file:
        for group in range(file.num_row_groups):
            with _readable(path, f"row group {group}"):
                yield from _group_documents(file, group, column, statistics)
        if statistics.num_rows - before != file.metadata.num_rows:
            raise UserError(
                f"{path}: its footer tells of {file.metadata.num_rows:,} rows, and it has {statistics.num_rows - before:,}. "
                "Download it again"
            )


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
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
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
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: a column's name that is not UTF-8
        reason = str(error).split("\n")[0] or type(error).__name__
        raise UserError(f"{path}: cannot read {what} of this parquet file: {reason}. Download it again") from error


@contextmanager
def _open_parquet(path: Path | str, column: str) -> Iterator[pq.ParquetFile]:
    if not Path(path).is_file():
        raise UserError(f"{path}: there is no such file")
    with _readable(path, "the footer"):
        file = pq.ParquetFile(path)
    with file:
        with _readable(path, "the schema"):
            fields = list(file.schema_arrow)
        names = [field.name for field in fields]
        found = [field for field in fields if field.name == column]
        if len(found) != 1:
            number = "no column" if not found else f"{len(found)} columns"
            raise UserError(f"{path}: {number} {column}; its columns are: {listed(names)}")
        if not _is_string(found[0].type):
            raise UserError(f"{path}: column {column} must hold strings, found {str(found[0].type)[:80]}")
        if file.metadata.num_rows == 0:
            raise UserError(f"{path}: the file has no rows")
        yield file


def _is_string(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
