"""`python -m nanochat.watch`: where every stage stands, told from folders and from SLURM's queue, whatever lies in them."""

import hashlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from launching import hear_signals
from project import ROOT, wait_for

from nanochat import runs
from nanochat.jobs.processes import process_space, start_time
from nanochat.planning import hardware
from nanochat.watching.queue import Job, Queue, parse, read_queue
from nanochat.watching.state import EVALUATED, MADE_FROM, OPTIONAL, STAGES, Stage, Watcher, work_of
from nanochat.watching.text import clock, render

A100 = "NVIDIA A100-SXM4-80GB"
NO_SLURM = Queue(problem="squeue is not installed here")
WITHOUT_SLURM = {"PYTHONPATH": str(ROOT), "PATH": "/nonexistent"}  # a machine's own squeue is none of our business here
GARBAGE = [
    b"",
    b"{",
    b'{"state": "running", "step"',
    b"[1, 2]",
    b"null",
    b"\xff\xfe\x00\x80",
    b"[" * 100_000,
    b'{"step": 1e999, "num_steps": -Infinity, "loss": NaN, "state": 7, "pid": 1e20, "heartbeat": "yesterday", "job": [1]}',
    b'{"step": ' + b"9" * 4000 + b', "num_steps": 0, "device": {}, "job": {"a": 1}, "host": null, "results": 3, "files": []}',
    b'{"files": {}, "inputs": {"tokens": [], "start_from": {}}, "results": {"steps": "many", "chatcore": 5}, "format": 9}',
    b'{"segments": [3, {"started": 1}, {"started": "2026-01-01T00:00:00", "finished": "2026"}], "pid": -1, "host": "\\ud800"}',
    b'{"event": "start", "job": {}}\n{"event": "end", "outcome": 5}\n\x00\n{"event',
]


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()


