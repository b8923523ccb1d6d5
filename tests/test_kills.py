"""SIGKILL anywhere, trainings in segments: the bits stay the same. The same code at larger counts: make torture."""

import subprocess
import sys

import pytest
from torture import chains, kills
from torture.board import Row
from torture.victims import kill_tree, processes

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")]


def assert_holds(rows: list[Row]) -> None:
    for row in rows:
        print(row)
        assert row.holds, f"{row.promise}: {row.failures} of {row.trials} failed: {'; '.join(row.examples)}"


def test_ten_kills_over_the_whole_dag_change_no_bit(tmp_path):
    rows = kills.rows(10, seed=1, folder=tmp_path, say=print)
    assert_holds(rows)
    trials, control = rows
    assert trials.trials >= 10 and control.is_control
    assert len(trials.details["targets"]) == 4 and len(trials.details["stages"]) >= 5


def test_a_training_in_1_2_3_and_7_segments_ends_in_the_same_bits(tmp_path):
    rows = chains.rows(4, seed=1, folder=tmp_path, say=print)
    assert_holds(rows)
    assert [row.is_control for row in rows] == [False, True, True] and rows[0].details["segments"] == 13


def test_who_works_in_a_folder_is_found_and_killed(tmp_path):
    """The killer's own eyes and hands: a process that left its parent is seen by the folder it works in."""
    orphan = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    subprocess.run([sys.executable, "-c", orphan], cwd=tmp_path, check=True)
    assert len(processes(tmp_path)) == 1
    kill_tree(tmp_path)
    assert not processes(tmp_path)
