"""Turn a pretraining shard, or conversations, into files of packed rows that training maps into memory.

A row file is `.npy`, uint16, (rows, T+1); a mask file is `.npy`, uint8, of the same shape (1 = supervised target).
Both are written a block at a time, so memory does not grow with the data.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.lib import format as npy

from nanochat.cuts import batches
from nanochat.dataset import DocumentStatistics, read_documents
from nanochat.errors import UserError
from nanochat.messages import Conversation
from nanochat.packing import ConversationStatistics, PackingStatistics, pack_conversations, pack_documents
from nanochat.tokenizer import BATCH_CHARACTERS, Tokenizer

BATCH_CONVERSATIONS = 2_048


def tokenize_shard(
    source: Path | str, destination: Path | str, tokenizer: Tokenizer, *, sequence_len: int, num_threads: int = 1
) -> dict[str, int]:
    """Write the packed rows of a parquet shard and return the counts of DocumentStatistics and PackingStatistics.

    The same bytes for any number of threads. UserError if the shard is broken or fills no row.
    """
    read, packed = DocumentStatistics(), PackingStatistics()
    documents = encode_documents(read_documents(source, statistics=read), tokenizer, num_threads=num_threads)
    blocks = pack_documents(documents, sequence_len=sequence_len, bos_id=tokenizer.bos_id, statistics=packed)
    with RowWriter(destination, sequence_len + 1, np.uint16) as writer:
        for block in blocks:
            writer.append(block)
        if not packed.rows:
            raise UserError(
                f"{source}: its {packed.tokens_in:,} tokens fill no row of {sequence_len + 1:,}. Use larger shards or a "
                "smaller tokens.sequence_len"
            )
    return asdict(read) | asdict(packed)


def tokenize_conversations(
    conversations: Iterable[Conversation],
    rows_path: Path | str,
    masks_path: Path | str,
    tokenizer: Tokenizer,
    *,
    sequence_len: int,
    mask_user: bool,
    num_threads: int = 1,
) -> dict[str, int]:
    """Write the packed rows and masks of conversations and return the counts of ConversationStatistics.

    `mask_user` supervises only what the assistant says; without it every token but the padding is a target.
    A wrong conversation is a UserError that tells its number. The same bytes for any number of threads.
    """
    statistics = ConversationStatistics()
    rendered = _render(conversations, tokenizer, num_threads)
    blocks = pack_conversations(
        rendered,
        sequence_len=sequence_len,
        bos_id=tokenizer.bos_id,
        supervise_all=not mask_user,
        statistics=statistics,
    )
    with (
        RowWriter(rows_path, sequence_len + 1, np.uint16) as row_writer,
        RowWriter(masks_path, sequence_len + 1, np.uint8) as mask_writer,
    ):
        for rows, masks in blocks:
            row_writer.append(rows)
            mask_writer.append(masks)
        if not statistics.rows:
            raise UserError(
                f"conversations: none of the {statistics.without_target:,} has a supervised token within its first "
                f"{sequence_len + 1:,}. Add conversations, or raise tokens.sequence_len"
            )
    return asdict(statistics)


def encode_documents(documents: Iterable[str], tokenizer: Tokenizer, *, num_threads: int = 1) -> Iterator[np.ndarray]:
    """uint16 token ids of each document, starting with <|bos|>, in the order given.

    Threads encode while the caller packs and writes what is done; one batch more than there are threads is in memory.
    """
    encode = partial(tokenizer.encode_batch, bos=True)
    encoding: deque[Future[list[np.ndarray]]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        for batch in batches(documents, BATCH_CHARACTERS):
            encoding.append(pool.submit(encode, batch))
            if len(encoding) > num_threads:
                yield from encoding.popleft().result()
        while encoding:
            yield from encoding.popleft().result()


class RowWriter:
    """Write a two-dimensional .npy file block by block; the number of rows goes into the header at the end.

    The file is removed again if the `with` block fails.
    """

    def __init__(self, path: Path | str, row_len: int, dtype: type):
        self.path = Path(path)
        self.row_len = row_len
        self.dtype = np.dtype(dtype)
        self.num_rows = 0

    def __enter__(self) -> "RowWriter":
        self._file = open(self.path, "wb")
        self._write_header()
        self._data_start = self._file.tell()
        return self

    def append(self, rows: np.ndarray) -> None:
        if rows.dtype != self.dtype or rows.ndim != 2 or rows.shape[1] != self.row_len:
            raise ValueError(f"rows are {rows.dtype} {rows.shape}, the file holds {self.dtype} (n, {self.row_len})")
        self._file.write(np.ascontiguousarray(rows).data)
        self.num_rows += len(rows)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._file:
            if kind is None:
                self._file.seek(0)
                self._write_header()  # numpy leaves room for a larger first dimension
                assert self._file.tell() == self._data_start
        if kind is not None:
            self.path.unlink()

    def _write_header(self) -> None:
        shape = (self.num_rows, self.row_len)
        header = {"descr": npy.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(self._file, header)


def _render(
    conversations: Iterable[Conversation], tokenizer: Tokenizer, num_threads: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    iterator, number = iter(conversations), 0
    while batch := list(islice(iterator, BATCH_CONVERSATIONS)):
        yield from tokenizer.render_conversations(batch, num_threads=num_threads, first_number=number)
        number += len(batch)