class Run:
    """A run's folders, written by hand."""

    def __init__(self, results: Path, name: str = "d20"):
        self.results, self.folder = results, results / name
        self.folder.mkdir(parents=True)

    def put(self, path: str, content) -> Path:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(
            content if isinstance(content, bytes) else (content if isinstance(content, str) else json.dumps(content)).encode()
        )
        return file

    def finish(self, stage: str, *, inputs=None, results=None, record=None) -> None:
        self.put(f"{stage}/manifest.json", {"format": 1, "files": {}, "inputs": inputs or {}, "results": results or {}})
        self.put(f"{stage}/record.json", {"seconds": 61.0, "host": "gpu1", **(record or {})})

    def hold(self, stage: str, **changes) -> None:
        """A lease and a status as the launcher and the program write them."""
        lease = {
            "claim": 2,
            "job": None,
            "host": "gpu1",
            "pid": 5,
            "process_space": "elsewhere",
            "heartbeat": ago(1),
            "log": None,
        }
        self.put(f"resume/{stage}/lease.json", {**lease, **changes})

    def say(self, stage: str, **changes) -> None:
        status = {
            "claim": 2, "state": "running", "step": 120, "num_steps": 450, "unit": "steps", "loss": 3.1,
            "tokens_per_second": 463_000.0,
            "seconds_left": 812.0, "device": A100, "num_devices": 8, "flops_per_second": 0.65 * 8 * 312e12, "updated": ago(1),
        }  # fmt: skip
        self.put(f"resume/{stage}/status.json", {**status, **changes})

    def attempt(self, stage: str, *events: dict) -> None:
        self.put(f"resume/{stage}/attempts.jsonl", "".join(json.dumps(event) + "\n" for event in events))

    def commit(self, stage: str, step: int) -> None:
        rows = [{"step": number, "loss": 7 - number / step} for number in range(step)]
        self.put(f"resume/{stage}/step_{step:08d}/metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "results")


def look(run: Run, queue: Queue = NO_SLURM, name: str = "d20") -> dict[str, dict]:
    seen = Watcher(run.results).look(queue)
    json.dumps(seen, allow_nan=False)
    stages = next(found["stages"] for found in seen["runs"] if found["run"] == name)
    return {stage["stage"]: stage for stage in stages}


def test_the_stages_are_those_of_the_configuration_in_their_order():
    assert tuple(stage for stage in STAGES if stage in runs.STAGES) == runs.STAGES
    assert {*MADE_FROM, *EVALUATED} <= set(STAGES) and set(STAGES) - set(runs.STAGES) <= OPTIONAL


# -- states ------------------------------------------------------------------------------------------------------------------


def test_without_a_trace_a_stage_is_not_started(run):
    run.finish("tokenizer")
    assert look(run)["sft"]["state"] == "not started"
    assert "preflight" not in look(run)


def test_a_finished_training_shows_what_it_took_and_reached(run):
    run.finish(
        "base_train",
        results={"steps": 21400, "train_loss": 2.7, "validation_bpb": 0.8123, "flops": 3.9e19},
        record={"device": A100, "num_devices": 8, "train_seconds": 25_000.0, "tokens_per_second": 4.5e5},
    )
    stage = look(run)["base_train"]
    assert (stage["state"], stage["step"], stage["num_steps"], stage["seconds"]) == ("finished", 21400, 21400, 61.0)
    assert stage["utilisation"] == pytest.approx(3.9e19 / 25_000 / (8 * hardware.find(A100).peak_flops))
    assert stage["message"] == "validation bits per byte 0.8123"


def test_a_training_in_several_segments_took_their_time_together(run):
    segments = [{"started": ago(900), "finished": ago(800)}, {"started": ago(100), "finished": ago(60)}]
    run.finish("sft", record={"segments": segments})
    assert look(run)["sft"]["seconds"] == pytest.approx(140, abs=0.1)


def test_a_holder_with_a_heartbeat_is_running_and_tells_how_far(run):
    run.hold("base_train")
    run.say("base_train", validation_bpb=0.99)
    stage = look(run)["base_train"]
    assert (stage["state"], stage["step"], stage["num_steps"], stage["loss"]) == ("running", 120, 450, 3.1)
    assert stage["utilisation"] == pytest.approx(0.65)
    assert (stage["seconds_left"], stage["host"], stage["validation_bpb"]) == (812.0, "gpu1", 0.99)


def test_utilisation_of_a_device_without_a_known_peak_is_unknown(run):
    run.hold("base_train")
    run.say("base_train", device="cpu", num_devices=2)
    assert look(run)["base_train"]["utilisation"] is None


def test_an_evaluation_between_two_parts_is_told(run):
    run.hold("mid_train")
    run.say("mid_train", state="evaluating")
    assert look(run)["mid_train"]["state"] == "evaluating"


def test_what_an_earlier_attempt_said_is_not_taken_for_this_one(run):
    run.hold("sft", claim=3)
    run.say("sft", claim=2, state="failed")
    stage = look(run)["sft"]
    assert (stage["state"], stage["message"], stage["step"]) == ("running", "starting", None)


def test_a_holder_that_beats_and_gets_nowhere_is_told(run):
    run.hold("sft")
    run.say("sft", updated=ago(1000))
    assert look(run)["sft"]["message"] == "alive, but no progress for 17 min"


def test_a_silent_holder_died_and_the_remedy_is_named(run):
    run.hold("base_train", heartbeat=ago(720), job="77")
    run.say("base_train")
    run.commit("base_train", 100)
    stage = look(run, Queue())["base_train"]
    assert stage["state"] == "died"
    assert stage["message"] == (
        "nothing was heard of job 77 on gpu1 for 12 min. Run the same snakemake command again: it goes on from step 100"
    )


def test_a_silent_holder_whose_job_is_in_the_queue_is_not_dead(run):
    run.hold("base_train", heartbeat=ago(720), job="77")
    run.say("base_train")
    assert look(run, Queue((Job("77", "RUNNING"),)))["base_train"]["state"] == "running"


@pytest.mark.parametrize("is_gone", [True, False])
def test_a_holder_whose_process_is_gone_from_this_machine_died_at_once(run, is_gone):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    run.hold("sft", pid=process.pid, pid_started=start_time(process.pid), process_space=process_space())
    if is_gone:
        process.communicate()
    try:
        assert look(run)["sft"]["state"] == ("died" if is_gone else "running")
    finally:
        process.communicate()


def test_a_heartbeat_that_moves_counts_whatever_the_clocks_say(run):
    watcher = Watcher(run.results)

    def state() -> str:
        return next(s["state"] for s in watcher.look(Queue())["runs"][0]["stages"] if s["stage"] == "sft")

    run.hold("sft", heartbeat=ago(7200), beat=1)
    assert state() == "died"  # one look, and a clock two hours behind
    run.hold("sft", heartbeat=ago(7190), beat=2)
    assert state() == "running"


@pytest.mark.parametrize(
    ("outcome", "state"),
    [("requeue", "stopped"), ("signal", "stopped"), ("handover", "stopped"), ("no progress", "failed"), ("failed", "failed")],
)
def test_an_attempt_that_ended_tells_how(run, outcome, state):
    run.attempt("base_train", {"event": "start", "job": "7"}, {"event": "end", "job": "7", "outcome": outcome})
    run.say("base_train", state="stopped", step=200)
    stage = look(run)["base_train"]
    assert (stage["state"], stage["step"], stage["attempts"]) == (state, 200, 1)


def test_an_attempt_without_an_end_and_without_a_lease_died(run):
    run.attempt(
        "base_train", {"event": "start", "job": "7"}, {"event": "end", "outcome": "requeue"}, {"event": "start", "job": "7"}
    )
    stage = look(run)["base_train"]
    assert (stage["state"], stage["attempts"]) == ("died", 2) and "job 7 ended without a word" in stage["message"]


def test_a_failure_shows_the_error_and_what_the_launcher_advised(run):
    run.attempt("sft", {"event": "start"}, {"event": "end", "outcome": "failed"})
    run.put(
        "logs/sft.log",
        "sft: 2 parameters\nerror: step 3: the loss is nan\rTraceback\n\nchild failed\n"
        "sft: failed with exit code 1; start it again\n",
    )
    stage = look(run)["sft"]
    assert stage["last_error"] == "error: step 3: the loss is nan"
    assert stage["message"] == "failed with exit code 1; start it again"
    assert stage["log"] == str(run.folder / "logs/sft.log")


@pytest.mark.parametrize(("log", "state"), [("reading 4 shards\n", "begun"), ("MemoryError: 2 GB\n", "failed")])
def test_a_stage_without_a_lease_is_judged_by_its_log(run, log, state):
    run.put("logs/tokens_sft.log", log)
    assert look(run)["tokens/sft"]["state"] == state


def test_a_damaged_manifest_is_a_failure_with_a_remedy(run):
    run.put("sft/manifest.json", b'{"files": {"a')
    stage = look(run)["sft"]
    assert stage["state"] == "failed" and "nanochat.verify --repair" in stage["message"]


def test_stages_of_another_run_are_told_with_its_name(tmp_path):
    results = tmp_path / "results"
    first, second = Run(results, "d20"), Run(results, "d20-more-sft")
    for stage in STAGES:
        first.finish(stage, inputs={"of": stage})
    identity = hashlib.sha256((first.folder / "mid_train/manifest.json").read_bytes()).hexdigest()
    second.finish("tokens/sft")
    second.finish("sft", inputs={"start_from": identity})
    stages = look(second, name="d20-more-sft")
    assert {name for name, stage in stages.items() if stage["state"] == "reused"} >= {
        "tokenizer", "tokens/pretrain", "base_train", "base_eval", "mid_train", "chat_eval/mid_train",
    }  # fmt: skip
    assert stages["mid_train"]["reused_from"] == stages["base_eval"]["reused_from"] == "d20"
    assert stages["chat_eval/sft"]["state"] == "not started"


# -- the queue ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("comment", "work"),
    [
        ("rule_base_train_wildcards_d20", ("d20", "base_train")),
        ("rule_tokens_mid_train_wildcards_my_run", ("my_run", "tokens/mid_train")),
        ("rule_chat_eval_wildcards_my_sft_mid_train", ("my_sft", "chat_eval/mid_train")),
        ("rule_chat_eval_wildcards_d20_sft", ("d20", "chat_eval/sft")),
        ("rule_trace_wildcards_d20", ("d20", "trace")),
        ("rule_gpu_check", None),
        ("(null)", None),
        ("rule_sft_wildcards_", None),
    ],
)
def test_the_comment_of_a_job_names_its_run_and_stage(comment, work):
    assert work_of(comment) == work


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """A squeue that runs the shell lines it is given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def write(lines: str) -> None:
        script = folder / "squeue"
        script.write_text(f"#!/bin/sh\n{lines}\n")
        script.chmod(0o755)

    return write


def rows_of(folder: Path) -> str:
    mine = f"71|RUNNING|None|2026-11-22T10:00:00|1:20:00|gpu-a100|gpu1|{folder}|rule_base_train_wildcards_d20"
    waits = f"72|PENDING|Resources|2026-11-23T02:00:00|12:00:00|gpu-a100||{folder}|rule_sft_wildcards_d20"
    return f"{mine}\n{waits}\n73|PENDING|Priority|N/A|5:00|gpu-a100||/elsewhere|rule_mid_train_wildcards_d20\nslurm: hello"


def test_a_waiting_job_shows_its_place_reason_and_expected_start(run, squeue):
    waiting = r"9|gpu-a100\n8|other\n72|gpu-a100\n73|gpu-a100\n"
    squeue(f"""case "$*" in *--me*) cat <<END\n{rows_of(run.results.parent)}\nEND\n;; *) printf "{waiting}";; esac""")
    queue = read_queue(run.results.parent)
    assert queue.problem is None and [job.id for job in queue.jobs] == ["71", "72"]  # those of this folder alone
    stages = look(run, queue)
    sft, base = stages["sft"], stages["base_train"]
    assert (sft["state"], sft["job"], sft["queue_position"], sft["queue_length"]) == ("queued", "72", 2, 3)
    assert (sft["queue_reason"], sft["expected_start"]) == ("Resources", "2026-11-23T02:00:00")
    assert sft["message"] == (
        "job 72 is number 2 of 3 that wait for gpu-a100 (Resources), expected to start 2026-11-23 02:00:00"
    )
    assert (base["state"], base["job"], base["job_seconds_left"], base["host"]) == ("running", "71", 4800.0, "gpu1")
    assert stages["mid_train"]["job"] is None


def test_a_job_that_fits_no_stage_is_listed_apart(run):
    job = Job("9", "PENDING", reason="Priority", comment="rule_gpu_check")
    seen = Watcher(run.results).look(Queue((job,)))
    assert seen["other_jobs"] == [{"job": "9", "state": "PENDING", "comment": "rule_gpu_check", "reason": "Priority"}]
    assert "job 9 (gpu_check): pending, Priority" in render(seen)


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("sleep 60", "squeue did not answer within 0.3 s"),
        ("sleep 60 & wait", "squeue did not answer within 0.3 s"),
        ("echo 'error: no controller' >&2; exit 1", "squeue failed: error: no controller"),
        ("exit 3", "squeue failed: exit code 3"),
        ("printf '\\377\\000|||||||||\\n'", None),
    ],
)  # fmt: skip
def test_a_squeue_that_is_slow_fails_or_babbles_costs_its_answer_only(tmp_path, squeue, script, problem):
    squeue(f"echo $$ > {tmp_path}/pid\n{script}")
    assert read_queue(tmp_path, timeout_s=0.3) == Queue((), problem)
    if "sleep" in script and (tmp_path / "pid").exists():  # nothing of it lives on, its children included
        group = int((tmp_path / "pid").read_text())
        wait_for(lambda: not alive_in_group(group), timeout_s=10)


def alive_in_group(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_without_squeue_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_queue(tmp_path).problem == "squeue is not installed here"


def test_a_limit_that_is_none_is_no_number():
    assert parse("1|RUNNING|None|N/A|UNLIMITED|p|n|/x|c").seconds_left is None
    assert parse("1|RUNNING|None|N/A|2-01:00:05|p|n|/x|a|b").seconds_left == 2 * 86400 + 3605


# -- whatever lies in the folders --------------------------------------------------------------------------------------------

FILES = [
    "sft/manifest.json",
    "sft/record.json",
    *(f"resume/sft/{name}" for name in ("lease.json", "status.json", "attempts.jsonl")),
]


@pytest.mark.parametrize("number", range(len(GARBAGE)))
def test_half_written_and_foreign_files_are_survived(run, number):
    for file in [*FILES, "logs/sft.log", "resume/sft/step_00000003/metrics.jsonl"]:
        path = run.put(file, GARBAGE[number])
        look(run)
        render(Watcher(run.results).look(NO_SLURM))
        if file != "logs/sft.log":
            path.unlink()
    for file in FILES:
        run.put(file, GARBAGE[number])
        look(run)


def test_folders_pipes_and_dead_links_in_place_of_files_are_survived(run):
    run.finish("tokenizer")
    (run.folder / "resume/sft/status.json").mkdir(parents=True)
    os.mkfifo(run.folder / "resume/sft/lease.json")  # reading it would wait for ever
    (run.folder / "sft").symlink_to(run.folder / "nowhere")
    (run.results / "notes.txt").write_text("mine")
    (run.results / "figures").mkdir()
    (run.results / "gpu_check").mkdir()
    assert look(run)["sft"]["state"] == "not started"
    assert [found["run"] for found in Watcher(run.results).look(NO_SLURM)["runs"]] == ["d20"]


def test_control_characters_never_reach_the_terminal(run):
    run.attempt("sft", {"event": "start"}, {"event": "end", "outcome": "failed"})
    run.put("logs/sft.log", "error: \x1b]0;owned\x07 \x1b[2J\n")
    run.say("sft", message="\x1b[31mred", device="a\x08b")
    lines = render(Watcher(run.results).look(NO_SLURM))
    assert any("owned" in line for line in lines) and all(line.isprintable() for line in lines)


def test_looking_changes_nothing(run):
    run.finish("tokenizer")
    run.hold("base_train")
    run.say("base_train")

    def tree():
        return sorted((str(path), path.stat().st_mtime_ns) for path in run.results.parent.rglob("*"))

    before = tree()
    watch(run.results, "--json")
    watch(run.results)
    assert tree() == before


# -- what is printed ---------------------------------------------------------------------------------------------------------


def busy(run: Run) -> Queue:
    """A run with a stage in every state that prints much."""
    run.finish("tokenizer")
    run.finish("tokens/pretrain")
    run.finish("base_train", results={"steps": 21400, "train_loss": 2.7123, "validation_bpb": 0.8})
    run.hold("mid_train", job="71")
    run.say("mid_train", step=12_345, num_steps=21_400, seconds_left=90_000.0)
    run.commit("mid_train", 100)
    run.attempt("base_eval", {"event": "start"}, {"event": "end", "outcome": "failed"})
    run.put("logs/base_eval.log", "error: resources/eval_bundle.zip: sha256 differs from its manifest. " + "Much to do. " * 20)
    waiting = Job(
        "72",
        "PENDING",
        reason="QOSMaxJobsPerUserLimit",
        start="2026-11-23T02:00:00",
        partition="gpu-a100",
        comment="rule_sft_wildcards_d20",
        position=3,
        num_waiting=17,
    )
    running = Job("71", "RUNNING", seconds_left=4800.0, nodes="gpu1", comment="rule_mid_train_wildcards_d20")
    return Queue((running, waiting))


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_the_terminal(run, width, monkeypatch):
    monkeypatch.chdir(run.results.parent)
    queue = busy(run)
    lines = render(Watcher(Path("results")).look(queue), width=width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "12,345/21,400 57%" in text and "463,000  65% -25h 00m" in text
    assert "job 71, on gpu1, 8 x NVIDIA A100-SXM4-80GB, 1:20:00 until this job's wall" in text
    assert "error: resources/eval_bundle.zip" in text and "log results/d20/logs/base_eval.log" in text
    assert ("validation bits per byte 0.8000" in text) == (width == 120)


def test_times_read_as_people_write_them():
    times = {0.4: "0 s", 59: "59 s", 725: "12:05", 25_985: "7:13:05", 90_600: "25h 10m", 273_600: "3d 04h"}
    assert {seconds: clock(seconds) for seconds in times} == times


def watch(results: Path, *words: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "nanochat.watch", *words, str(results)]
    environment = {**os.environ, **WITHOUT_SLURM, "COLUMNS": "80", **options.pop("env", {})}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, **options)


def test_json_is_one_object_and_its_keys_are_documented(run):
    busy(run)
    seen = json.loads(watch(run.results, "--json").stdout)
    assert set(seen) == {"at", "results", "slurm", "runs", "other_jobs"}
    keys = {field.name for field in fields(Stage)}
    assert set(seen["runs"][0]["stages"][0]) == keys
    document = (ROOT / "docs" / "watch.md").read_text()
    assert not [key for key in keys if f"`{key}`" not in document]


def documented_commands() -> list[list[str]]:
    lines = (ROOT / "docs" / "watch.md").read_text().splitlines()
    return [line.split(" #")[0].split()[3:] for line in lines if line.startswith("python -m nanochat.watch")]


@pytest.mark.parametrize("words", documented_commands(), ids=" ".join)
def test_every_command_of_the_document_works(run, words):
    run.finish("tokenizer")
    done = watch(run.results, *words, *(["--for", "0.1"] if "--every" in words else []))
    assert (done.returncode, done.stderr) == (0, "")


def test_no_colour_and_no_control_characters_except_on_a_terminal(run):
    busy(run)
    assert "\x1b" not in watch(run.results).stdout
    assert "\x1b" not in watch(run.results, "--every", "0.1", "--for", "0.2").stdout


def on_a_terminal(run: Run, *words: str, env=None) -> tuple[int, str]:
    """Exit code and output of the command with a terminal of 15 lines of 100 columns."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, **WITHOUT_SLURM, "COLUMNS": "100", "LINES": "15", "TERM": "xterm", **(env or {})}
    command = [sys.executable, "-m", "nanochat.watch", *words, str(run.results)]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, close_fds=True)
    os.close(theirs)
    output, end = b"", time.monotonic() + 60
    while time.monotonic() < end:
        if select.select([ours], [], [], 0.1)[0]:
            try:
                output += os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
    os.close(ours)
    return process.wait(timeout=10), output.decode()


