"""One at a time: who gets a stage, who is believed to be dead, and who is waited for."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from nanochat.errors import UserError
from nanochat.jobs import attempt as messages
from nanochat.jobs import lease as module
from nanochat.jobs import processes
from nanochat.jobs.attempt import Attempt, ask_to_stop, newest_claim, read_stop
from nanochat.jobs.lease import claim, read_holder, take_lease

ROOT = Path(__file__).resolve().parent.parent

# holds until asked to let go, and notes between which moments
HOLDER = """
import logging, sys, time
from itertools import pairwise
from pathlib import Path
from nanochat.jobs.attempt import read_stop
from nanochat.jobs.lease import take_lease
logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
state, seconds = Path(sys.argv[1]), float(sys.argv[2])
lease = take_lease(state, name="base_train")
began = time.monotonic_ns()
print("held", lease.holder.claim, flush=True)
end = time.monotonic() + seconds
while time.monotonic() < end and not read_stop(state, lease.holder.claim):
    time.sleep(0.01)
print(began, time.monotonic_ns(), flush=True)
lease.release()
"""

# many tries for a number at the same moment, in folders 0, 1, 2, ...
TAKER = """
import os, sys, time
from itertools import pairwise
from pathlib import Path
from nanochat.jobs import lease
if "--not-exclusive" in sys.argv:
    lease.os.O_EXCL = 0
folder, who = Path(sys.argv[1]), sys.argv[2]
for number in range(20):
    state = folder / str(number)
    (folder / f"ready-{number}-{who}").touch()
    while len(list(folder.glob(f"ready-{number}-*"))) < 2:
        pass
    print(int(lease.claim(state, 8, name="base_train", log_path=None) is not None), flush=True)
"""


@pytest.fixture
def state(tmp_path):
    return tmp_path / "resume" / "base_train"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Heartbeats and patience of a test; no SLURM."""
    for name in ("SLURM_JOB_ID", "SLURMD_NODENAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NANOCHAT_HEARTBEAT_S", "0.1")
    monkeypatch.setattr(module, "POLL_S", 0.05)
    monkeypatch.setattr(module, "SECONDS_BETWEEN_QUESTIONS", 0.2)


def start(script, *arguments, environment=None):
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**(environment or os.environ), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def hold(state, seconds=600):
    """A process that holds the stage."""
    process = start(HOLDER, state, seconds)
    assert process.stdout.readline().startswith("held")
    return process


def hold_after(state, number):
    """The same when that claim has been released."""
    path = state / "claims" / f"{number:08d}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"released": "now"}))
    environment = {key: value for key, value in os.environ.items() if key != "SLURM_JOB_ID"}
    process = start(HOLDER, state, 600, environment=environment)
    assert process.stdout.readline().startswith("held")
    return process


def foreign(state, number=1, **fields):
    """A claim of somebody whom we cannot see from here."""
    (state / "claims").mkdir(parents=True, exist_ok=True)
    holder = {"claim": number, "job": None, "host": "gpu-c-9", "pid": 4711, "process_space": "elsewhere", **fields}
    (state / "claims" / f"{number:08d}.json").write_text(json.dumps(holder))


def test_a_lease_tells_who_holds_it_and_is_renewed_and_released(state):
    lease = take_lease(state, name="base_train", log_path="results/tiny/logs/base_train.log")
    first = json.loads((state / "lease.json").read_text())
    assert (first["name"], first["pid"], first["log"]) == ("base_train", os.getpid(), "results/tiny/logs/base_train.log")
    end = time.monotonic() + 30
    while json.loads((state / "lease.json").read_text())["beat"] == first["beat"]:
        assert time.monotonic() < end
    lease.release()
    assert not (state / "lease.json").exists()
    again = take_lease(state, name="base_train")
    assert again.holder.claim == 2 and not again.is_lost
    again.release()


