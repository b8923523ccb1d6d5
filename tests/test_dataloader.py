"""The loader: a pure function of (seed, step), the same batch for any number of ranks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.dataloader import Loader, PackedRows, validation_batches
from nanochat.errors import UserError

T = 6


def write_rows(folder, sizes=(5, 1, 7), *, masked: bool = False) -> PackedRows:
    """Row i holds the tokens 100 * i, 100 * i + 1, ...; its mask is the binary digits of a random number."""
    rng = np.random.default_rng(3)
    paths, mask_paths, first = [], [], 0
    for number, size in enumerate(sizes):
        rows = (100 * np.arange(first, first + size)[:, None] + np.arange(T + 1)).astype(np.uint16)
        masks = rng.integers(0, 2, (size, T + 1)).astype(np.uint8)
        paths.append(folder / f"train_{number:05d}.npy")
        mask_paths.append(folder / f"train_{number:05d}_mask.npy")
        np.save(paths[-1], rows)
        np.save(mask_paths[-1], masks)
        first += size
    return PackedRows(paths, mask_paths if masked else None)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> PackedRows:
    return write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def masked_rows(tmp_path_factory) -> PackedRows:
    return write_rows(tmp_path_factory.mktemp("masked"), masked=True)


def row_numbers(x: torch.Tensor) -> list[int]:
    return (x[:, 0] // 100).tolist()


def test_files_are_one_array(rows):
    assert len(rows) == 13 and rows.sequence_len == T
    indices = np.array([12, 0, 5, 5, 4, 6])
    x, y = rows.inputs_and_targets(indices)
    assert x.dtype == y.dtype == torch.int64 and x.shape == y.shape == (6, T)
    assert x.tolist() == [[100 * i + t for t in range(T)] for i in indices]
    assert y.tolist() == [[100 * i + t + 1 for t in range(T)] for i in indices]


def test_targets_that_are_not_supervised_are_minus_one(tmp_path):
    masked_rows = write_rows(tmp_path, masked=True)
    x, y = masked_rows.inputs_and_targets(np.arange(13))
    masks = np.concatenate([np.load(path) for path in sorted(tmp_path.glob("*_mask.npy"))])
    for i in range(13):
        for t in range(T):
            assert y[i, t] == (100 * i + t + 1 if masks[i, t + 1] else -1)
    assert masked_rows.supervised_tokens(np.arange(13)) == (y != -1).sum() == masks[:, 1:].sum()
    assert row_numbers(x) == list(range(13))


def test_an_epoch_is_every_row_once_and_epochs_differ(rows):
    loader = Loader(rows, batch_rows=4, seed=7)
    stream = np.concatenate([loader.step_rows(step) for step in range(13)])  # 52 rows, 4 epochs
    epochs = stream.reshape(4, 13)
    assert all(sorted(epoch) == list(range(13)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4


def test_the_order_is_the_stated_generator(rows):
    expected = [np.random.Generator(np.random.PCG64([7, epoch])).permutation(13) for epoch in range(3)]
    loader = Loader(rows, batch_rows=5, seed=7)
    assert (loader.step_rows(4) == np.concatenate(expected)[20:25]).all()
    # a NumPy that permutes otherwise would resume a training on other data; it must not pass unnoticed
    assert expected[0].tolist() == [6, 8, 0, 7, 4, 1, 10, 3, 12, 2, 5, 9, 11]


def test_a_step_is_a_pure_function_of_seed_and_step(rows):
    forward, backward = Loader(rows, 4, 7), Loader(rows, 4, 7)
    ascending = [forward.step_rows(step).tolist() for step in range(20)]
    descending = [backward.step_rows(step).tolist() for step in reversed(range(20))]
    assert ascending == descending[::-1]
    assert Loader(rows, 4, 7).step_rows(19).tolist() == ascending[19]
    assert Loader(rows, 4, 8).step_rows(0).tolist() != ascending[0]


@settings(max_examples=50, deadline=None)
@given(step=st.integers(0, 200), share=st.integers(1, 4), world_size=st.sampled_from([1, 2, 3, 8]))
def test_ranks_slice_the_batch_of_one_process(masked_rows, step, share, world_size):
    loader = Loader(masked_rows, batch_rows=share * world_size, seed=1)
    x, y = loader.batch(step)
    shares = [loader.batch(step, rank, world_size) for rank in range(world_size)]
    assert all(len(part) == share for part, _ in shares)
    assert torch.equal(torch.cat([part for part, _ in shares]), x)
    assert torch.equal(torch.cat([part for _, part in shares]), y)
    assert row_numbers(x) == loader.step_rows(step).tolist()
    assert loader.supervised_tokens(step) == (y != -1).sum()


def test_without_masks_every_target_counts(rows):
    loader = Loader(rows, 8, 0)
    assert loader.supervised_tokens(3) == 8 * T == (loader.batch(3)[1] != -1).sum() == loader.tokens_per_step


def test_fewer_rows_than_a_step_go_round(tmp_path):
    loader = Loader(write_rows(tmp_path, (3,)), batch_rows=8, seed=0)
    stream = np.concatenate([loader.step_rows(step) for step in range(3)])
    assert np.bincount(stream).tolist() == [8, 8, 8]


@pytest.mark.parametrize(("epochs", "steps"), [(1, 4), (2, 7), (0.5, 2), (0.01, 1), (3, 10), (0.3, 1)])
def test_steps_of_an_epoch_see_every_row(rows, epochs, steps):
    assert Loader(rows, 4, 0).num_steps(epochs) == steps  # 13 rows, 4 a step


def test_ranks_that_cannot_share_a_step_are_refused(rows):
    with pytest.raises(UserError, match="gives 10 rows a step, which 4 ranks cannot share"):
        Loader(rows, 10, 0).batch(0, 1, 4)
    with pytest.raises(UserError, match="gives 0 rows a step"):
        Loader(rows, 0, 0)


@pytest.mark.parametrize("max_rows", [None, 1, 5, 12, 13, 100])
@pytest.mark.parametrize("world_size", [1, 2, 5, 16])
def test_validation_reads_the_same_rows_once_for_any_world_size(rows, max_rows, world_size):
    seen = []
    for rank in range(world_size):
        for x, y in validation_batches(rows, 2, max_rows, rank, world_size):
            assert 1 <= len(x) <= 2 and torch.equal(x[:, 1:], y[:, :-1])
            seen += row_numbers(x)
    alone = [number for x, _ in validation_batches(rows, 4, max_rows) for number in row_numbers(x)]
    assert seen == alone
    assert len(set(seen)) == len(seen) == min(max_rows or 13, 13)


def test_validation_rows_are_spread_over_the_file(rows):
    assert [number for x, _ in validation_batches(rows, 8, 4) for number in row_numbers(x)] == [0, 3, 6, 9]


WRONG_FILES = {
    "absent": (lambda folder: None, "cannot read"),
    "empty": (lambda folder: (folder / "train.npy").write_bytes(b""), "cannot read"),
    "text": (lambda folder: (folder / "train.npy").write_text("rows"), "cannot read"),
    "cut off": (lambda folder: cut_off(folder), "cannot read"),
    "pickled": (lambda folder: np.save(folder / "train.npy", np.array([{}]), allow_pickle=True), "cannot read"),
    "other numbers": (lambda folder: np.save(folder / "train.npy", np.zeros((3, 4), np.int32)), "found int32"),
    "one dimension": (lambda folder: np.save(folder / "train.npy", np.zeros(3, np.uint16)), "of shape"),
    "no rows": (lambda folder: np.save(folder / "train.npy", np.zeros((0, 4), np.uint16)), "no rows"),
}


def cut_off(folder):
    np.save(folder / "train.npy", np.zeros((30, 40), np.uint16))
    (folder / "train.npy").write_bytes((folder / "train.npy").read_bytes()[:-10])


@pytest.mark.parametrize("name", WRONG_FILES)
def test_a_wrong_file_is_a_clear_error(tmp_path, name):
    make, message = WRONG_FILES[name]
    make(tmp_path)
    with pytest.raises(UserError, match=rf"train.npy.*{message}"):
        PackedRows([tmp_path / "train.npy"])


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    for name, shape, dtype in [("a", (3, 5), np.uint16), ("b", (3, 6), np.uint16), ("m", (4, 5), np.uint8)]:
        np.save(tmp_path / f"{name}.npy", np.zeros(shape, dtype))
    a, b, m = (tmp_path / f"{name}.npy" for name in "abm")
    with pytest.raises(UserError, match=r"different lengths: \[5, 6\]"):
        PackedRows([a, b])
    with pytest.raises(UserError, match=r"m.npy: its shape \(4, 5\) is not that of .*a.npy, \(3, 5\)"):
        PackedRows([a], [m])
    with pytest.raises(UserError, match="2 row files but 1 mask files"):
        PackedRows([a, a], [m])
    with pytest.raises(UserError, match="no row file"):
        PackedRows([])


def test_an_empty_list_of_masks_means_no_masks(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 5), np.uint16))
    assert PackedRows([tmp_path / "a.npy"], []).supervised_tokens(np.arange(3)) == 12
