"""Batches for training as a pure function of (seed, step), read from memory-mapped files of packed rows.

The rows of epoch e are permuted by a generator seeded with (seed, e); the epochs follow one another without a gap, and
step s takes rows [s*B, (s+1)*B) of that endless stream. So the state of the loader is the step: a training that was
killed goes on with the same batches, and another number of ranks sees the same batch, cut into other slices.

B = rows a step on all ranks, T = sequence_len.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from nanochat.errors import UserError
from nanochat.manifest import Artefact


class PackedRows:
    """Row files (.npy, uint16, (n, T+1)) as one virtual array, with the mask files (uint8) that belong to them, if any.

    Nothing is read before it is asked for. UserError if a file is broken or the files do not fit together.
    """

    def __init__(self, paths: Sequence[Path | str], mask_paths: Sequence[Path | str] | None = None):
        if not paths:
            raise UserError("training rows: no row file was given")
        self._rows = [_map_array(path, np.uint16) for path in paths]
        self._masks = [_map_array(path, np.uint8) for path in mask_paths or []]
        widths = {rows.shape[1] for rows in self._rows}
        if len(widths) > 1:
            raise UserError(f"{paths[0]} and the row files after it have rows of different lengths: {sorted(widths)}")
        self.sequence_len = widths.pop() - 1
        self._starts = np.cumsum([0] + [len(rows) for rows in self._rows])
        if len(self) == 0 or self.sequence_len < 1:
            raise UserError(f"{paths[0]}: the row files hold no rows")
        if mask_paths:
            _require_same_shapes(paths, self._rows, mask_paths, self._masks)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def inputs_and_targets(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """x (n, T) and y (n, T), int64: y is x one token later, and -1 where the token is not supervised."""
        rows = self._gather(self._rows, indices)  # (n, T+1)
        x = rows[:, :-1].astype(np.int64)  # (n, T)
        y = rows[:, 1:].astype(np.int64)  # (n, T)
        if self._masks:
            y[self._gather(self._masks, indices)[:, 1:] == 0] = -1
        return torch.from_numpy(x), torch.from_numpy(y)

    def supervised_tokens(self, indices: np.ndarray) -> int:
        """How many targets these rows have: the number of y that are not -1."""
        if not self._masks:
            return len(indices) * self.sequence_len
        return int(np.count_nonzero(self._gather(self._masks, indices)[:, 1:]))

    def _gather(self, arrays: list[np.ndarray], indices: np.ndarray) -> np.ndarray:
        """Rows at global indices. Read in the order in which they lie on the disk, file by file."""
        gathered = np.empty((len(indices), self.sequence_len + 1), dtype=arrays[0].dtype)
        order = np.argsort(indices, kind="stable")
        bounds = np.searchsorted(indices[order], self._starts)
        for file in np.flatnonzero(np.diff(bounds)):
            places = order[bounds[file] : bounds[file + 1]]
            gathered[places] = arrays[file][indices[places] - self._starts[file]]
        return gathered


def open_rows(tokens: Artefact, split: str, *, verify: bool = True) -> PackedRows:
    """The rows of a split (train, validation) that a tokens stage published, with their masks."""
    names = sorted(name for name in tokens.files if name.startswith(split))
    rows = [tokens.path(name, verify=verify) for name in names if "mask" not in name]
    masks = [tokens.path(name, verify=verify) for name in names if "mask" in name]
    if not rows:
        raise UserError(f"{tokens.manifest}: lists no rows for {split}")
    return PackedRows(rows, masks)


def fingerprint(rows: PackedRows, num_rows: int = 64) -> str:
    """Of the shapes of all files, and of some rows spread over them: two ranks that opened other files differ in it.

    Not covered: a difference in the rows between. The main rank reads them all, and compares them with their manifest.
    """
    digest = hashlib.sha256(repr([array.shape for array in (*rows._rows, *rows._masks)]).encode())
    indices = np.linspace(0, len(rows) - 1, num=min(num_rows, len(rows)), dtype=np.int64)
    for tensor in rows.inputs_and_targets(indices):
        digest.update(tensor.numpy().astype("<i8").tobytes())
    return digest.hexdigest()


class Loader:
    """Batches of `batch_rows` rows a step.

    >>> loader = Loader(PackedRows(["train.npy"]), batch_rows=256, seed=42)
    >>> x, y = loader.batch(step=1000, rank=3, world_size=8)  # (32, T) each
    """

    def __init__(self, rows: PackedRows, batch_rows: int, seed: int):
        if batch_rows < 1:
            raise UserError(f"total_batch_tokens: gives {batch_rows} rows a step; at least one row is needed")
        self.rows = rows
        self.batch_rows = batch_rows
        self.seed = seed
        self._orders: dict[int, np.ndarray] = {}  # epoch -> permutation

    @property
    def sequence_len(self) -> int:
        return self.rows.sequence_len

    @property
    def tokens_per_step(self) -> int:
        """Inputs of a step, over all ranks."""
        return self.batch_rows * self.sequence_len

    def num_steps(self, epochs: float) -> int:
        """Steps until every row was seen `epochs` times; the last step may reach into the next epoch."""
        return max(1, math.ceil(epochs * len(self.rows) / self.batch_rows - 1e-9))

    def step_rows(self, step: int) -> np.ndarray:
        """Global indices (B,) of the rows of a step."""
        position, end = step * self.batch_rows, (step + 1) * self.batch_rows
        parts = []
        while position < end:
            epoch, offset = divmod(position, len(self.rows))
            part = self._order(epoch)[offset : offset + end - position]
            parts.append(part)
            position += len(part)
        return np.concatenate(parts)

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """x and y, int64 (B / world_size, T), of one rank: its contiguous slice of the step."""
        if self.batch_rows % world_size:
            raise UserError(
                f"total_batch_tokens: gives {self.batch_rows} rows a step, which {world_size} ranks cannot share evenly"
            )
        share = self.batch_rows // world_size
        return self.rows.inputs_and_targets(self.step_rows(step)[rank * share : (rank + 1) * share])

    def supervised_tokens(self, step: int) -> int:
        """Targets of the whole step, over all ranks: what the loss of the step is divided by."""
        return self.rows.supervised_tokens(self.step_rows(step))

    def fingerprint(self) -> str:
        """Of the order in which the rows come, in the first epoch."""
        return hashlib.sha256(self._order(0).astype("<i8").tobytes()).hexdigest()

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            generator = np.random.Generator(np.random.PCG64([self.seed, epoch]))
            kept = {known: order for known, order in self._orders.items() if known == epoch - 1}
            self._orders = kept | {epoch: generator.permutation(len(self.rows))}
        return self._orders[epoch]


def validation_batches(
    rows: PackedRows, micro_batch: int, max_rows: int | None = None, rank: int = 0, world_size: int = 1
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (x, y) of at most micro_batch rows: every row at most once, the same rows for any number of ranks.

    With `max_rows` they are spread evenly over the files, since packing puts long documents first. A rank may get one
    row less than another, so sum over the ranks after the loop, not inside it.
    """
    num_rows = len(rows) if max_rows is None else min(max_rows, len(rows))
    indices = np.arange(num_rows) * len(rows) // max(num_rows, 1)
    indices = np.array_split(indices, world_size)[rank]
    for start in range(0, len(indices), micro_batch):
        yield rows.inputs_and_targets(indices[start : start + micro_batch])


def _map_array(path: Path | str, dtype: type) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot read this file of packed rows: {error}. Run the tokens stage again") from error
    if array.ndim != 2 or array.dtype != dtype:
        raise UserError(f"{path}: expected rows of {np.dtype(dtype)}, found {array.dtype} of shape {array.shape}")
    return array


def _require_same_shapes(
    paths: Sequence[Path | str], rows: list[np.ndarray], mask_paths: Sequence[Path | str], masks: list[np.ndarray]
) -> None:
    if len(paths) != len(mask_paths):
        raise UserError(f"training rows: {len(paths)} row files but {len(mask_paths)} mask files")
    for path, mask_path, row, mask in zip(paths, mask_paths, rows, masks, strict=True):
        if row.shape != mask.shape:
            raise UserError(f"{mask_path}: its shape {mask.shape} is not that of {path}, {row.shape}")
