"""The cluster profiles: what each stage asks of SLURM, mail, and dry runs where there is no SLURM."""

import difflib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import warm
import yaml
from project import ROOT, SNAKEMAKE, Project
from snakemake_executor_plugin_slurm.validation import validate_slurm_extra

from nanochat.config import load_config
from nanochat.errors import UserError
from nanochat.jobs.mail import mail_options, read_settings

GPU_STAGES = ["base_train", "base_eval", "mid_train", "sft", "chat_eval"]
CPU_STAGES = ["tokenizer", "tokens_pretrain", "tokens_mid_train", "tokens_sft", "tokens_core", "trace"]
MADE_BY = {
    "rule_tokenizer_wildcards_d20": "tokenizer",
    "rule_tokens_pretrain_wildcards_d20": "tokens/pretrain",
    "rule_tokens_mid_train_wildcards_d20": "tokens/mid_train",
    "rule_tokens_sft_wildcards_d20": "tokens/sft",
    "rule_tokens_core_wildcards_d20": "tokens/core",
    "rule_base_train_wildcards_d20": "base_train",
    "rule_base_eval_wildcards_d20": "base_eval",
    "rule_mid_train_wildcards_d20": "mid_train",
    "rule_sft_wildcards_d20": "sft",
    "rule_chat_eval_wildcards_d20_mid_train": "chat_eval/mid_train",
    "rule_chat_eval_wildcards_d20_sft": "chat_eval/sft",
    "rule_trace_wildcards_d20": "trace",
}
GOLDEN = ROOT / "tests/golden/sbatch.txt"


def profile(name: str) -> dict:
    return yaml.safe_load((ROOT / "profiles" / name / "config.yaml").read_text())


# -- the files ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ptolemy", "slurm-template"])
def test_every_gpu_stage_has_as_many_ranks_as_gpus_and_stays_within_the_classes_limits(name):
    for stage, asked in profile(name)["set-resources"].items():
        assert asked["gres"] == f"gpu:a100:{asked['ranks']}", stage
        hours = re.fullmatch(r"(\d+)h|\d+m", asked["runtime"])
        assert hours and int(hours[1] or 0) <= 12, stage


@pytest.mark.parametrize("name", ["ptolemy", "slurm-template"])
def test_a_profile_speaks_of_every_gpu_stage_and_of_no_rule_that_does_not_exist(name):
    text = "".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    rules = set(re.findall(r"^rule (\w+):", text, re.MULTILINE)) | set(
        re.findall(r"^use rule \w+ as (\w+)", text, re.MULTILINE)
    )
    for section in ("set-resources", "set-threads"):
        named = set(profile(name)[section])
        assert set(GPU_STAGES) <= named <= rules, section


def test_the_template_differs_from_ptolemy_in_site_values_alone():
    ours, template = profile("ptolemy"), profile("slurm-template")
    assert ours.keys() == template.keys()
    for key in ours.keys() - {"default-resources", "set-resources"}:
        assert ours[key] == template[key], key
    for stage, asked in template["set-resources"].items():
        assert {**ours["set-resources"][stage], "slurm_partition": "change-me-gpu"} == asked, stage


def test_no_profile_named_default_which_snakemake_would_merge_over_every_other():
    assert not (ROOT / "profiles/default").exists()


# -- dry runs ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """Text of a dry run of d20 with the Ptolemy profile, where no program of SLURM is on the PATH."""
    project = Project(tmp_path_factory.mktemp("planned"))
    done = dry_run(project, "ptolemy")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def dry_run(project: Project, name: str) -> subprocess.CompletedProcess:
    path = project.folder / "path"  # bash and what the workflow's own lines call, and nothing of SLURM
    path.mkdir()
    for program in ("bash", "sh", "git", "which"):
        if found := shutil.which(program):
            (path / program).symlink_to(found)
    command = [SNAKEMAKE, "--profile", f"profiles/{name}", "-n"]
    return warm.snakemake(command, project.folder, environment={**os.environ, "PATH": str(path)})


def test_the_reference_run_is_planned_without_slurm(planned):
    jobs = {line.split()[0]: line.split()[1] for line in planned.split("Job stats:")[1].splitlines() if len(line.split()) == 2}
    assert int(jobs["download_file"]) >= 240 and jobs["base_train"] == "1" and jobs["chat_eval"] == "2"


