"""The program that downloads one file of a catalogue, and the lock file where the catalogue has no digest."""

import hashlib
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from bad_server import ALTERED, BY_NAME, CONTENT, RIGHT, BadServer, Behaviour
from project import ROOT, Project

from nanochat.downloads.checks import Found
from nanochat.downloads.lock import Lock
from nanochat.errors import UserError
from nanochat.manifest import open_verified

DIGEST = hashlib.sha256(CONTENT).hexdigest()
FOUND = Found(len(CONTENT), DIGEST)


@pytest.fixture
def server():
    running = BadServer()
    yield running
    running.close()


# -- the lock -----------------------------------------------------------------------------------------------------------------


def test_the_first_download_is_recorded_and_counts(tmp_path):
    lock = Lock(tmp_path / "remote.lock.jsonl")
    assert lock.expected("a", None).sha256 is None
    lock.settle("a", None, FOUND, "https://a")
    lock.settle("a", None, FOUND, "https://a")
    expected = lock.expected("a", None)
    assert (expected.size, expected.sha256, expected.said_by) == (len(CONTENT), DIGEST, str(lock.path))
    assert len(lock.lines()) == 1
    with pytest.raises(UserError, match=r"remote\.lock\.jsonl says .*delete the line of a in .*remote\.lock\.jsonl and run"):
        lock.settle("a", None, Found(1, "0" * 64), "https://a")


def test_of_two_lines_the_first_counts(tmp_path):
    lock = Lock(tmp_path / "lock")
    lock.settle("a", None, FOUND, "https://a")
    lock.path.write_text(lock.path.read_text() + lock.path.read_text().replace(DIGEST, "0" * 64))
    assert lock.expected("a", None).sha256 == DIGEST


def test_another_revision_is_another_file(tmp_path):
    lock = Lock(tmp_path / "lock")
    lock.settle("a", "1", FOUND, "https://a")
    assert lock.expected("a", "2").sha256 is None
    lock.settle("a", "2", Found(1, "0" * 64), "https://a")
    assert lock.expected("a", "1").sha256 == DIGEST


def test_a_torn_line_is_passed_over_and_harms_no_other(tmp_path, caplog):
    lock = Lock(tmp_path / "lock")
    lock.settle("a", None, FOUND, "https://a")
    lock.path.write_text(lock.path.read_text() + '{"key": "b", "revi')
    lock.settle("c", None, FOUND, "https://c")
    assert [line.key for line in lock.lines()] == ["a", "c"]
    assert "line 2 is torn" in caplog.text


# -- the program --------------------------------------------------------------------------------------------------------------


def download(folder: Path, url: str, **entry) -> subprocess.CompletedProcess:
    """Run the program for the file `data` of a catalogue in `folder`."""
    catalogue = {"folder": "remote", "files": {"data": {"url": url, "path": "f.parquet", **entry}}}
    (folder / "catalogue.yaml").write_text(yaml.safe_dump(catalogue))
    words = [sys.executable, str(ROOT / "workflow" / "scripts" / "download.py"), "--catalogue", "catalogue.yaml"]
    words += ["--lock", "resources/remote.lock.jsonl", "--manifest", "resources/remote/f.parquet.manifest.json"]
    words += ["--specification", json.dumps({"key": "data", "revision": entry.get("revision")})]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    return done


def test_a_file_without_a_digest_is_locked_and_a_change_is_refused(server, tmp_path, monkeypatch):
    path, lock = tmp_path / "resources" / "remote" / "f.parquet", tmp_path / "resources" / "remote.lock.jsonl"
    url = server.address("changing")
    monkeypatch.setitem(BY_NAME, "changing", Behaviour("changing", "", lambda handler: handler.good(), RIGHT))
    assert download(tmp_path, url).returncode == 0
    assert json.loads(lock.read_text())["sha256"] == DIGEST
    artefact = open_verified(path.with_name("f.parquet.manifest.json"))
    assert artefact.path("f.parquet").read_bytes() == CONTENT

    questions = len(server.log_of("changing").questions)
    assert download(tmp_path, url).returncode == 0
    assert len(server.log_of("changing").questions) == questions  # a finished file asks for nothing

    monkeypatch.setitem(
        BY_NAME, "changing", Behaviour("changing", "", lambda handler: handler.good(ALTERED, etag='"2"'), RIGHT)
    )
    for left in path.parent.iterdir():
        left.unlink()
    refused = download(tmp_path, url)
    assert refused.returncode == 1 and "delete the line of data in resources/remote.lock.jsonl" in refused.stderr
    assert list(path.parent.iterdir()) == []

    lock.write_text("")  # as the message says
    assert download(tmp_path, url).returncode == 0
    assert path.read_bytes() == ALTERED

    kept = "".join(file.read_text(errors="replace") for file in path.parent.parent.rglob("*.json*"))
    assert "canary" not in kept + refused.stderr


