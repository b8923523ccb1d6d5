"""The launcher: what it makes of every way in which a stage program can end, and that nothing outlives it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from launching import Stage, wait_for

from nanochat.jobs import launcher, slurm
from nanochat.jobs.deadline import Deadline
from nanochat.jobs.launcher import Attempts
from nanochat.jobs.lease import Holder
from nanochat.jobs.processes import is_alive, start_time

TRAINING = Path(__file__).with_name("training.py")
# asked to stop at once: every segment is one step, on a machine of any speed
ONE_STEP = {"NANOCHAT_RUNTIME_S": "100", "NANOCHAT_MARGIN_S": "100"}


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path)


def test_a_finished_program_leaves_no_lease_and_a_history(stage):
    done = stage.run("--steps", 3)
    assert done.returncode == 0, done.stderr
    assert stage.steps() == [1, 2, 3]
    assert not (stage.state / "lease.json").exists()
    assert [(line["event"], line["step"]) for line in stage.attempts()] == [("start", 0), ("end", 3)]
    assert stage.attempts()[-1]["outcome"] == "finished"
    status = stage.json("status.json")
    assert (status["stage"], status["state"], status["step"]) == ("base_train", "finished", 3)


def test_the_program_runs_in_the_jail_and_the_log_says_which(stage):
    (stage.folder / "show.py").write_text("import os; print(os.environ['NANOCHAT_OFFLINE'])")
    done = stage.run(program=stage.folder / "show.py")
    assert done.stdout.strip() in ("namespace", "seccomp", "hook")
    assert "by the kernel" in done.stderr


def test_a_stop_before_the_wall_goes_on_when_the_same_command_is_run_again(stage):
    first = stage.run("--steps", 3, **ONE_STEP)
    assert first.returncode == 75
    assert "stopped before the wall at step 1 of 3; run the same command again to go on" in first.stderr
    assert stage.steps() == [1] and stage.json("status.json")["state"] == "stopped"
    assert stage.run("--steps", 3, **ONE_STEP).returncode == 75
    assert stage.run("--steps", 3).returncode == 0
    assert stage.steps() == [1, 2, 3]


def test_no_progress_before_the_wall_stops_for_good(stage):
    done = stage.run("--steps", 3, "--barren", **ONE_STEP)
    assert done.returncode == 1
    assert "no progress between the start of this attempt and the wall" in done.stderr
    assert "set-resources: base_train: runtime" in done.stderr
    assert stage.json("status.json")["state"] == "failed"


def test_a_program_that_does_not_stop_is_ended_before_the_wall_and_what_it_committed_counts(stage):
    done = stage.run("--steps", 10_000, "--deaf", NANOCHAT_RUNTIME_S=6, NANOCHAT_MARGIN_S=3)
    assert done.returncode == 75, done.stderr
    assert "ended by force" in done.stderr and f"at step {stage.steps()[-1]}" in done.stderr


def test_the_advice_names_the_rule_that_makes_the_stage(stage):
    stage.state = stage.folder / "results" / "tiny" / "resume" / "tokens" / "pretrain"
    done = stage.run("--die")
    assert "set-resources: tokens_pretrain: mem" in done.stderr


def test_a_failure_passes_its_code_on_and_names_the_log(stage):
    done = stage.run("--fail")
    assert done.returncode == 1
    assert "error: the rows are upside down" in done.stderr
    assert "failed with exit code 1; the lines above (logs/base_train.log) say why" in done.stderr
    assert "Traceback" not in done.stderr
    status = stage.json("status.json")
    assert (status["state"], status["message"]) == ("failed", "the rows are upside down")


def test_a_program_killed_by_signal_9_is_told_as_out_of_memory(stage):
    done = stage.run("--die", SLURM_MEM_PER_NODE=256_000)
    assert done.returncode == 137
    assert "ran out of memory" in done.stderr and "set-resources: base_train: mem" in done.stderr
    assert "the job asked for 256.0 GB" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_has_the_program_stop_at_a_commit(stage, number):
    process = stage.start("--steps", 10_000)
    wait_for(stage.steps)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    step = stage.steps()[-1]
    assert f"stopped at step {step:,} of 10,000 (received {number.name}); run the same command again" in said
    assert stage.attempts()[-1]["outcome"] == "signal"
    assert not (stage.state / "lease.json").exists()


def test_sigterm_to_every_process_stops_at_a_commit_as_well(stage):
    """As SLURM does where it tracks processes by their parents."""
    process = stage.start("--steps", 10_000)
    wait_for(stage.steps)
    for pid in (stage.counter_pid(), process.pid):
        os.kill(pid, signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert f"stopped at step {stage.steps()[-1]:,} of 10,000" in said


def test_a_program_that_ignores_the_request_is_ended_when_the_grace_is_over(stage):
    process = stage.start("--steps", 10_000, "--deaf", NANOCHAT_GRACE_S=1)
    wait_for(stage.steps)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert "ended by force" in said
    assert not is_alive(stage.counter_pid(), None)


def test_a_program_without_commits_is_ended_at_once(stage):
    """However long it would have to stop in; by a signal, or because another launcher wants the stage."""
    process = stage.start("--steps", 10_000, "--deaf", launcher_options=["--no-commits"], NANOCHAT_GRACE_S=10_000)
    wait_for(stage.steps)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM and "stopped at its beginning" in said
    first = stage.start("--steps", 10_000, "--deaf", launcher_options=["--no-commits"])
    before = len(stage.steps())
    wait_for(lambda: len(stage.steps()) > before)
    second = stage.start("--steps", 3, launcher_options=["--no-commits"])
    assert second.wait(timeout=60) == 0
    assert first.wait(timeout=30) == 1


def test_without_a_launcher_attempts_do_nothing(stage):
    stage.state.mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, str(stage.program), "--steps", "2"], cwd=stage.state, env=stage.environment(), capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert not (stage.state / "status.json").exists()


def test_messages_that_cannot_be_written_end_no_stage(stage):
    """Folders in the place of files: writing status and history fails, for the program as for its launcher."""
    for name in ("status.json", "attempts.jsonl"):
        (stage.state / name).mkdir(parents=True)
    done = stage.run("--steps", 3)
    assert done.returncode == 0, done.stderr
    assert stage.steps() == [1, 2, 3] and "Is a directory" in done.stderr
    assert not (stage.state / "lease.json").exists()


def test_a_request_to_stop_is_repeated_until_it_is_written(stage):
    (stage.state / "stop.json").mkdir(parents=True)
    process = stage.start("--steps", 10_000)
    wait_for(stage.steps)
    process.send_signal(signal.SIGTERM)
    time.sleep(1)
    assert process.poll() is None
    (stage.state / "stop.json").rmdir()
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM and "stopped at step" in said


def test_a_torn_line_of_the_history_is_passed_over(stage):
    stage.state.mkdir(parents=True)
    history = stage.state / "attempts.jsonl"
    history.write_text('{"event": "start", "job": "77", "step": 0}\n{"event": "sta')
    attempts = Attempts(stage.state, SimpleNamespace(holder=Holder(claim=1, job="77")))
    attempts.note("start")
    attempts.note("end", outcome="finished")
    assert [line["event"] for line in map(json.loads, history.read_text().splitlines()[2:])] == ["start", "end"]
    assert attempts.barren(0) == 2


# -- nothing outlives it -----------------------------------------------------------------------------------------------------


def test_a_killed_launcher_leaves_no_survivor(stage):
    process = stage.start("--steps", 10_000)
    wait_for(stage.steps)
    counter = stage.counter_pid()
    process.kill()
    process.wait()
    wait_for(lambda: not is_alive(counter, None), timeout_s=10)


def test_without_following_its_launcher_a_program_would_survive(stage):
    """Negative control: the same program, started by something that it does not follow."""
    stage.state.mkdir(parents=True)
    parent = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    command = [sys.executable, "-c", parent, sys.executable, str(stage.program), "--steps", "10000"]
    process = subprocess.Popen(command, cwd=stage.state, env=stage.environment())
    wait_for(stage.steps)
    process.kill()
    process.wait()
    before = len(stage.steps())
    wait_for(lambda: len(stage.steps()) > before + 2)
    os.kill(stage.counter_pid(), signal.SIGKILL)


def test_the_program_ends_when_the_kernel_does_not_see_to_it(stage):
    """The thread alone: the program is not the launcher's child, so its parent's death is not the launcher's."""
    (stage.state / "claims").mkdir(parents=True)
    launcher = subprocess.Popen(["sleep", "600"])
    variables = {
        "NANOCHAT_LAUNCHER": f"{launcher.pid}:{start_time(launcher.pid)}",
        "NANOCHAT_STATE": stage.state,
        "NANOCHAT_CLAIM": 1,
    }
    program = subprocess.Popen(
        [sys.executable, str(stage.program), "--steps", "10000"], cwd=stage.state, env=stage.environment(**variables)
    )
    wait_for(stage.steps)
    launcher.kill()
    launcher.wait()
    assert program.wait(10) == 1


