"""The DAG: what runs when, what does not run again, and what is said when something is wrong."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from project import ROOT, Project, copy_of

from nanochat import runs
from nanochat.specifications import SPLITS

pytestmark = pytest.mark.slow

STAGES = [stage for stage in runs.STAGES if stage != "report"]
AFTER_SFT = {"chat_eval": 1, "report": 1}
SFT = {"sft": 1, **AFTER_SFT}
MID = {"mid_train": 1, "sft": 1, "chat_eval": 2, "report": 1}
BASE = {"base_train": 1, "base_eval": 1, "trace": 1, **MID}
PROOF = {"preflight": 1}  # of what is new to read, or to be timed
ROWS = {"tokens_pretrain": 1, "tokens_mid_train": 1, "tokens_sft": 1, **PROOF}
TOKENS = {**ROWS, "tokens_core": 1}

EDITS = [
    ("tokenizer.vocab_size", 900, {"tokenizer": 1, **TOKENS, **BASE}),
    ("tokenizer.max_characters", 500_000, {"tokenizer": 1, **TOKENS, **BASE}),
    ("tokens.sequence_len", 128, {**ROWS, **BASE}),
    ("base_train.steps", 7, BASE),
    ("base_train.seed", 1, BASE),
    ("base_train.model", {"mlp": "gelu"}, {**PROOF, **BASE}),
    ("base_train.depth", 2, {**PROOF, **BASE}),
    ("base_train.matrix_lr", 0.01, BASE),
    ("base_train.warmdown_ratio", 0.5, BASE),
    ("base_train.micro_batch", 4, {}),
    ("base_train.commit_every", 5, {}),
    ("base_eval.max_per_task", 2, {"tokens_core": 1, **PROOF, "base_eval": 1, "report": 1}),
    ("base_eval.sample_tokens", 5, {"base_eval": 1, "report": 1}),
    ("base_eval.samples", ["The"], {"base_eval": 1, "report": 1}),
    ("mid_train.lr_scale", 0.7, MID),
    ("mid_train.epochs", 0.03, MID),
    ("mid_train.mask_user", True, {"tokens_mid_train": 1, **PROOF, **MID}),
    ("mid_train.commit_every", 7, {}),
    ("sft.epochs", 0.03, SFT),
    ("sft.lr_scale", 0.5, SFT),
    ("sft.mask_user", False, {"tokens_sft": 1, **PROOF, **SFT}),
    ("identity.name", "Somebody", {"tokens_mid_train": 1, "tokens_sft": 1, **PROOF, **MID}),
    ("chat_eval.max_new_tokens", 9, {"chat_eval": 2, "report": 1}),
    ("chat_eval.tasks", ["gsm8k"], {**PROOF, "chat_eval": 2, "report": 1}),
    ("trace.prompt", "Once upon a time", {"trace": 1, "report": 1}),
    ("trace.model", "sft", {"trace": 1, "report": 1}),
    ("trace.step_tokens", 64, {"trace": 1, "report": 1}),
    ("report.title", "Another title", {"report": 1}),
]


@pytest.fixture(scope="module")
def finished(quick_run, tmp_path_factory):
    """A project whose run `tiny` is finished, to look at."""
    return copy_of(quick_run, tmp_path_factory.mktemp("finished") / "project")


@pytest.fixture
def project(finished):
    """The same with its original configuration."""
    finished.configure()
    return finished


@pytest.fixture
def own(quick_run, tmp_path):
    """Another copy, in which something may be done."""
    return copy_of(quick_run, tmp_path / "own")


def test_every_stage_published_a_manifest_a_record_and_a_log(project):
    for stage in STAGES:
        assert project.manifest(stage)["files"], stage
        assert project.record(stage)["seconds"] > 0, stage
        assert (project.folder / "results/tiny/logs" / f"{stage.replace('/', '_')}.log").stat().st_size > 0, stage


def test_the_report_has_every_section_and_misses_nothing(project):
    text = (project.folder / "results/tiny/report/report.md").read_text()
    assert "has not finished" not in text
    for heading in (
        "Summary",
        "Model",
        "Data",
        "Training",
        "Base evaluation",
        "Chat evaluation",
        "Samples",
        "Machine and time",
    ):
        assert f"## {heading}" in text


def test_a_second_run_does_nothing(project):
    assert "Nothing to be done" in project.run()


@pytest.mark.parametrize(("key", "value", "jobs"), EDITS, ids=[key for key, _, _ in EDITS])
def test_editing_a_key_reruns_exactly_what_depends_on_it(project, key, value, jobs):
    project.configure({key: value})
    assert project.planned() == jobs


def test_touching_copying_and_commenting_rerun_nothing(project):
    for path in project.folder.glob("re*/**/*"):
        if path.is_file():
            path.touch()
    text = (project.folder / "my.yaml").read_text()
    sections = yaml.safe_load(text)
    backwards = {name: sections[name] for name in reversed(sections)}
    project.write("# a comment\n" + yaml.safe_dump(backwards, sort_keys=True))
    assert project.planned() == {}


def test_without_snakemakes_own_bookkeeping_everything_is_published_again_and_nothing_is_done_again(own):
    before = {stage: own.manifest(stage) for stage in STAGES}
    made = {path: path.stat().st_mtime_ns for path in own.folder.glob("results/tiny/**/*.safetensors")}
    shutil.rmtree(own.folder / ".snakemake")
    for manifest in own.folder.glob("results/tiny/*/manifest.json"):
        manifest.unlink()
    output = own.run()
    assert output.count("published again") >= 5
    assert {stage: own.manifest(stage) for stage in STAGES} == before
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_forcing_a_stage_republishes_it_and_says_how_to_redo_it(own):
    before = own.manifest("sft")
    output = own.run("results/tiny/sft/manifest.json", "--forcerun", "sft")
    assert "To redo it, delete the folder" in output
    assert own.manifest("sft") == before


def test_a_damaged_file_is_refused_by_whoever_reads_it(own):
    model = own.folder / "results/tiny/sft/model.safetensors"
    good = model.read_bytes()
    model.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    own.configure({"chat_eval.max_new_tokens": 5})
    failed = own.snakemake("results/tiny/chat_eval/sft/manifest.json")
    assert failed.returncode != 0
    assert "sha256 differs from its manifest" in failed.stdout + failed.stderr
    assert "python -m nanochat.verify --repair" in failed.stdout + failed.stderr


def test_a_finished_stage_whose_keys_were_edited_is_trained_anew(own):
    """With commits of the old training in its folder: the last of them, and those on the way to it."""
    own.configure({"mid_train.seed": 3, "mid_train.commit_every": 1})
    own.run("results/tiny/mid_train/manifest.json")
    assert len(list((own.folder / "results/tiny/resume/mid_train").glob("step_*"))) == 2
    own.configure({"mid_train.seed": 4, "mid_train.commit_every": 1})
    own.run("results/tiny/mid_train/manifest.json")
    assert own.manifest("mid_train")["specification"]["seed"] == 4


def test_a_failed_evaluation_leaves_a_report_of_the_rest(own):
    short = {"chat_eval.max_new_tokens": 5}
    own.configure({"base_eval.samples": ["word " * 5_000], **short})  # more than the model can read
    failed = own.snakemake()
    assert failed.returncode != 0
    assert "Shorten the prompt" in failed.stdout + failed.stderr
    assert "completed successfully, but" not in failed.stdout + failed.stderr, "a failed program is said to have failed"
    text = (own.folder / "results/tiny/report/report.md").read_text()
    assert "base_eval" in text and "has not finished" in text
    evaluated = own.manifest("chat_eval/sft")["specification"]
    assert evaluated["max_new_tokens"] == 5, "what does not depend on the evaluation goes on"
    own.configure(short)
    own.run()
    assert "has not finished" not in (own.folder / "results/tiny/report/report.md").read_text()


def test_a_run_that_reuses_stages_runs_only_its_own(project):
    project.configure({"runs": {"tiny": {}, "more": {"base_train": "tiny", "mid_train": "tiny", "sft": {"epochs": 0.03}}}})
    assert project.planned() == {**PROOF, "sft": 1, "chat_eval": 1, "trace": 1, "report": 1, "comparison": 1}
    refused = project.snakemake("-n", "results/more/base_train/manifest.json")
    assert refused.returncode != 0
    assert "more reuses this stage of tiny" in refused.stderr + refused.stdout
    assert "results/tiny/base_train/manifest.json" in refused.stderr + refused.stdout


def test_an_unknown_run_is_named(project):
    refused = project.snakemake("-n", "results/nobody/sft/manifest.json")
    assert refused.returncode != 0
    assert "there is no run nobody" in refused.stderr + refused.stdout


def test_single_stages_can_be_asked_for(project, tmp_path):
    fresh = Project(tmp_path / "fresh")
    fresh.configure()
    assert {"tokenizer", "download_file"} == fresh.planned("results/tiny/tokenizer/manifest.json").keys()
    assert fresh.planned()["download_file"] > 5
    until = fresh.planned("--until", "base_train")
    assert {"tokenizer", *TOKENS, "base_train", "download_file"} == until.keys()  # all that any GPU stage reads comes first
    trace = fresh.planned("results/tiny/trace/manifest.json")
    assert trace == fresh.planned("--until", "trace") == {**until, "trace": 1}
    assert fresh.planned("download") == {"download_file": fresh.planned()["download_file"]}


def test_rules_list_with_what_they_do(project):
    text = project.run("--list-rules")
    for rule in (
        "download",
        "tokenizer",
        "tokens_pretrain",
        "tokens_core",
        "base_train",
        "base_eval",
        "mid_train",
        "sft",
        "chat_eval",
        "trace",
        "report",
    ):
        assert rule in text
    assert "Train the base model on text." in text


def test_dag_draws_every_stage(project):
    text = project.run("--dag")
    assert text[text.index("digraph") :].count("->") > 20


def test_snakemake_report_shows_the_pages(project):
    project.run("--report", "report.zip")
    with zipfile.ZipFile(project.folder / "report.zip") as archive:
        files = {Path(name).name: name for name in archive.namelist() if "/data/raw/" in name}
        assert files.keys() >= {"report.html", "report.md", "loss.png", "core.png", "chat.png", "forward.html", "step.html"}
        assert archive.read(files["report.html"]) == (project.folder / "results/tiny/report/report.html").read_bytes()


def test_lint_finds_nothing(project):
    assert "Congratulations" in project.run("--lint")


def test_the_reference_run_plans_240_shards(project):
    text = project.run("-n", config="config/config.yaml")
    assert "d20" in text
    jobs = dict(line.split() for line in text.split("Job stats:")[1].splitlines() if len(line.split()) == 2)
    assert int(jobs["download_file"]) >= 240 + len(SPLITS)
    assert int(jobs["base_train"]) == 1


# -- wrong configurations ----------------------------------------------------------------------------------------------------

WRONG = [
    ("base_train.depht", 4, "base_train.depht is unknown. Did you mean base_train.depth?"),
    ("base_trian", {}, "base_trian is unknown. Did you mean base_train?"),
    ("base_train.depth", "four", "base_train.depth"),
    ("base_train.depth", 0, "base_train.depth"),
    ("base_train.depth", 4.5, "base_train.depth"),
    ("base_train.matrix_lr", "3e-4", "3.0e-4"),
    ("base_train.matrix_lr", -0.1, "base_train.matrix_lr"),
    ("base_train.warmdown_ratio", 1.5, "base_train.warmdown_ratio"),
    ("base_train.preset", "gpt5", "base_train.preset"),
    ("base_train.dtype", "fp16", "base_train.dtype"),
    ("base_train.model", {"mlp": "swiglu"}, "base_train.model.mlp"),
    ("base_train.model", {"rotary": True}, "base_train.model.rotary is unknown"),
    ("base_train.heads", 5, "heads"),
    ("base_train.total_batch_tokens", 1000, "base_train.total_batch_tokens"),
    ("sft.total_batch_tokens", 300, "sft.total_batch_tokens"),
    ("tokenizer.vocab_size", 70_000, "tokenizer.vocab_size"),
    ("tokenizer.vocab_size", 100, "tokenizer.vocab_size"),
    ("tokenizer.shards", 9, "tokenizer.shards"),
    ("download.pretraining", "fineweb", "fineweb"),
    ("download.train_shards", 400, "download.train_shards"),
    ("download.validation_shard", 77, "download.validation_shard"),
    ("catalogue", "config/nowhere.yaml", "config/nowhere.yaml"),
    ("mid_train.mixture", [], "mid_train.mixture"),
    ("mid_train.mixture", [{"task": "gms8k"}], "mid_train.mixture"),
    ("mid_train.mixture", [{"task": "gsm8k", "split": "dev"}], "split"),
    ("mid_train.mixture", [{"task": "custom"}], "needs either a file"),
    ("mid_train.mixture", [{"task": "custom", "file": "gone.jsonl"}], "gone.jsonl"),
    ("mid_train.mixture", [{"task": "gsm8k", "epochs": 1, "weight": 2}], "weight"),
    ("sft.mixture", [{"task": "custom", "source": "no_such_key"}], "no_such_key"),
    ("chat_eval.tasks", ["gsm9k"], "chat_eval.tasks"),
    ("chat_eval.temperature", -1, "chat_eval.temperature"),
    ("trace.beside", "tinny", "trace.beside is tinny, which is not in runs. Did you mean tiny?"),
    ("trace.model", "base", "trace.model"),
    ("runs", {}, "runs"),
    ("runs", {"a b": {}}, "a b"),
    ("runs", {"tiny": {"base_train": "tinny"}}, "tinny"),
    ("runs", {"tiny": {"sft": {"epoch": 2}}}, "runs.tiny.sft.epoch is unknown"),
    ("runs", {"tiny": {}, "b": {"mid_train": "tiny", "base_train": {"depth": 2}}}, "runs.b.base_train.depth"),
]


@pytest.mark.parametrize(("key", "value", "words"), WRONG, ids=[f"{key}={value}" for key, value, _ in WRONG])
def test_a_wrong_configuration_gets_one_clear_message_and_writes_nothing(tmp_path, key, value, words):
    project = Project(tmp_path / "project")
    project.configure({key: value})
    done = project.look()
    assert done.returncode != 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) < 12
    assert not (project.folder / "results").exists() and not (project.folder / "resources").exists()


def test_broken_yaml_is_shown_with_its_place(tmp_path):
    project = Project(tmp_path / "project")
    project.write((ROOT / "config/tiny.yaml").read_text().replace("sft:", "sft: [", 1))
    done = project.snakemake()
    assert done.returncode != 0
    assert "not valid JSON or YAML" in done.stderr  # Snakemake reads the file before we can, and does not say where
    told = subprocess.run(
        [sys.executable, "-m", "nanochat.config", "my.yaml"], cwd=project.folder, capture_output=True, text=True
    )
    assert told.returncode == 1
    assert re.search(r"my\.yaml.*line \d+", told.stderr)
