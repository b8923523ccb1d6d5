"""A disk that is full: told with path, bytes needed and bytes free; nothing lost; with room again, the same bits."""

import errno
import os
import re

import pytest
import torch
from conftest import skip_or_fail
from safetensors.torch import load_file, save
from torture.full_disk import run_in_namespace

from nanochat.checkpoint import Commit, Commits
from nanochat.storage import StorageError, atomic_path, make_folder, storage_errors, sweep, temporary_path
from nanochat.tensor_file import save_tensors, size_of_file


def test_programs_on_a_disk_that_is_really_full_say_so_and_go_on_when_there_is_room(tmp_path):
    found = run_in_namespace(tmp_path / "disk", rooms=4)
    if isinstance(found, str):
        skip_or_fail(found)
    assert not [trial.problem for trial in found if trial.problem]
    assert {(trial.path, trial.unit) for trial in found if trial.was_full} == {
        (path, unit) for path in ("tokens of text, over another", "training") for unit in ("bytes", "files")
    }
    assert not all(trial.was_full for trial in found), "with all the room that it needs, a program does not complain"


# -- words -------------------------------------------------------------------------------------------------------------------


def fail(path, code, **options):
    with pytest.raises(StorageError) as found, storage_errors(path, **options):
        raise OSError(code, os.strerror(code))
    assert found.value.errno == code
    return str(found.value)


def test_a_full_disk_is_told_with_path_needed_and_free(tmp_path):
    text = fail(tmp_path / "a.bin", errno.ENOSPC, needed=1_234_567)
    assert re.search(r"a\.bin: the disk is full\. Needed: 1,234,567 bytes\. Free: [\d,]+ bytes\.", text)
    assert "Needed: at least 1,000 bytes" in fail(tmp_path / "a.bin", errno.ENOSPC, needed=1_000, is_exact=False)
    assert "Needed: at least 1 byte." in fail(tmp_path / "a.bin", errno.ENOSPC)


def test_a_quota_and_a_broken_disk_are_told_as_such(tmp_path):
    assert "over the quota of this account" in fail(tmp_path / "a", errno.EDQUOT)
    assert "input/output error" in fail(tmp_path / "a", errno.EIO)


def test_what_is_not_the_storages_fault_stays_as_it_is(tmp_path):
    with pytest.raises(BrokenPipeError), storage_errors(tmp_path / "a"):
        raise BrokenPipeError(errno.EPIPE, "broken pipe")


def test_where_nobody_knows_the_size_it_is_at_least_what_was_written(tmp_path):
    with pytest.raises(StorageError, match="Needed: at least 7 bytes") as error, atomic_path(tmp_path / "a") as path:
        path.write_bytes(b"content")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "a: the disk is full" in str(error.value)
    assert list(tmp_path.iterdir()) == []


# -- commits -----------------------------------------------------------------------------------------------------------------


def commit(step, value=1.0):
    tensors = {"a": torch.full((5, 3), value)}
    return Commit(step, tensors, tensors, [], {"numerics": {}})


def test_a_commit_without_room_leaves_those_before_it_and_nothing_else(tmp_path, monkeypatch):
    commits = Commits(tmp_path, {"specification": {}})
    commits.write(commit(1))

    def full(path, tensors):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("nanochat.checkpoint.save_tensors", full)
    with pytest.raises(StorageError, match=r"step_00000002: the disk is full\. Needed: at least \d+ bytes"):
        commits.write(commit(2))
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    assert commits.latest().step == 1


def test_a_whole_commit_of_the_same_step_stays_and_a_damaged_one_is_replaced(tmp_path):
    commits = Commits(tmp_path, {"specification": {}})
    commits.write(commit(1))
    folder = tmp_path / "step_00000001"
    before = folder.stat().st_ino
    commits.write(commit(1))
    assert folder.stat().st_ino == before
    (folder / "model.safetensors").write_bytes(b"damaged")
    commits.write(commit(1))
    assert folder.stat().st_ino != before and commits.latest().step == 1


def test_a_commit_that_cannot_be_used_does_not_push_out_good_ones(tmp_path):
    """It counts as one of the two that are kept, and newer ones, of lower steps, come before it."""
    commits = Commits(tmp_path, {"specification": {}})
    for step in (1, 8, 9):
        commits.write(commit(step))
    for step in (8, 9):
        (tmp_path / f"step_{step:08d}" / "model.safetensors").write_bytes(b"damaged")
    (tmp_path / "step_00000007").mkdir()  # its removal was cut off
    assert commits.latest() is None  # 8 and 9 were the last two
    commits.write(commit(2))
    commits.write(commit(3))
    assert [path.name for path in commits.steps()] == ["step_00000002", "step_00000003"]


# -- files -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8])
def test_tensor_files_equal_the_librarys_to_the_byte(tmp_path, dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = {"b.weight": (3, 5), "a": (), "é": (7,), "none": (0, 4), "transposed": (4, 6)}
    tensors = {name: torch.randint(0, 100, shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    tensors["transposed"] = tensors["transposed"].T.contiguous()
    save_tensors(tmp_path / "a.safetensors", tensors)
    assert (tmp_path / "a.safetensors").read_bytes() == save(tensors)
    assert size_of_file(tensors) == (tmp_path / "a.safetensors").stat().st_size


def test_tensors_of_several_dtypes_read_back(tmp_path):
    tensors = {"a": torch.arange(3, dtype=torch.uint8), "b": torch.ones(2, 2).T, "c": torch.arange(5)}
    save_tensors(tmp_path / "a.safetensors", tensors)
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in tensors)


def gone() -> int:
    """The number of a process that has ended."""
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(pid, 0)
    return pid


def test_what_dead_processes_left_is_swept_and_what_living_ones_write_is_not(tmp_path):
    mine, dead, living = (temporary_path(tmp_path / "a", pid=pid) for pid in (os.getpid(), gone(), os.getppid()))
    elsewhere, old = tmp_path / ".a.tmp-othermachine-17", tmp_path / ".b.tmp-othermachine-18"
    for path in (mine, dead, living, elsewhere, old, tmp_path / "a", tmp_path / ".hidden"):
        path.write_text("x")
    os.utime(old, (0, 0))
    temporary_path(tmp_path / "folder", pid=gone()).mkdir()
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {living.name, elsewhere.name, "a", ".hidden"}


def test_a_new_folder_is_synced_into_its_parents(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("nanochat.storage.sync", synced.append)
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert synced == [tmp_path, tmp_path / "a"]
