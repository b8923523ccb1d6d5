"""Nothing is missing when the first GPU stage starts: every file is named before, by the check at start or by the preflight."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from project import ROOT, Project, copy_of

from nanochat.config import load_config
from nanochat.manifest import publish, sha256
from nanochat.planning import inventory
from nanochat.planning.inventory import find_problems
from nanochat.runs import TRAININGS

TINY = load_config("config/tiny.yaml")
SMALL = load_config("config/small.yaml")


# -- the check of files ------------------------------------------------------------------------------------------------------


def stored(folder: Path, key: str, data: bytes) -> Path:
    """A file as `download` publishes it; returns its manifest."""
    path = folder / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    manifest = path.with_name(f"{path.name}.manifest.json")
    publish(manifest, specification={"key": key}, inputs={}, files=[path.name], results={}, record={})
    return manifest


def data_file(manifest: Path) -> Path:
    return manifest.with_name(manifest.name.removesuffix(".manifest.json"))


def remove(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def replace_by_error_page(path: Path) -> None:
    page = b"<!DOCTYPE html><html><body>Access denied</body></html>"
    path.write_bytes((page * (path.stat().st_size // len(page) + 1))[: path.stat().st_size])


def exchange_for_another_revision(path: Path) -> None:
    """Another revision's bytes, as many, written at the same time into the same inode."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