def race(folder, *options):
    """How many of two takers got each of 20 claims for which they tried at once."""
    for number in range(20):
        foreign(folder / str(number), 7)
    takers = [start(TAKER, folder, who, *options) for who in "ab"]
    won = [list(map(int, taker.communicate(timeout=60)[0].split())) for taker in takers]
    assert [len(results) for results in won] == [20, 20]
    return [a + b for a, b in zip(*won, strict=True)]


def test_of_two_takers_at_once_exactly_one_gets_the_stage_twenty_times(tmp_path):
    assert race(tmp_path) == [1] * 20


def test_without_exclusive_creation_both_would_get_it(tmp_path):
    """Negative control."""
    assert 2 in race(tmp_path, "--not-exclusive")


def test_holders_never_overlap_when_three_take_over_from_a_dead_one(state):
    dead = hold(state)
    dead.kill()
    dead.communicate()
    takers = [start(HOLDER, state, 0.2) for _ in range(3)]
    held = sorted(tuple(map(int, taker.communicate(timeout=60)[0].splitlines()[1].split())) for taker in takers)
    assert all(end <= began for (_, end), (began, _) in pairwise(held))


def test_a_late_taker_finds_the_number_taken(state):
    foreign(state, 7)
    assert claim(state, 8, name="x", log_path=None)
    assert claim(state, 8, name="x", log_path=None) is None  # judged 7 dead long ago, acts only now
    assert newest_claim(state) == 8


def test_a_taker_with_an_old_view_of_the_folder_withdraws(state):
    foreign(state, 9)
    assert claim(state, 8, name="x", log_path=None) is None
    assert newest_claim(state) == 9


def test_old_claims_are_cleared_away_but_not_the_last_twenty(state):
    for _ in range(25):
        take_lease(state, name="x").release()
    assert len(list((state / "claims").iterdir())) == 20
    assert newest_claim(state) == 25


def test_a_living_holder_is_asked_and_lets_go(state, caplog):
    caplog.set_level("INFO", "nanochat")
    holder = hold(state)
    lease = take_lease(state, name="base_train")
    assert lease.holder.claim == 2
    assert f"process {holder.pid} on " in caplog.text and "asked it to commit and let go" in caplog.text
    assert read_stop(state, 1)["reason"] == "handover" and not read_stop(state, 2)
    assert holder.wait(10) == 0
    lease.release()


def test_a_holder_that_does_not_let_go_is_named_after_a_bounded_time(state, monkeypatch):
    monkeypatch.setenv("NANOCHAT_HANDOVER_S", "0.5")
    foreign(state)
    with pytest.raises(
        UserError, match=r"process 4711 on gpu-c-9 works on this stage and did not let go .*kill 4711 on gpu-c-9"
    ):
        take_lease(state, name="base_train")
    assert newest_claim(state) == 1


def test_a_holder_whose_process_is_gone_is_not_waited_for(state, caplog):
    caplog.set_level("INFO", "nanochat")
    holder = hold(state)
    holder.kill()
    holder.communicate()
    take_lease(state, name="base_train").release()
    assert "is gone; going on from its last commit" in caplog.text
    assert not (state / "stop.json").exists()


def test_a_process_number_that_was_given_again_is_no_holder(state):
    mine = read_holder(state, 0)
    assert not module.is_gone(mine)  # of whom nothing is known, nothing is proven
    living = module.Holder(
        claim=1, pid=os.getpid(), pid_started=module.start_time(os.getpid()), process_space=module.process_space()
    )
    assert not module.is_gone(living)
    earlier = module.Holder(claim=1, pid=os.getpid(), pid_started=1, process_space=module.process_space())
    assert module.is_gone(earlier)


def test_a_frozen_holder_loses_the_stage_and_notices(state, monkeypatch, caplog):
    caplog.set_level("INFO", "nanochat")
    monkeypatch.setenv("NANOCHAT_SILENCE_S", "1")
    holder = hold(state)
    os.kill(holder.pid, signal.SIGSTOP)
    lease = take_lease(state, name="base_train")
    assert "has given no sign of life for 1 s and is taken for dead" in caplog.text
    os.kill(holder.pid, signal.SIGCONT)
    holder.communicate(timeout=30)  # was asked to let go meanwhile, and releases what it does not hold any more
    assert not lease.is_lost and json.loads((state / "lease.json").read_text())["claim"] == lease.holder.claim
    lease.release()