def resources_of(text: str, rule: str) -> str:
    return re.search(rf"^rule {rule}:.*?resources: ([^\n]*)", text, re.MULTILINE | re.DOTALL)[1]


@pytest.mark.parametrize("stage", GPU_STAGES)
def test_gpu_stages_ask_for_8_gpus_and_as_many_ranks(planned, stage):
    asked = resources_of(planned, stage)
    assert "gres=gpu:a100:8" in asked and "ranks=8" in asked and "--open-mode=append" in asked
    assert "slurm_account=class-cse8990" in asked and "slurm_partition=gpu-a100" in asked


@pytest.mark.parametrize("stage", CPU_STAGES)
def test_stages_without_gpus_ask_for_none(planned, stage):
    asked = resources_of(planned, stage)
    assert "gres" not in asked and "slurm_account=class-cse8990" in asked


def test_the_template_plans_as_it_is(tmp_path):
    done = dry_run(Project(tmp_path / "project"), "slurm-template")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "change-me-gpu" in done.stdout


def commands() -> list[str]:
    """The snakemake commands of the documents for clusters, in the order in which they stand there."""
    text = (ROOT / "docs/ptolemy.md").read_text() + (ROOT / "docs/other-clusters.md").read_text()
    blocks = re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    table = re.findall(r"`(snakemake [^`]+)`", text)
    return list(dict.fromkeys(line for line in lines + table if re.match(r"(\w+=\w+ )?snakemake ", line)))


@pytest.mark.parametrize("command", commands())
def test_every_snakemake_command_of_the_documents_plans(tmp_path, command):
    project = Project(tmp_path / "project")
    (project.folder / "profiles").unlink()
    shutil.copytree(ROOT / "profiles", project.folder / "profiles")
    shutil.copytree(ROOT / "profiles/slurm-template", project.folder / "profiles/mysite")
    words = command.replace("my.yaml", "config/config.yaml").split()
    variables = dict(word.split("=") for word in words[: words.index("snakemake")])
    arguments = [word for word in words[words.index("snakemake") + 1 :] if word != "-n"]
    done = warm.snakemake([SNAKEMAKE, "-n", *arguments], project.folder, environment={**os.environ, **variables})
    assert done.returncode == 0, done.stdout + done.stderr


# -- what sbatch receives ----------------------------------------------------------------------------------------------------


def test_the_lines_that_sbatch_receives_for_d20(tmp_path):
    """A recording sbatch stands on the PATH. It makes each stage's manifest itself, so that the next one is submitted."""
    project = Project(tmp_path / "project")
    (project.folder / ".env.local").write_text("email=ada-Jones@msstate.edu\n")
    config = load_config(yaml.safe_load((ROOT / "config/config.yaml").read_text()), source=ROOT / "config/config.yaml")
    files = [config.catalogue.get(key).path for key in config.all_files()]
    inputs = [f"resources/{config.catalogue.folder}/{file}.manifest.json" for file in files]
    for path in [*inputs, "results/d20/preflight/manifest.json"]:
        (project.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (project.folder / path).write_text("not read\n")
    recorded = tmp_path / "recorded"
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "tests/standin/quick_snakemake.py"), "--profile", "profiles/ptolemy"),
            *("--max-status-checks-per-second", "10", "--no-hooks", "--nocolor", "--latency-wait", "5"),
            *("results/d20/base_eval/manifest.json", "results/d20/chat_eval/mid_train/manifest.json"),
            *(
                "results/d20/chat_eval/sft/manifest.json",
                "results/d20/trace/manifest.json",
                "--allowed-rules",
                *CPU_STAGES,
                *GPU_STAGES,
            ),
        ],
        cwd=project.folder,
        env={
            **os.environ,
            "PATH": f"{ROOT / 'tests/standin/recording'}:{os.environ['PATH']}",
            "RECORDED": str(recorded),
            "MADE_BY": json.dumps({comment: files_of(stage) for comment, stage in MADE_BY.items()}),
        },
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = sorted((json.loads(line) for line in recorded.read_text().splitlines()), key=stage_order)
    assert_golden("\n".join(described(words, project.folder) for words in jobs))