def test_on_a_terminal_it_is_coloured_and_refreshes_in_place(run):
    busy(run)
    code, output = on_a_terminal(run, "--every", "0.2", "--for", "0.5")
    assert code == 0
    assert output.count("\x1b[H") >= 2 and "\x1b[31mfailed" in output and "\x1b[J" in output
    assert all(frame.count("\n") < 15 for frame in output.split("\x1b[H"))
    assert "more lines; a higher window" in output
    assert "\x1b" not in on_a_terminal(run, env={"NO_COLOR": "1"})[1]


def test_every_with_json_gives_one_object_a_line(run):
    busy(run)
    lines = watch(run.results, "--json", "--every", "0.1", "--for", "0.35").stdout.splitlines()
    assert len(lines) >= 2 and all(json.loads(line)["runs"] for line in lines)


def test_ctrl_c_ends_it_in_good_order(run):
    run.finish("tokenizer")
    command = [sys.executable, "-m", "nanochat.watch", "--every", "0.1", str(run.results)]
    environment = {**os.environ, **WITHOUT_SLURM}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes, text=True, env=environment, preexec_fn=hear_signals)
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")


def test_a_reader_that_has_seen_enough_is_no_error(run, squeue):
    busy(run)
    squeue("exit 1")
    command = f"{sys.executable} -m nanochat.watch --every 0.1 --for 5 {run.results} | head -1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_folder_that_is_not_there_is_named(tmp_path):
    done = watch(tmp_path / "nowhere")
    assert done.returncode == 1 and "no such folder" in done.stderr and "Traceback" not in done.stderr
    waiting = watch(tmp_path / "nowhere", "--every", "0.1", "--for", "0.1")  # it may appear yet
    assert waiting.returncode == 0 and "Nothing has been started" in waiting.stdout


@pytest.mark.parametrize("words", [("--every", "0"), ("--every", "x"), ("--for", "5"), ("--every", "nan")])
def test_senseless_intervals_are_refused(tmp_path, words):
    done = watch(tmp_path, *words)
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_it_starts_without_pytorch_and_without_the_configuration():
    code = "import sys, nanochat.watch; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    heavy = {"torch", "numpy", "pydantic", "yaml", "snakemake", "requests", "nanochat.config", "nanochat.runs"}
    assert not heavy & set(done.stdout.split())


def test_an_ascii_terminal_gets_no_curve_and_no_error(run):
    busy(run)
    done = watch(run.results, env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and done.stdout.isascii()
    assert "▁" in watch(run.results, env={"PYTHONIOENCODING": "utf-8"}).stdout