def test_a_program_that_finds_its_launcher_gone_says_so(stage):
    launcher = subprocess.Popen(["true"])
    launcher.wait()
    variables = {"NANOCHAT_LAUNCHER": f"{launcher.pid}:1", "NANOCHAT_STATE": stage.state, "NANOCHAT_CLAIM": 1}
    done = subprocess.run(
        [sys.executable, str(stage.program)], env=stage.environment(**variables), capture_output=True, text=True
    )
    assert done.returncode == 1
    assert f"the launcher, process {launcher.pid}, is gone" in done.stderr


def test_a_launcher_whose_snakemake_is_killed_stops_at_a_commit(stage):
    (stage.bin / "snakemake").write_text("import subprocess, sys; subprocess.run(sys.argv[1:])")
    with open(stage.folder / "out.log", "w") as log:
        command = [sys.executable, str(stage.bin / "snakemake"), "/bin/bash", "-c", '"$@" 2>&1 | cat', "x"]
        driver = subprocess.Popen(
            [*command, *stage.command("--steps", 10_000)], env=stage.environment(), cwd=stage.folder, stdout=log, stderr=log
        )
    wait_for(stage.steps)
    counter = stage.counter_pid()
    driver.kill()
    driver.wait()
    wait_for(lambda: not is_alive(counter, None), timeout_s=20)
    wait_for(lambda: not (stage.state / "lease.json").exists(), timeout_s=10)
    assert "Snakemake is gone" in (stage.folder / "out.log").read_text()
    assert stage.json("status.json")["state"] == "stopped"


