"""Jobs that SLURM ended for good: which ones are put back, and what happens when SLURM does not take one."""

import os
import threading
from datetime import datetime
from pathlib import Path

import pytest
from project import wait_for

from nanochat.jobs import preemption

BEGUN = datetime.fromisoformat("2026-11-01T12:00:00")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Stand-ins for squeue and scontrol. Returns a function that says what squeue answers and how scontrol exits."""
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")

    def answer(lines: list[str], *, scontrol: int = 0) -> Path:
        calls = tmp_path / "calls"
        (tmp_path / "lines").write_text("".join(f"{line}\n" for line in lines))
        for name, text in {
            "squeue": f'case "$*" in *PREEMPTED*) cat {tmp_path}/lines ;; *) echo PREEMPTED ;; esac',
            "scontrol": f'echo "$@" >> {calls}; echo no such job >&2; exit {scontrol}',
        }.items():
            (programs / name).write_text(f"#!/bin/sh\n{text}\n")
            (programs / name).chmod(0o755)
        return calls

    return answer


def test_only_this_folders_jobs_of_this_snakemake_are_found(slurm, tmp_path):
    slurm(
        [
            f"7|PREEMPTED|2026-11-01T12:30:00|rule_sft_wildcards_d20|{tmp_path}",
            f"8|NODE_FAIL|2026-11-01T12:00:00|rule_base_eval_wildcards_d20|{tmp_path}",
            f"5|PREEMPTED|2026-11-01T11:59:59|rule_base_train_wildcards_d20|{tmp_path}",
            "9|PREEMPTED|2026-11-01T12:30:00|rule_sft_wildcards_d20|/elsewhere",
            "half a line",
        ]
    )
    found = preemption.ended_by_slurm(tmp_path, since=BEGUN)
    assert [job for job, _, _ in found] == ["7", "8"]


def test_without_slurm_nothing_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert preemption.ended_by_slurm(tmp_path, since=BEGUN) == []


def test_a_preempted_job_is_requeued(slurm, tmp_path):
    calls = slurm([f"7|PREEMPTED|2099-01-01T00:00:00|rule_sft_wildcards_d20|{tmp_path}"])
    ended = preemption.watch(tmp_path, seconds=0.05, give_up=pytest.fail)
    wait_for(lambda: calls.exists() and "requeue 7" in calls.read_text(), timeout_s=30)
    ended.set()


def test_a_job_that_slurm_does_not_take_back_is_given_up_once_with_its_reason(slurm, tmp_path):
    slurm([f"7|PREEMPTED|2099-01-01T00:00:00|rule_sft_wildcards_d20|{tmp_path}"], scontrol=1)
    said, heard = [], threading.Event()

    def give_up(problem: str) -> None:
        said.append(problem)
        heard.set()

    ended = preemption.watch(tmp_path, seconds=0.05, give_up=give_up)
    assert heard.wait(30)
    ended.set()
    assert "SLURM job 7 (rule_sft_wildcards_d20)" in said[0] and "no such job" in said[0]
