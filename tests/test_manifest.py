"""Publishing and opening: the same bytes each time, whole or not at all, and nothing damaged is ever used."""

import json
import os
import subprocess
import sys

import pytest

from nanochat.errors import UserError
from nanochat.manifest import open_verified, publish, republish, write_json
from nanochat.storage import atomic_path


def make(folder, text="hello", specification=None, inputs=None):
    with atomic_path(folder / "data.txt") as path:
        path.write_text(text)
    manifest = folder / "manifest.json"
    publish(
        manifest,
        specification=specification or {"seed": 1},
        inputs=inputs or {},
        files=["data.txt"],
        results={"rows": 3},
        record={"seconds": os.times().elapsed},
    )
    return manifest


def test_what_was_published_opens(tmp_path):
    artefact = open_verified(make(tmp_path))
    assert artefact.path("data.txt").read_text() == "hello"
    assert (artefact.specification, artefact.results) == ({"seed": 1}, {"rows": 3})
    assert artefact.record()["seconds"] > 0


def test_the_same_work_gives_the_same_manifest(tmp_path):
    one, other = make(tmp_path / "one"), make(tmp_path / "other")
    assert one.read_bytes() == other.read_bytes()


def test_a_manifest_names_what_was_read_by_its_identity(tmp_path):
    read, otherwise = make(tmp_path / "in"), make(tmp_path / "in2", text="other")
    one, other = make(tmp_path / "a", inputs={"x": read}), make(tmp_path / "b", inputs={"x": otherwise})
    assert open_verified(one).inputs == {"x": open_verified(read).identity}
    assert open_verified(one).identity != open_verified(other).identity


def flip(path):
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "flipped bit": (flip, "sha256 differs"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "4 bytes, and its manifest says 5"),
    "extended": (lambda path: path.write_bytes(path.read_bytes() + b"x"), "6 bytes"),
    "deleted": (lambda path: path.unlink(), "No such file"),
    "exchanged": (lambda path: path.write_text("HELLO"), "sha256 differs"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_refused_with_a_command_that_helps(tmp_path, kind):
    manifest = make(tmp_path)
    damage, words = DAMAGE[kind]
    damage(tmp_path / "data.txt")
    with pytest.raises(UserError, match=words) as error:
        open_verified(manifest).path("data.txt")
    assert "python -m nanochat.verify --repair" in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "1", '{"format": 2}', "\x00\xff"])
def test_a_damaged_manifest_is_refused(tmp_path, text):
    manifest = make(tmp_path)
    manifest.write_text(text)
    with pytest.raises(UserError, match="is damaged, or no manifest"):
        open_verified(manifest)


def flip_each_bit(path):
    """Flip every bit of a file in its turn; when asked for the next, the file is as it was."""
    content = path.read_bytes()
    for position in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        yield position
    path.write_bytes(content)


def test_every_flipped_bit_of_a_manifest_is_refused_with_a_command_that_helps(tmp_path):
    manifest = make(tmp_path)
    for _ in flip_each_bit(manifest):
        with pytest.raises(UserError, match=r"nanochat\.verify --repair"):
            open_verified(manifest)
    open_verified(manifest)


def test_a_record_with_a_flipped_bit_says_nothing_and_publishes_nothing(tmp_path):
    manifest = make(tmp_path)
    artefact = open_verified(manifest)
    manifest.unlink()
    for _ in flip_each_bit(tmp_path / "record.json"):
        assert artefact.record() == {}
        assert not republish(manifest, specification={"seed": 1}, inputs={})
    assert republish(manifest, specification={"seed": 1}, inputs={})


def test_numbers_as_keys_are_published_as_the_text_that_json_makes_of_them(tmp_path):
    publish(tmp_path / "manifest.json", specification={}, inputs={}, files=[], results={2: "b", 10: "a"}, record={})
    assert open_verified(tmp_path / "manifest.json").results == {"2": "b", "10": "a"}


def test_a_newer_format_is_refused_by_its_number(tmp_path):
    manifest = make(tmp_path)
    write_json(manifest, {**json.loads(manifest.read_text()), "format": 99})
    with pytest.raises(UserError, match="format 99"):
        open_verified(manifest)


def test_finished_work_is_published_again_without_being_done_again(tmp_path):
    manifest = make(tmp_path)
    before = manifest.read_bytes()
    manifest.unlink()  # as Snakemake does before it starts a job
    assert republish(manifest, specification={"seed": 1}, inputs={})
    assert manifest.read_bytes() == before


def test_other_work_is_not_published_again(tmp_path):
    read = make(tmp_path / "in")
    manifest = make(tmp_path / "out", inputs={"x": read})
    assert not republish(manifest, specification={"seed": 2}, inputs={"x": read})
    assert not republish(manifest, specification={"seed": 1}, inputs={})
    make(tmp_path / "in", text="changed")
    assert not republish(manifest, specification={"seed": 1}, inputs={"x": read})


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_work_is_not_published_again(tmp_path, kind):
    manifest = make(tmp_path)
    manifest.unlink()
    DAMAGE[kind][0](tmp_path / "data.txt")
    assert not republish(manifest, specification={"seed": 1}, inputs={})
    assert not manifest.exists()


def test_a_failing_writer_leaves_the_old_file_and_no_other(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a.txt") as path:
        path.write_text("half")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def verify(*arguments):
    command = [sys.executable, "-m", "nanochat.verify", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_verify_names_what_is_damaged_and_repair_makes_way_for_a_new_one(tmp_path):
    good, bad = make(tmp_path / "good"), make(tmp_path / "bad")
    assert verify(tmp_path).returncode == 0
    flip(tmp_path / "bad" / "data.txt")
    found = verify(tmp_path)
    assert found.returncode == 1 and "bad/data.txt: sha256 differs" in found.stdout and "1 of 2" in found.stdout
    assert verify("--repair", tmp_path).returncode == 0
    assert good.exists() and not bad.exists() and not (tmp_path / "bad" / "record.json").exists()