# -- one at a time -----------------------------------------------------------------------------------------------------------


def test_a_second_launcher_has_the_first_commit_and_goes_on(stage):
    first = stage.start("--steps", 10_000)
    wait_for(stage.steps)
    second = stage.run("--steps", 60)
    _, said = first.communicate(timeout=30)
    assert second.returncode == 0, second.stderr
    assert "works on this stage; asked it to commit and let go" in second.stderr
    assert first.returncode == 1 and "takes this stage over" in said
    assert stage.steps() == list(range(1, stage.steps()[-1] + 1))  # no step was made twice: mkdir would have failed


def test_after_a_kill_the_next_launcher_starts_at_once(stage):
    first = stage.start("--steps", 10_000)
    wait_for(stage.steps)
    first.kill()
    first.communicate()
    second = stage.run("--steps", 60)
    assert second.returncode == 0, second.stderr
    assert "is gone; going on from its last commit" in second.stderr


def test_a_frozen_launcher_loses_the_stage_and_its_program_commits_no_more(stage):
    first = stage.start("--steps", 10_000)
    wait_for(stage.steps)
    counter = stage.counter_pid()
    os.kill(first.pid, signal.SIGSTOP)
    os.kill(counter, signal.SIGSTOP)
    step = stage.steps()[-1]
    second = stage.run("--steps", step + 3, NANOCHAT_SILENCE_S=2)
    assert second.returncode == 0, second.stderr
    assert "has given no sign of life" in second.stderr
    os.kill(counter, signal.SIGCONT)
    os.kill(first.pid, signal.SIGCONT)
    _, said = first.communicate(timeout=30)
    assert first.returncode == 1
    assert "took this stage over; nothing more was written here" in said or "somebody else has taken this stage over" in said
    assert stage.steps()[-1] == step + 3 and stage.json("status.json")["state"] == "finished"