def test_a_holder_whose_heart_beats_is_not_taken_for_dead(state, monkeypatch):
    """Negative control of the test above: its clock may say what it likes, only the change counts."""
    monkeypatch.setenv("NANOCHAT_SILENCE_S", "1.5")
    monkeypatch.setenv("NANOCHAT_HANDOVER_S", "4")
    foreign(state)
    beat = "import sys, time, pathlib\nwhile True: pathlib.Path(sys.argv[1]).write_text(str(time.time_ns())); time.sleep(0.1)"
    heart = start(beat, state / "lease.json")
    try:
        with pytest.raises(UserError, match="did not let go"):
            take_lease(state, name="base_train")
    finally:
        heart.kill()
        heart.communicate()


def test_a_claim_whose_writer_died_half_way_is_outlasted(state, monkeypatch):
    monkeypatch.setenv("NANOCHAT_SILENCE_S", "0.5")
    foreign(state)
    (state / "claims" / "00000001.json").write_text("")
    lease = take_lease(state, name="base_train")
    assert lease.holder.claim == 2
    lease.release()


@pytest.mark.parametrize(
    ("squeue", "is_over"),
    [
        ("echo CANCELLED", True),
        ("echo PENDING", True),
        ("echo 'Invalid job id specified' >&2; exit 1", True),
        ("echo RUNNING", False),
        ("exit 1", False),
    ],
)
def test_slurm_tells_whether_the_holders_job_is_over(state, tmp_path, monkeypatch, squeue, is_over):
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("NANOCHAT_HANDOVER_S", "0.5")
    (tmp_path / "squeue").write_text(f"#!/bin/bash\n{squeue}\n")
    (tmp_path / "squeue").chmod(0o755)
    foreign(state, job="12")
    if is_over:
        take_lease(state, name="base_train").release()
    else:
        with pytest.raises(UserError, match=r"SLURM job 12, process 4711 on gpu-c-9 works on this stage.*scancel 12"):
            take_lease(state, name="base_train")