def files_of(stage: str) -> list[str]:
    pages = [f"results/d20/trace/{page}.html" for page in ("forward", "step") if stage == "trace"]
    return [f"results/d20/{stage}/manifest.json", f"results/d20/benchmarks/{stage.replace('/', '_')}.tsv", *pages]


def stage_order(words: list[str]) -> int:
    return list(MADE_BY).index(words[words.index("--comment") + 1])


def described(words: list[str], folder: Path) -> str:
    """The words of one call as lines, an option each; what differs from one call or machine to the next replaced."""
    lines = [words[words.index("--comment") + 1]]
    for word in words:
        word = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "{uuid}", word.replace(str(folder), "{folder}"))
        if word.startswith("--wrap"):
            assert "-m snakemake" in word and "--executor slurm-jobstep" in word
            word = "--wrap={Snakemake, for this one job}"
        if word.startswith("-"):
            lines.append(f"    {word}")
        else:
            lines[-1] += f" {word}"
    return "\n".join(lines) + "\n"


def assert_golden(text: str) -> None:
    """Compare with the golden file, or write it if NANOCHAT_ACCEPT=1."""
    if os.environ.get("NANOCHAT_ACCEPT") == "1":
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(text)
    golden = GOLDEN.read_text()
    difference = "\n".join(difflib.unified_diff(golden.splitlines(), text.splitlines(), str(GOLDEN), "now", lineterm=""))
    accept = "NANOCHAT_ACCEPT=1 python -m pytest tests/test_profile.py -k sbatch"
    assert text == golden, f"{difference}\n\nIf this is meant: {accept}"


# -- mail --------------------------------------------------------------------------------------------------------------------


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_an_address_becomes_options_of_sbatch(tmp_path):
    options = mail_options(write(tmp_path / ".env.local", "# mine\nexport email='ada@msstate.edu' # at work\n"))
    assert options == ["--mail-type=BEGIN,END,FAIL", "--mail-user=ada@msstate.edu"]


@pytest.mark.parametrize("text", [None, "", "email=\n", "other=1\n"])
def test_without_an_address_there_is_no_mail(tmp_path, text):
    path = tmp_path / ".env.local"
    if text is not None:
        path.write_text(text)
    assert mail_options(path) == []


ADDRESSES = ["ada-Jones@msstate.edu", "a-C@x.edu", "ada.b+c@cs-D.msstate.edu", "x-p@example.edu"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_the_plugin_accepts_every_address_and_the_shell_gives_it_back(tmp_path, address):
    text = " ".join(mail_options(write(tmp_path / ".env.local", f"email={address}\n")))
    validate_slurm_extra(SimpleNamespace(resources=SimpleNamespace(slurm_extra=text)))
    done = subprocess.run(f"printf '%s\\n' {text}", shell=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == f"--mail-user={address}"


def test_the_plugin_would_refuse_the_first_of_them_as_it_is():
    with pytest.raises(Exception, match="job-name"):
        validate_slurm_extra(SimpleNamespace(resources=SimpleNamespace(slurm_extra=f"--mail-user={ADDRESSES[0]}")))


@pytest.mark.parametrize(
    "text", ["email=ada\n", "email=ada@\n", "email=a b@x.edu\n", "email=a@x.edu;rm -rf\n", "email=$(id)@x.edu\n"]
)
def test_what_is_no_address_is_named(tmp_path, text):
    with pytest.raises(UserError, match="is no e-mail address"):
        mail_options(write(tmp_path / ".env.local", text))


def test_a_line_that_is_no_setting_is_named_with_its_number(tmp_path):
    with pytest.raises(UserError, match="line 2"):
        read_settings(write(tmp_path / ".env.local", "email=a@x.edu\nhello\n"))


def test_snakemake_says_so_before_anything_runs(tmp_path):
    project = Project(tmp_path / "project")
    (project.folder / ".env.local").write_text("email=ada\n")
    done = project.snakemake("-n", config="config/tiny.yaml")
    assert done.returncode != 0
    assert "error: .env.local: email=ada is no e-mail address" in done.stderr and "Traceback" not in done.stderr


def test_the_example_is_read_and_sends_nothing():
    assert mail_options(ROOT / ".env.local.example") == []
