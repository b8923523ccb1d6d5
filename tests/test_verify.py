"""python -m nanochat.verify: finds what is damaged, says what hangs on it, removes that and nothing else."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
from test_manifest import flip, make

from nanochat.manifest import open_verified, publish, sealed, write_json
from nanochat.partial import digest
from nanochat.survey import Progress
from nanochat.verify import main


@pytest.fixture
def verify(tmp_path, monkeypatch, capfd):
    """Run it in a folder that holds `results`; returns its exit code and what it said."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments) -> tuple[int, str]:
        code = main(list(map(str, arguments)))
        return code, "".join(capfd.readouterr())

    return run


@pytest.fixture
def run_folder(tmp_path) -> Path:
    """results/tiny: a -> b -> c, each made from the one before it, a commit and a kept task."""
    folder = tmp_path / "results" / "tiny"
    make(folder / "a")
    make(folder / "b", text="from a", inputs={"start_from": folder / "a" / "manifest.json"})
    make(folder / "c", text="from b", inputs={"start_from": folder / "b" / "manifest.json"})
    make(folder / "resume" / "b" / "step_00000250", text="weights")
    task = {"identity": {}, "task": "squad", "seconds": 1.0, "content": [1], "sha256": digest([1])}
    write_json(folder / "resume" / "c" / "part_squad.json", task)
    return folder