def test_an_earlier_run_of_the_own_job_is_over(state, tmp_path, monkeypatch):
    """Put back in the queue after its node failed: the same number, one restart more."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    for name, answer in (("squeue", "RUNNING"), ("scontrol", "JobId=12 Restarts=1")):
        (tmp_path / name).write_text(f"#!/bin/bash\necho {answer}\n")
        (tmp_path / name).chmod(0o755)
    foreign(state, job="12", restart=0)
    lease = take_lease(state, name="base_train")
    assert (lease.holder.job, lease.holder.restart) == ("12", 1)
    lease.release()


@pytest.mark.parametrize("was_here", [True, False])
def test_a_job_that_comes_back_gives_way_to_whoever_took_the_stage_meanwhile(state, tmp_path, monkeypatch, was_here):
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    for name, answer in (("squeue", "RUNNING"), ("scontrol", "Restarts=1")):
        (tmp_path / name).write_text(f"#!/bin/bash\necho {answer}\n")
        (tmp_path / name).chmod(0o755)
    foreign(state, 1, job="12" if was_here else "11", restart=0)
    other = hold_after(state, 1)
    try:
        if was_here:
            with pytest.raises(UserError, match=r"took this stage over while job 12 was away"):
                take_lease(state, name="base_train")
            assert not read_stop(state, 2)
        else:  # a new job asks for the stage
            take_lease(state, name="base_train").release()
            assert read_stop(state, 2)["reason"] == "handover"
    finally:
        other.kill()
        other.communicate()


def test_waiting_ends_when_the_waiting_one_is_asked_to_stop(state):
    foreign(state)
    with pytest.raises(UserError, match="stopped while waiting for"):
        take_lease(state, name="base_train", should_stop=lambda: True)


def test_a_request_to_stop_is_meant_for_one_claim(state):
    foreign(state, 3)
    ask_to_stop(state, 3, reason="handover", text="")
    assert Attempt(state, 3).stop_requested() == "handover"
    foreign(state, 4)
    assert Attempt(state, 4).stop_requested() is None
    assert Attempt(state, 3).stop_requested() == "lost"
    with pytest.raises(UserError, match="somebody else has taken this stage over"):
        Attempt(state, 3).ensure_held()


def test_one_that_lost_the_stage_leaves_the_new_holders_status_alone(state):
    foreign(state, 3)
    late = Attempt(state, 3)
    foreign(state, 4)
    Attempt(state, 4).report(state="running", step=5)
    late.report(state="running", step=2)
    late.failed("too late")
    assert json.loads((state / "status.json").read_text())["step"] == 5


# -- file systems and machines that do not behave ----------------------------------------------------------------------------


def test_a_holder_whose_claim_was_read_too_early_is_named(state, monkeypatch):
    """Between the making of a claim and the writing of its content."""
    monkeypatch.setenv("NANOCHAT_HANDOVER_S", "0.5")
    foreign(state)
    early = module.Holder(claim=1)
    with pytest.raises(UserError, match=r"process 4711 on gpu-c-9 works on this stage.*kill 4711 on gpu-c-9"):
        module.outlast(state, early, lambda: False)


def test_others_can_read_who_holds_a_stage_whatever_the_umask(state):
    before = os.umask(0o077)
    try:
        lease = take_lease(state, name="x")
    finally:
        os.umask(before)
    for path in (state / "lease.json", state / "claims" / "00000001.json"):
        assert path.stat().st_mode & 0o777 == 0o644
    lease.release()


def test_a_folder_that_fails_for_a_moment_ends_nothing_but_is_told_once(state, monkeypatch, caplog):
    foreign(state, 3)
    attempt = Attempt(state, 3)
    with monkeypatch.context() as broken:
        broken.setattr(messages, "newest_claim", fail)
        attempt.report(state="running", step=1)
        assert attempt.stop_requested() is None
        with pytest.raises(OSError, match="Stale file handle"):  # what guards the commits stays strict
            attempt.ensure_held()
    assert len(caplog.records) == 1 and "Stale file handle" in caplog.text
    attempt.finished()
    assert json.loads((state / "status.json").read_text())["state"] == "finished"


def test_the_word_that_a_program_stopped_is_repeated_until_it_is_written(state, monkeypatch):
    """Or the launcher would take the stage for finished."""
    foreign(state, 3)
    answers = [fail, fail, newest_claim]
    monkeypatch.setattr(messages, "newest_claim", lambda folder: answers.pop(0)(folder))
    monkeypatch.setattr(messages.time, "sleep", lambda seconds: None)
    Attempt(state, 3).stopped(2, 5)
    assert json.loads((state / "status.json").read_text())["state"] == "stopped"
    monkeypatch.setattr(messages, "newest_claim", fail)
    with pytest.raises(UserError, match="all up to step 2 is committed"):
        Attempt(state, 3).stopped(2, 5)


def fail(folder):
    raise OSError(116, "Stale file handle", str(folder))


def test_a_process_that_proc_hides_is_alive_as_long_as_its_number_is_taken(tmp_path, monkeypatch):
    ended = subprocess.Popen(["true"])
    ended.wait()
    started = processes.start_time(os.getpid())
    assert processes.is_alive(os.getpid(), started) and not processes.is_alive(os.getpid(), 1)
    monkeypatch.setattr(processes, "PROC", tmp_path)
    assert processes.is_alive(os.getpid(), started) and processes.is_alive(1, None)
    assert not processes.is_alive(ended.pid, None) and not processes.is_alive(0, None)
    monkeypatch.setattr(os, "kill", lambda pid, number: (_ for _ in ()).throw(PermissionError))
    assert processes.is_alive(4711, None)  # somebody else's