HARMS = [remove, truncate, replace_by_error_page, exchange_for_another_revision]
ENTRIES = sorted({*((f"tiny: {key}") for key in TINY.all_files()), *((f"small: {key}") for key in SMALL.all_files())})


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Every entry that tiny and small use, published with content of its own, and remembered as right."""
    root = tmp_path_factory.mktemp("published")
    manifests = {}
    for entry in ENTRIES:
        name, _, key = entry.partition(": ")
        manifests[entry] = stored(root / name, key, f"the content of {entry} \n".encode() * 20)
    memory = root / ".verified.json"
    assert find_problems(manifests.values(), memory=memory) == []
    return manifests, memory


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
@pytest.mark.parametrize("entry", ENTRIES)
def test_any_one_file_that_is_not_as_published_is_named_with_the_command_that_repairs_it(published, entry, harm):
    manifests, memory = published
    path = data_file(manifests[entry])
    good = path.read_bytes()
    harm(path)
    (problem,) = find_problems(manifests.values(), memory=memory)
    path.write_bytes(good)
    assert problem.startswith(f"{path}: ")
    assert f"python -m nanochat.verify --repair {path.parent}" in problem
    assert ("like a web page" in problem) == (harm is replace_by_error_page)
    assert find_problems(manifests.values(), memory=memory) == [], "put back, it is right again"


def test_only_what_changed_is_read_again(tmp_path, monkeypatch):
    manifests = [stored(tmp_path, f"{number}.txt", b"text %d" % number) for number in range(5)]
    read = []
    monkeypatch.setattr(inventory, "sha256", lambda path: read.append(path.name) or sha256(path))
    memory = tmp_path / ".verified.json"
    assert find_problems(manifests, memory=memory, new=False) == [] and read == [], "a preflight is coming that reads all"
    assert find_problems(manifests, memory=memory) == [] and len(read) == 5
    read.clear()
    assert find_problems(manifests, memory=memory) == [] and read == []
    (tmp_path / "3.txt").touch()
    assert find_problems(manifests, memory=memory, new=False) == [] and read == ["3.txt"]
    read.clear()
    assert find_problems(manifests, memory=memory, everything=True) == [] and len(read) == 5


def test_without_the_digest_another_revision_would_get_through(tmp_path, monkeypatch):
    """The negative control of the test above: it is the digest that finds it, not the size."""
    manifest = stored(tmp_path, "a.txt", b"some text")
    exchange_for_another_revision(tmp_path / "a.txt")
    assert len(find_problems([manifest], memory=tmp_path / "memory.json")) == 1
    monkeypatch.setattr(inventory, "check_content", lambda file: None)
    assert find_problems([manifest], memory=tmp_path / "memory.json") == []


def test_a_memory_that_is_broken_or_cannot_be_written_costs_time_and_nothing_else(tmp_path):
    manifest = stored(tmp_path, "a.txt", b"some text")
    memory = tmp_path / "memory.json"
    for content in ("", "not JSON", "[]", '{"x": 1}'):
        memory.write_text(content)
        assert find_problems([manifest], memory=memory) == []
    assert find_problems([manifest], memory=tmp_path / "a.txt" / "no folder.json") == []


def test_a_damaged_manifest_is_named(tmp_path):
    manifest = stored(tmp_path, "a.txt", b"some text")
    manifest.write_text("<html>")
    (problem,) = find_problems([manifest], memory=tmp_path / "memory.json")
    assert str(manifest) in problem and "--repair" in problem


# -- the check at start, and the preflight -----------------------------------------------------------------------------------

PROOF = "results/tiny/preflight/manifest.json"
BASE = "results/tiny/base_train/manifest.json"


@pytest.fixture(scope="module")
def proven(quick_run, tmp_path_factory):
    """A project of the tiny world with its preflight made, and nothing trained."""
    project = copy_of(quick_run, tmp_path_factory.mktemp("proven") / "project")
    for stage in (*TRAININGS, "base_eval", "chat_eval", "trace", "report"):
        shutil.rmtree(project.folder / "results/tiny" / stage)
        shutil.rmtree(project.folder / "results/tiny/resume" / stage)
    return project


@pytest.fixture
def project(proven, tmp_path):
    """A copy of it, to be harmed."""
    return copy_of(proven.folder, tmp_path / "copy")


def nothing_trained(project: Project) -> bool:
    return not (project.folder / "results/tiny/base_train").exists()


@pytest.mark.slow
def test_the_preflight_tells_what_it_opened_and_that_it_had_no_network(proven):
    log = (proven.folder / "results/tiny/logs/preflight.log").read_text()
    assert "preflight: " in log and "connections" in log.splitlines()[0]
    opened = proven.manifest("preflight")["results"]["opened"]
    assert opened["CORE"]["world_towns"] == 3 and opened["chat tasks"]["humaneval"] == 8
    assert opened["tokens/sft"]["train"] > 100
    speeds = proven.record("preflight")["speeds"]
    assert speeds["base_train"]["train_token_s"] > 0 and "measured" in speeds["sft"]["source"]


@pytest.mark.slow
def test_the_proof_is_the_same_bytes_each_time(proven, project):
    shutil.rmtree(project.folder / "results/tiny/preflight")
    project.run(PROOF)
    assert project.manifest("preflight") == proven.manifest("preflight")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "harm"),
    [
        ("results/tiny/tokens/core/tokens.npy", truncate),
        ("resources/tiny_world/humaneval/test.parquet", replace_by_error_page),
        ("results/tiny/tokens/sft/train.npy", exchange_for_another_revision),
        ("results/tiny/tokenizer/tokenizer.json", remove),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_file_harmed_after_the_preflight_is_named_before_any_job_starts(project, file, harm):
    harm(project.folder / file)
    failed = project.snakemake()
    assert failed.returncode != 0
    assert "nothing was started" in failed.stderr and file in failed.stderr
    assert nothing_trained(project)


@pytest.mark.slow
def test_a_file_harmed_before_the_preflight_stops_it_and_every_gpu_stage_waits(project):
    shutil.rmtree(project.folder / "results/tiny/preflight")
    (project.folder / "results/.verified.json").unlink()
    exchange_for_another_revision(project.folder / "resources/tiny_world/mmlu/test.parquet")
    failed = project.snakemake(BASE)
    assert failed.returncode != 0
    assert "mmlu/test.parquet: sha256 differs" in failed.stdout + failed.stderr
    assert nothing_trained(project)


@pytest.mark.slow
def test_what_was_repaired_as_told_is_made_again_and_the_run_goes_on(project):
    truncate(project.folder / "resources/tiny_world/gsm8k/test.parquet")
    assert "gsm8k/test.parquet" in project.snakemake().stderr
    repair = [sys.executable, "-m", "nanochat.verify", "--repair", "resources/tiny_world/gsm8k"]
    subprocess.run(repair, cwd=project.folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    project.run(BASE)
    assert not nothing_trained(project)


@pytest.mark.slow
def test_an_evaluation_task_that_does_not_exist_is_named_before_anything_is_trained(project):
    project.configure({"base_eval.tasks": ["world_twons"]})
    failed = project.snakemake()
    assert failed.returncode != 0
    assert "no CORE task world_twons" in failed.stdout + failed.stderr
    assert nothing_trained(project)


@pytest.mark.slow
def test_attention_that_is_not_installed_is_named_before_anything_is_trained(project):
    project.configure({"base_train.attention_backend": "flash3"})
    failed = project.snakemake(BASE)
    assert failed.returncode != 0
    assert "flash3 was asked for, and its package flash_attn_interface is not installed" in failed.stdout + failed.stderr
    assert nothing_trained(project)


@pytest.mark.slow
def test_editing_two_stages_at_once_makes_both_anew_beside_a_new_proof(quick_run, tmp_path):
    """Snakemake looks no further at a stage that is downstream of a planned job, unless it is told to."""
    project = copy_of(quick_run, tmp_path / "copy")
    assert project.planned() == {}
    project.configure({"base_train.steps": 7, "sft.mask_user": False})
    jobs = project.planned()
    assert {"tokens_sft", "preflight", "base_train", "base_eval", "mid_train", "sft"} <= jobs.keys()
    project.configure({"base_train.steps": 7, "base_eval.max_per_task": 2})
    assert {"tokens_core", "preflight", "base_train", "base_eval", "mid_train", "sft"} <= project.planned().keys()
    project.configure({"sft.mask_user": False})
    assert project.planned() == {"tokens_sft": 1, "preflight": 1, "sft": 1, "chat_eval": 1, "report": 1}


@pytest.mark.slow
def test_a_run_that_only_evaluates_another_ones_model_proves_only_that(project):
    more = {"base_train": "tiny", "mid_train": "tiny", "sft": "tiny", "chat_eval": {"tasks": ["gsm8k"]}}
    project.configure({"runs": {"tiny": {}, "more": more}})
    project.run("results/more/preflight/manifest.json")
    assert project.manifest("preflight", run="more")["results"]["opened"] == {"chat tasks": {"gsm8k": 100}}


@pytest.mark.slow
def test_the_report_shows_predicted_beside_actual(quick_run):
    text = (quick_run / "results/tiny/report/report.md").read_text()
    header = next(line for line in text.splitlines() if line.startswith("| stage | device"))
    column = [cell.strip() for cell in header.split("|")].index("predicted")
    line = next(line for line in text.splitlines() if line.startswith("| base_train | cpu"))
    assert line.split("|")[column].strip() != "–"


@pytest.mark.slow
def test_a_plan_is_printed_with_this_machines_speed(proven):
    text = proven.run("plan")
    assert "measured on this machine's CPU" in text and "files: 17 of 17 are here" in text
    assert "This cannot work" not in text