# -- SLURM -------------------------------------------------------------------------------------------------------------------

SQUEUE = 'case "$*" in *%L*) echo "${LEFT:-0:00}";; *%l*) echo 1:00:00;; *) echo RUNNING;; esac'


def test_in_slurm_a_stop_before_the_wall_requeues_the_job(stage):
    stage.put("squeue", SQUEUE)
    # SLURM kills the job when it requeues it
    requeue = f"requeue) echo $2 > {stage.folder}/requeued; kill -9 $PPID;;"
    stage.put("scontrol", f'case "$1" in show) echo "JobId=$3 Restarts=0";; {requeue} esac')
    done = stage.run("--steps", 3, SLURM_JOB_ID=77, LEFT="1:40", NANOCHAT_MARGIN_S=100)
    assert done.returncode == -9
    assert "stopped before the wall at step 1 of 3; going on in a further run of job 77" in done.stderr
    assert (stage.folder / "requeued").read_text().strip() == "77"
    assert not (stage.state / "lease.json").exists()
    assert stage.attempts()[-1]["outcome"] == "requeue"


def test_a_refused_requeue_is_told_and_exits_75(stage):
    stage.put("squeue", SQUEUE)
    stage.put(
        "scontrol", 'case "$1" in show) echo Restarts=0;; requeue) echo "Requested operation disabled" >&2; exit 1;; esac'
    )
    done = stage.run("--steps", 3, SLURM_JOB_ID=77, LEFT="1:40", NANOCHAT_MARGIN_S=100)
    assert done.returncode == 75
    assert "did not requeue job 77 (Requested operation disabled); run the same command again" in done.stderr


def test_a_requeue_without_an_answer_is_asked_for_again(monkeypatch):
    answers = ["Unable to contact slurm controller (connect failure)", slurm.NO_ANSWER, "Invalid job id specified"]
    monkeypatch.setattr(slurm, "requeue", lambda job: answers.pop(0))
    monkeypatch.setattr(launcher, "SECONDS_BETWEEN_REQUEUES", 0.01)
    work = launcher.Work([], Path("results/tiny/resume/base_train"))
    run = SimpleNamespace(work=work, job="77", deadline=Deadline(time.monotonic() + 60, 60, "SLURM"))
    assert launcher.wait_for_requeue(run) == 75 and not answers
    answers += [slurm.NO_ANSWER] * 2
    run.deadline = Deadline(time.monotonic() - 1, 60, "SLURM")  # not after the wall
    assert launcher.wait_for_requeue(run) == 75 and len(answers) == 1


def test_whether_it_is_preempted_is_asked_until_slurm_answers(monkeypatch):
    answers, slept = [None, None, True], []
    monkeypatch.setattr(slurm, "is_preempted", lambda job: answers.pop(0))
    monkeypatch.setattr(launcher.time, "sleep", slept.append)
    launcher.outlast_preemption(SimpleNamespace(job="77", is_preempted=None))
    assert not answers and slept[-1] == launcher.SECONDS_OF_PREEMPTION


