"""When a stage must stop, and how SLURM's answers are read."""

import time

import pytest

from nanochat.errors import UserError
from nanochat.jobs import slurm
from nanochat.jobs.deadline import Deadline, find_deadline


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Stand-ins for SLURM's commands: commands("squeue", "echo 5:00")."""
    for name in ("NANOCHAT_RUNTIME_S", "NANOCHAT_MARGIN_S"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def put(name, script):
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)

    for name in ("squeue", "scontrol"):  # also where SLURM is installed: its own must not be asked
        put(name, "exit 1")
    return put


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0:30", 30),
        ("59:59", 3599),
        ("11:59:58", 43198),
        ("1-02:03:04", 93784),
        ("UNLIMITED", float("inf")),
        ("NOT_SET", None),
        ("INVALID", None),
        ("", None),
        (None, None),
        ("-1:30", None),
        ("12", None),
    ],
)
def test_durations_as_squeue_writes_them(text, seconds):
    assert slurm.parse_duration(text) == seconds


def test_the_wall_comes_from_squeue(commands):
    commands("squeue", 'case "$*" in "-h -j 5 -o %L") echo 1:30:00;; "-h -j 5 -o %l") echo 12:00:00;; esac')
    deadline = find_deadline(job="5", runtime_min=1)
    assert deadline.seconds_left() == pytest.approx(5400, abs=10)
    assert (deadline.limit, deadline.source) == (43200, "SLURM")


def test_an_unlimited_job_has_no_wall(commands):
    commands("squeue", "echo UNLIMITED")
    assert find_deadline(job="5", runtime_min=720) is None


@pytest.mark.parametrize("answer", ["exit 1", "echo INVALID", "echo NOT_SET", "true"])
def test_without_an_answer_the_runtime_resource_counts(commands, answer):
    commands("squeue", answer)
    deadline = find_deadline(job="5", runtime_min=720)
    assert deadline.seconds_left() == pytest.approx(43200, abs=10)
    assert find_deadline(job="5", runtime_min=None) is None


def test_the_guess_counts_from_the_start_of_the_job(commands):
    deadline = find_deadline(job="5", runtime_min=720, began=time.monotonic() - 3600)
    assert deadline.is_guess and deadline.seconds_left() == pytest.approx(39600, abs=10)


def test_outside_slurm_there_is_no_wall_unless_the_environment_names_one(commands, monkeypatch):
    assert find_deadline(job=None, runtime_min=720) is None
    monkeypatch.setenv("NANOCHAT_RUNTIME_S", "90")
    assert find_deadline(job=None, runtime_min=720).seconds_left() == pytest.approx(90, abs=10)
    monkeypatch.setenv("NANOCHAT_RUNTIME_S", "soon")
    with pytest.raises(UserError, match="NANOCHAT_RUNTIME_S: 'soon' is not a number of seconds"):
        find_deadline(job=None, runtime_min=None)


@pytest.mark.parametrize(
    ("limit", "commit_s", "pause_s", "margin"),
    [
        (43_200, 0, 0, 300),  # 5 % of 12 h is 36 min: more than anybody needs
        (3_600, 0, 0, 180),
        (100, 0, 0, 20),
        (43_200, 200, 0, 600),  # three of the longest commits
        (43_200, 10, 60, 360),  # and a step or an evaluation may have just begun
        (60, 100, 0, 30),  # never more than half
    ],
)
def test_the_margin_follows_what_commits_and_steps_took(monkeypatch, limit, commit_s, pause_s, margin):
    monkeypatch.delenv("NANOCHAT_MARGIN_S", raising=False)
    assert Deadline(wall=0, limit=limit, source="").margin(commit_s=commit_s, pause_s=pause_s) == margin


def test_the_margin_can_be_given(monkeypatch):
    monkeypatch.setenv("NANOCHAT_MARGIN_S", "7")
    assert Deadline(wall=0, limit=43_200, source="").margin(commit_s=100) == 7


@pytest.mark.parametrize(
    ("answer", "runs"),
    [
        ("echo RUNNING", True),
        ("echo COMPLETING", True),  # its processes may still write
        ("echo SUSPENDED", True),
        ("echo PENDING", False),
        ("echo CANCELLED", False),
        ("echo NODE_FAIL", False),
        ("true", False),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", False),
        ("echo 'Unable to contact slurm controller (connect failure)' >&2; exit 1", None),
    ],
)
def test_whether_a_job_runs(commands, answer, runs):
    commands("squeue", answer)
    assert slurm.is_running("5") is runs


def test_a_job_that_was_restarted_does_not_run_as_it_did(commands):
    commands("squeue", "echo RUNNING")
    commands("scontrol", "echo 'JobState=RUNNING Requeue=1 Restarts=2 BatchFlag=1'")
    assert slurm.is_running("5", restart=2) is True
    assert slurm.is_running("5", restart=1) is False


def test_without_slurm_nothing_is_known(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm.seconds_left("5") is None and slurm.num_restarts("5") is None and slurm.is_running("5") is None
    assert slurm.requeue("5") == "scontrol did not answer"


def test_a_refused_requeue_says_why(commands):
    commands("scontrol", "echo 'Requested operation is presently disabled' >&2; exit 1")
    assert slurm.requeue("5") == "Requested operation is presently disabled"
    commands("scontrol", "true")
    assert slurm.requeue("5") is None


@pytest.mark.parametrize(
    ("refusal", "is_definite"),
    [
        ("Requested operation is presently disabled", True),
        ("Invalid job id specified", True),
        ("slurm_load_jobs error: Unable to contact slurm controller (connect failure)", False),
        ("Socket timed out on send/recv operation", False),
        ("Job can not be altered now, try again later", False),
        ("Job is pending execution", False),
        (slurm.NO_ANSWER, False),
    ],
)
def test_a_refusal_is_told_from_no_answer(refusal, is_definite):
    assert slurm.is_definite(refusal) is is_definite


@pytest.mark.parametrize(
    ("answer", "is_preempted"),
    [("echo PreemptTime=None", False), ("echo PreemptTime=2026-01-02T03:04:05", True), ("true", False), ("exit 1", None)],
)
def test_whether_a_job_is_preempted(commands, answer, is_preempted):
    commands("scontrol", answer)
    assert slurm.is_preempted("5") is is_preempted


def test_times_are_written_as_slurm_does_whatever_a_person_likes(commands, monkeypatch):
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    commands("squeue", "echo $SLURM_TIME_FORMAT")
    assert slurm.ask("squeue") == "standard\n"


def test_how_long_slurm_remembers_a_job(commands):
    assert slurm.min_job_age() == 300
    commands("scontrol", "echo 'MinJobAge               = 20 sec'")
    assert slurm.min_job_age() == 20