def remaining(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_what_is_intact_is_counted_by_run(verify, run_folder):
    code, said = verify()
    assert code == 0
    assert "results/tiny: 3 of 3 stages, 1 of 1 commits, 1 of 1 tasks intact" in said
    assert "4 of 4 manifests are intact: 4 files, 24 bytes read" in said


def test_a_damaged_file_is_named_once_with_all_that_was_made_from_it(verify, run_folder):
    flip(run_folder / "a" / "data.txt")
    code, said = verify()
    assert code == 1
    assert said.count("results/tiny/a/data.txt: sha256 differs from its manifest") == 1
    assert "made from it: results/tiny/b, results/tiny/c" in said
    assert "damaged: a" in said and "python -m nanochat.verify --repair, and then the same snakemake command" in said


def test_repair_removes_manifest_and_record_of_what_is_damaged_and_nothing_else(verify, run_folder):
    flip(run_folder / "b" / "data.txt")
    before = remaining(run_folder)
    code, said = verify("--repair")
    assert code == 0 and "results/tiny/b: its manifest was removed; the next run that needs it makes it again" in said
    assert before - remaining(run_folder) == {"b/manifest.json", "b/record.json"}
    assert verify()[0] == 0


def test_a_damaged_manifest_goes_and_its_record_may_publish_it_again(verify, run_folder):
    flip(run_folder / "b" / "manifest.json")
    code, said = verify()
    assert code == 1 and "b/manifest.json: is damaged, or no manifest" in said and "made from it: results/tiny/c" in said
    before = remaining(run_folder)
    verify("--repair")
    assert before - remaining(run_folder) == {"b/manifest.json"}


def test_a_damaged_record_is_written_anew_so_that_nothing_is_done_again(verify, run_folder):
    record = run_folder / "b" / "record.json"
    flip(record)
    before = (run_folder / "b" / "manifest.json").read_bytes()
    code, said = verify()
    assert code == 1 and "b/record.json: is damaged" in said
    assert verify("--repair")[0] == 0 and verify()[0] == 0
    assert json.loads(record.read_text())["manifest"] == json.loads(before)
    assert (run_folder / "b" / "manifest.json").read_bytes() == before


def test_an_exchanged_manifest_goes_and_its_record_may_publish_it_again(verify, run_folder):
    (run_folder / "c" / "manifest.json").write_bytes((run_folder / "b" / "manifest.json").read_bytes())
    (run_folder / "c" / "data.txt").write_text("something longer")
    before = remaining(run_folder)
    assert verify("--repair")[0] == 0
    assert before - remaining(run_folder) == {"c/manifest.json"}


def test_a_missing_manifest_or_record_is_no_damage(verify, run_folder):
    (run_folder / "b" / "record.json").unlink()
    (run_folder / "c" / "manifest.json").unlink()
    assert verify()[0] == 0


def test_a_damaged_commit_and_a_damaged_task_are_removed_themselves(verify, run_folder):
    flip(run_folder / "resume/b/step_00000250/data.txt")
    task = run_folder / "resume/c/part_squad.json"
    task.write_text(task.read_text().replace("squad", "squad").replace("1\n ]", "2\n ]"))
    code, said = verify()
    assert code == 1 and "0 of 1 commits, 0 of 1 tasks intact" in said
    verify("--repair")
    assert not list((run_folder / "resume").rglob("step_*")) and not task.exists()
    assert verify()[0] == 0


def test_what_was_made_from_something_that_is_gone_is_told_and_is_no_damage(verify, run_folder):
    make(run_folder / "a", text="another")
    code, said = verify()
    assert code == 0 and "results/tiny/b: made from start_from as it is no longer here" in said


def test_a_file_of_ones_own_that_was_read_is_looked_up_by_its_path(verify, run_folder, tmp_path):
    (tmp_path / "own.jsonl").write_text("{}")
    publish(
        run_folder / "d/manifest.json",
        specification={},
        inputs={"own.jsonl": Path("own.jsonl")},
        files=[],
        results={},
        record={},
    )
    assert "own.jsonl" not in verify()[1]
    (tmp_path / "own.jsonl").write_text("{ }")
    assert "results/tiny/d: made from own.jsonl as it is no longer here" in verify()[1]


def test_results_of_another_version_stay_unless_their_folder_is_named(verify, run_folder):
    manifest = run_folder / "b" / "manifest.json"
    content = {key: value for key, value in json.loads(manifest.read_text()).items() if key != "digest"}
    write_json(manifest, sealed({**content, "format": 1}))
    code, said = verify("--repair")
    assert code == 1 and "has format 1" in said and "Of another version, and left alone: results/tiny/b" in said
    assert manifest.exists()
    assert verify("--repair", "results/tiny/b")[0] == 0 and not manifest.exists()


def test_nothing_outside_the_folders_is_touched(verify, run_folder, tmp_path):
    make(tmp_path / "elsewhere")
    (run_folder / "link").symlink_to(tmp_path / "elsewhere")
    flip(tmp_path / "elsewhere" / "data.txt")
    code, said = verify("--repair", "results")
    assert code == 0 and "results/tiny/link: a link to a folder, not followed" in said
    assert (tmp_path / "elsewhere" / "manifest.json").exists()
    assert verify("results/tiny/link")[0] == 1


def test_a_manifest_that_names_a_file_outside_its_folder_is_no_manifest(verify, run_folder, tmp_path):
    manifest = run_folder / "b" / "manifest.json"
    content = {key: value for key, value in json.loads(manifest.read_text()).items() if key != "digest"}
    write_json(manifest, sealed({**content, "files": {"../a/data.txt": content["files"]["data.txt"]}}))
    assert "b/manifest.json: is damaged, or no manifest" in verify()[1]


def test_hostile_things_in_the_folders_are_reported_and_stop_nothing(verify, run_folder):
    name = "b/data.txt"
    (run_folder / name).unlink()
    os.mkfifo(run_folder / name)  # to open it would wait for ever
    (run_folder / "a/data.txt").unlink()
    (run_folder / "a/data.txt").symlink_to("data.txt")
    make(run_folder / "evil\n\x1b[31m")
    flip(run_folder / "evil\n\x1b[31m" / "data.txt")
    (run_folder / "manifest.json").mkdir()
    code, said = verify()
    assert code == 1 and "b/data.txt: is no file" in said and "a/data.txt: cannot be read" in said
    assert "\x1b" not in said and "evil␊␛[31m/data.txt: sha256 differs" in said


def test_what_may_not_be_read_is_not_removed(run_folder, tmp_path):
    """In a child that is nobody, if this is root, who may read everything."""
    (run_folder / "b" / "data.txt").chmod(0)
    (run_folder / "resume").chmod(0)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    child = os.fork()
    if not child:
        said = os.open(tmp_path / "said", os.O_CREAT | os.O_WRONLY, 0o666)
        os.dup2(said, 1)
        sys.stdout = os.fdopen(1, "w")
        os.chdir(tmp_path)
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        code = main(["--repair"])
        sys.stdout.flush()
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    (run_folder / "resume").chmod(0o755)
    said = (tmp_path / "said").read_text()
    assert code == 2, said
    assert "b/data.txt: cannot be read (Permission denied)" in said and "resume: cannot be read" in said
    assert (run_folder / "b" / "manifest.json").exists()


def test_json_says_the_same(verify, run_folder):
    flip(run_folder / "a" / "data.txt")
    code, said = verify("--json")
    found = json.loads(said)
    assert code == 1 and (found["manifests"], found["files"]) == (4, 4)
    assert found["damaged"] == [
        {
            "path": "results/tiny/a/data.txt",
            "problem": "sha256 differs from its manifest",
            "of": "results/tiny/a",
            "kind": "stage",
            "needed_by": ["results/tiny/b", "results/tiny/c"],
        }
    ]
    assert json.loads(verify("--json", "--repair")[1])["repaired"][0]["name"] == "results/tiny/a"


def test_a_folder_that_is_not_there_is_named(verify):
    with pytest.raises(SystemExit) as end:
        verify("nowhere")
    assert end.value.code == 2


def test_downloads_are_named_as_their_files(verify, tmp_path):
    folder = tmp_path / "resources" / "remote"
    folder.mkdir(parents=True)
    (folder / "words.txt").write_text("one\ntwo\n")
    publish(folder / "words.txt.manifest.json", specification={}, inputs={}, files=["words.txt"], results={}, record={})
    assert "resources/remote: 1 of 1 files intact" in verify()[1]
    flip(folder / "words.txt")
    assert "damaged: words.txt" in verify()[1]
    assert verify("--repair")[0] == 0
    assert remaining(folder) == {"words.txt"}


def test_a_manifest_of_another_download_is_refused(verify, tmp_path):
    folder = tmp_path / "resources" / "remote"
    for name in ("a.txt", "b.txt"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
        publish(folder / f"{name}.manifest.json", specification={}, inputs={}, files=[name], results={}, record={})
    (folder / "a.txt.manifest.json").write_bytes((folder / "b.txt.manifest.json").read_bytes())
    code, said = verify()
    assert code == 1 and "a.txt.manifest.json: is damaged, or no manifest" in said


def test_a_record_of_another_stage_tells_nothing(run_folder):
    (run_folder / "b" / "record.json").write_bytes((run_folder / "a" / "record.json").read_bytes())
    assert open_verified(run_folder / "b" / "manifest.json").record() == {}
    assert open_verified(run_folder / "a" / "manifest.json").record()["seconds"] > 0


def test_progress_says_how_far_and_how_fast(capsys):
    progress = Progress(total=4_000_000_000)
    progress.began, progress.said = progress.began - 2, float("-inf")
    progress.add(1_000_000_000)
    assert re.search(r"checked 1\.0 of 4\.0 GB, 0\.\d+ GB/s, about 6 s left", capsys.readouterr().err)
