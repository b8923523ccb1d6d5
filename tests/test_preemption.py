"""What Snakemake's process does for its jobs: those that SLURM ended, holds, or has forgotten."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from project import wait_for

from nanochat.jobs import preemption
from nanochat.jobs.preemption import Jobs, jobs_of

NAME = "nanochat_0b1e9e2c-5b7f-4a55-9c0e-2f3d4c5b6a79"


class Slurm:
    """Stand-ins for squeue and scontrol: what the one lists, how the other answers."""

    def __init__(self, folder: Path):
        self.folder, self.calls = folder, folder / "calls"
        self.lines, self.refusal, self.age = folder / "lines", folder / "refusal", folder / "age"
        self.age.write_text("MinJobAge = 300 sec\n")
        self.list()
        self.put("squeue", f"cat {self.lines}")
        refuse = f'echo "$@" >> {self.calls}; [ ! -e {self.refusal} ] || {{ cat {self.refusal} >&2; exit 1; }}'
        self.put("scontrol", f'case "$1" in show) cat {self.age};; *) {refuse};; esac')

    def put(self, name: str, script: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def list(self, *jobs: str, place: Path | None = None) -> None:
        """7 PREEMPTED None: id, state, reason."""
        rows = ["|".join([*job.split(" ", 2), NAME, "rule_sft_wildcards_d20", str(place or self.folder)]) for job in jobs]
        self.lines.write_text("".join(f"{row}\n" for row in rows))

    def refuse(self, reason: str) -> None:
        self.refusal.write_text(reason)

    def fall_silent(self) -> None:
        self.lines.unlink()

    def said(self) -> str:
        return self.calls.read_text() if self.calls.exists() else ""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return Slurm(tmp_path)


@pytest.fixture
def jobs(slurm, tmp_path):
    """Of a Snakemake that began when there were none."""
    found = Jobs(tmp_path, seconds=30)
    assert found.look() is None
    return found


def hear() -> tuple[list[str], threading.Event, Callable[[str], None]]:
    said, heard = [], threading.Event()

    def give_up(problem: str) -> None:
        said.append(problem)
        heard.set()

    return said, heard, give_up


def test_only_this_folders_jobs_of_a_snakemake_are_found(slurm, tmp_path):
    slurm.list("7 PREEMPTED None", "8 RUNNING None")
    mine = slurm.lines.read_text()
    slurm.list("9 RUNNING None", place=Path("/elsewhere"))
    by_hand = f"10|RUNNING|None|interactive||{tmp_path}\n"
    slurm.lines.write_text(mine + slurm.lines.read_text() + by_hand + "half a line\n")
    assert [job.id for job in jobs_of(tmp_path)] == ["7", "8"]


def test_without_slurm_nothing_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert jobs_of(tmp_path) is None


def test_jobs_that_were_there_before_are_left_alone(slurm, tmp_path):
    slurm.list("5 PREEMPTED None")
    jobs = Jobs(tmp_path, seconds=30)
    for _ in range(3):
        assert jobs.look() is None
    slurm.list()
    for _ in range(3):
        assert jobs.look() is None
    assert not slurm.said()


def test_a_preempted_job_is_requeued(slurm, tmp_path):
    ended = preemption.watch(tmp_path, seconds=0.05, give_up=pytest.fail)
    slurm.list("7 PREEMPTED None")
    wait_for(lambda: "requeue 7" in slurm.said(), timeout_s=30)
    ended.set()


def test_a_job_that_slurm_does_not_take_back_is_given_up_once_with_its_reason(slurm, tmp_path):
    slurm.refuse("no such job")
    said, heard, give_up = hear()
    ended = preemption.watch(tmp_path, seconds=0.05, give_up=give_up)
    slurm.list("7 PREEMPTED None")
    assert heard.wait(30)
    ended.set()
    assert len(said) == 1
    assert "SLURM job 7 (rule_sft_wildcards_d20)" in said[0] and "no such job" in said[0]


def test_a_job_is_given_up_only_when_it_is_refused_twice_and_still_there(slurm, jobs):
    slurm.refuse("Requested operation is presently disabled")
    slurm.list("7 PREEMPTED None")
    assert jobs.look() is None
    slurm.list("7 PENDING None")  # on its way back already, as we were refused
    assert jobs.look() is None
    slurm.list("7 PREEMPTED None")
    assert jobs.look() is None
    slurm.fall_silent()
    assert jobs.look() is None
    slurm.list("7 PREEMPTED None")
    assert "presently disabled" in jobs.look()


@pytest.mark.parametrize("answer", ["Unable to contact slurm controller (connect failure)", "Socket timed out on send/recv"])
def test_a_slurm_that_does_not_answer_has_refused_nothing(slurm, jobs, answer):
    slurm.refuse(answer)
    slurm.list("7 NODE_FAIL None")
    for _ in range(4):
        assert jobs.look() is None
    assert slurm.said().count("requeue 7") == 4


def test_a_job_that_vanishes_unseen_is_given_up(slurm, jobs):
    slurm.list("7 RUNNING None", "8 RUNNING None")
    assert jobs.look() is None
    slurm.list("8 RUNNING None")
    assert jobs.look() is None
    slurm.fall_silent()  # no answer, which is not an answer without it
    assert jobs.look() is None
    slurm.list("8 RUNNING None")
    assert "SLURM job 7 (rule_sft_wildcards_d20) vanished from the queue" in jobs.look()


def test_a_job_that_comes_back_or_was_seen_to_end_has_not_vanished(slurm, jobs):
    for listed in (
        ["7 RUNNING None", "8 RUNNING None"],
        ["7 COMPLETED None"],
        ["8 RUNNING None"],
        [],
        ["8 FAILED None"],
        [],
        [],
    ):
        slurm.list(*listed)
        assert jobs.look() is None


def test_where_slurm_forgets_sooner_than_we_look_nothing_has_vanished(slurm, jobs):
    slurm.age.write_text("MinJobAge = 20 sec\n")
    slurm.list("7 RUNNING None")
    for _ in range(3):
        assert jobs.look() is None
        slurm.list()


def test_a_held_job_is_told_once_with_the_command_that_lets_it_go(slurm, jobs, caplog):
    slurm.list("7 PENDING launch failed requeued held", "8 PENDING JobHeldAdmin", "9 PENDING Priority")
    for _ in range(3):
        assert jobs.look() is None
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "(launch failed requeued held)" in said[0] and "scontrol release 7" in said[0]
    assert "(JobHeldAdmin)" in said[1] and "scontrol release 8" in said[1]