def test_a_guessed_wall_gives_way_to_slurms_answer(stage):
    """squeue fails when the launcher starts, and answers when the guess has come to its end."""
    stage.put("squeue", f"[ -e {stage.folder}/up ] || {{ touch {stage.folder}/up; exit 1; }}\n{SQUEUE}")
    stage.put("scontrol", "echo Restarts=0")
    options = ["--runtime-min", 1 / 60]
    done = stage.run("--steps", 20, launcher_options=options, SLURM_JOB_ID=77, LEFT="1:00:00", NANOCHAT_MARGIN_S=1)
    assert done.returncode == 0, done.stderr


def test_without_an_answer_of_squeue_the_wall_is_the_runtime_resource(stage):
    for name in ("squeue", "scontrol"):
        stage.put(name, "exit 1")
    done = stage.run("--steps", 3, launcher_options=["--runtime-min", 100 / 60], SLURM_JOB_ID=77, NANOCHAT_MARGIN_S=100)
    assert done.returncode == 75
    assert "the resource runtime" in done.stderr


def test_a_limit_that_was_raised_is_honoured(stage):
    stage.put(
        "squeue", f'case "$*" in *%L*) cat {stage.folder}/left; echo 2:00:00 > {stage.folder}/left;; *) echo 3:00:00;; esac'
    )
    stage.put("scontrol", "echo Restarts=0")
    (stage.folder / "left").write_text("0:30\n")
    done = stage.run("--steps", 60, SLURM_JOB_ID=77, NANOCHAT_MARGIN_S=30)
    assert done.returncode == 0, done.stderr


def test_a_restarted_job_that_got_nowhere_twice_stops_for_good(stage):
    stage.put("squeue", SQUEUE)
    stage.put("scontrol", f'case "$1" in show) echo "Restarts=$(cat {stage.folder}/restarts)";; esac')
    slurm = {"SLURM_JOB_ID": 77, "LEFT": "UNLIMITED"}
    for restart in range(2):
        (stage.folder / "restarts").write_text(str(restart))
        process = stage.start("--steps", 3, "--seconds", 600, **slurm)  # its node fails before the first commit
        wait_for((stage.state / "counter.pid").exists)
        process.kill()
        process.communicate()
        (stage.state / "counter.pid").unlink()
    (stage.folder / "restarts").write_text("2")
    done = stage.run("--steps", 3, **slurm)
    assert done.returncode == 1
    assert "SLURM has restarted job 77 2 times, and the last 2 runs all began at step 0" in done.stderr
    assert stage.json("status.json")["state"] == "failed"
    assert stage.run("--steps", 3, **(slurm | {"SLURM_JOB_ID": 78})).returncode == 0  # a person's new start


def test_a_preempted_job_stays_until_slurm_ends_it(stage):
    """One that ends by itself in its time of grace would not be put back in the queue."""
    stage.put("squeue", SQUEUE)
    stage.put("scontrol", f'touch {stage.folder}/asked; echo "Restarts=0 PreemptTime=$(cat {stage.folder}/preempted)"')
    for preempted, stays in (("None", False), ("2026-01-02T03:04:05", True)):
        (stage.folder / "preempted").write_text(preempted)
        process = stage.start("--steps", 10_000, SLURM_JOB_ID=77, LEFT="UNLIMITED")
        before = len(stage.steps())
        wait_for(lambda before=before: len(stage.steps()) > before)
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: not (stage.state / "lease.json").exists())
        if stays:
            with pytest.raises(subprocess.TimeoutExpired):
                process.communicate(timeout=3)
            process.kill()
        process.communicate(timeout=30)
        assert process.returncode == (-9 if stays else 143)