def test_the_catalogues_digest_needs_no_lock_and_overrules_it(server, tmp_path):
    resources = tmp_path / "resources"
    resources.mkdir()
    Lock(resources / "remote.lock.jsonl").settle("data", None, Found(7, "0" * 64), "https://a")
    before = (resources / "remote.lock.jsonl").read_text()
    assert download(tmp_path, server.address("good"), size=len(CONTENT), sha256=DIGEST).returncode == 0
    assert (resources / "remote.lock.jsonl").read_text() == before


def test_a_file_that_was_copied_here_is_used_if_its_digest_is_known(server, tmp_path):
    path = tmp_path / "resources" / "remote" / "f.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert download(tmp_path, server.address("good"), size=len(CONTENT), sha256=DIGEST).returncode == 0
    assert server.log_of("good").questions == []
    path.with_name("f.parquet.manifest.json").unlink()
    path.with_name("f.parquet.record.json").unlink()
    assert download(tmp_path, server.address("good")).returncode == 0  # nobody says what it must be: not trusted
    assert len(server.log_of("good").questions) == 1


def test_a_damaged_file_is_fetched_again(server, tmp_path):
    path = tmp_path / "resources" / "remote" / "f.parquet"
    download(tmp_path, server.address("good"))
    path.write_bytes(ALTERED)
    assert download(tmp_path, server.address("good")).returncode == 0
    assert path.read_bytes() == CONTENT


def test_a_wrong_address_is_shown_without_its_secrets(tmp_path, monkeypatch):
    done = download(tmp_path, "${NANOCHAT_TEST_MIRROR}/f")
    assert "NANOCHAT_TEST_MIRROR is not set" in done.stderr
    monkeypatch.setenv("NANOCHAT_TEST_MIRROR", "ftp://me:canary@host/x?token=canary")
    done = download(tmp_path, "${NANOCHAT_TEST_MIRROR}/f")
    assert "ftp://***host/x?***" in done.stderr and "canary" not in done.stderr


# -- a folder that a class shares -----------------------------------------------------------------------------------------


def test_finished_files_of_a_shared_folder_are_used_as_they_are(tmp_path):
    target = "resources/tiny_world/words.txt.manifest.json"
    owner, student = Project(tmp_path / "owner"), Project(tmp_path / "student")
    for project in (owner, student):
        project.configure()
    owner.run(target)
    (student.folder / "resources").symlink_to(owner.folder / "resources")
    before = listing(owner.folder / "resources")
    assert student.planned(target) == {}
    assert listing(owner.folder / "resources") == before


def listing(folder: Path) -> list[tuple]:
    return sorted((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*"))


def test_a_missing_file_of_a_read_only_folder_is_told_in_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere, so no real folder would do
    (tmp_path / "catalogue.yaml").write_text(
        yaml.safe_dump({"folder": "x", "files": {"data": {"url": "http://127.0.0.1:9/f"}}})
    )
    words = [
        "--catalogue",
        "catalogue.yaml",
        "--lock",
        "resources/x.lock.jsonl",
        "--manifest",
        "resources/x/data.manifest.json",
    ]
    monkeypatch.setattr(sys, "argv", ["download.py", *words, "--specification", '{"key": "data", "revision": null}'])
    with pytest.raises(SystemExit, match=r"is read-only\. If it is shared, ask its owner"):
        runpy.run_path(str(ROOT / "workflow" / "scripts" / "download.py"), run_name="__main__")