@pytest.mark.parametrize("is_preempted", [True, False])
def test_a_preempted_program_is_left_to_slurm_to_kill(stage, is_preempted):
    """The partition's GraceTime may be longer than our own patience."""
    stage.put("squeue", SQUEUE)
    stage.put("scontrol", f"echo Restarts=0 PreemptTime={'2026-01-02T03:04:05' if is_preempted else 'None'}")
    process = stage.start("--steps", 10_000, "--deaf", SLURM_JOB_ID=77, LEFT="UNLIMITED", NANOCHAT_GRACE_S=0.5)
    wait_for(stage.steps)
    process.send_signal(signal.SIGTERM)
    if is_preempted:
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=3)
        assert is_alive(stage.counter_pid(), None)
        process.kill()
    _, said = process.communicate(timeout=30)
    assert ("ended by force" in said) != is_preempted


def test_ranks_wait_for_one_another_for_longer_than_storage_takes(monkeypatch):
    from nanochat import distributed  # PyTorch: seconds, and nothing else here needs it

    given = {}
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda backend, timeout: given.update(timeout=timeout))
    monkeypatch.setattr(distributed.dist, "destroy_process_group", lambda: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with distributed.join_ranks("cpu"):
        assert given["timeout"].total_seconds() == 7200


# -- trainings ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return finish_training(Stage(tmp_path_factory.mktemp("undisturbed")))


def finish_training(stage, **more) -> dict:
    done = train(stage, **more)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def train(stage, *options, **more):
    folder = stage.folder / "results" / "tiny"
    stage.state = folder / "resume"
    return stage.run(folder, *options, program=TRAINING, **more)


def test_a_training_stopped_before_the_wall_twice_ends_in_the_same_bits(stage, undisturbed):
    for segment in (1, 2):
        cut = train(stage, **ONE_STEP)
        assert cut.returncode == 75, cut.stderr
        assert f"stopped before the wall at step {segment} of 12" in cut.stderr
    whole = finish_training(stage)
    assert [segment["from_step"] for segment in whole["segments"]] == [0, 1, 2]
    assert (whole["weights"], whole["metrics"]) == (undisturbed["weights"], undisturbed["metrics"])
    assert whole["is_exact"]
    status = stage.json("status.json")
    assert status["num_steps"] == 12 and status["commit_seconds"] > 0 and status["flops_per_second"] > 0


@pytest.mark.slow
def test_two_ranks_stop_together_and_go_on_to_the_same_bits(tmp_path):
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = finish_training(Stage(tmp_path / "whole"), ranks=2)
    stage = Stage(tmp_path / "cut")
    cut = train(stage, ranks=2, **ONE_STEP)
    assert cut.returncode == 75 and "at step 1 of 12" in cut.stderr, cut.stderr
    assert finish_training(stage, ranks=2)["weights"] == whole["weights"]


@pytest.mark.slow
def test_ranks_do_not_outlive_a_killed_launcher(stage):
    process = stage.start(ranks=2, program=write_rank_program(stage))
    pids = stage.folder / "pids"
    wait_for(lambda: pids.exists() and len(list(pids.iterdir())) == 2)
    ranks = [int(path.name) for path in pids.iterdir()]
    process.kill()
    process.wait()
    wait_for(lambda: not any(is_alive(pid, None) for pid in ranks), timeout_s=10)


@pytest.mark.slow
def test_a_rank_killed_by_signal_9_is_told_as_out_of_memory(stage):
    program = write_rank_program(stage, "if os.environ['RANK'] == '1': os.kill(os.getpid(), 9)")
    done = stage.run(ranks=2, program=program)
    assert done.returncode == 137
    assert "ran out of memory" in done.stderr


def write_rank_program(stage, *lines: str) -> Path:
    path = stage.folder / "rank.py"
    pids = stage.folder / "pids"
    pids.mkdir()
    body = "\n    ".join([f"open(f'{pids}/{{os.getpid()}}', 'w').close()", *lines, "time.sleep(600)"])
    path.write_text(
        f"import os, time\nfrom nanochat.stage import run_program\n\ndef main():\n    {body}\n\nrun_program(main)\n"
    )
    return path
