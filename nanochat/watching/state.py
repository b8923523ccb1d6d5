"""Where each stage of each run stands, from what lies in its folders and in SLURM's queue. Reads only, and survives anything.

What is read of a stage (all of it may be absent, half-written or somebody else's):

    results/{run}/{stage}/manifest.json, record.json        it is finished; how long it took
    results/{run}/resume/{stage}/status.json                what the program said last: step, loss, speed, time left
    results/{run}/resume/{stage}/lease.json                 who works on it, with a heartbeat
    results/{run}/resume/{stage}/attempts.jsonl             beginnings and ends of all attempts
    results/{run}/resume/{stage}/step_00000250/             commits to go on from
    results/{run}/logs/{stage}.log                          the last error

    state         meaning
    not started   there is no trace of it
    reused        no trace here, but of what is made from it: it is another run's
    queued        a job waits in SLURM's queue
    running       somebody works on it: a lease with a heartbeat, or a job
    evaluating    the same, between two parts of a training
    begun         there is a log and nothing else: a program without a lease that runs, or was killed
    stopped       it stopped in good order, before the wall or because it was asked to, and can go on
    died          somebody worked on it, and nothing has been heard of him
    failed        it ended with an error
    finished      its manifest stands
"""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from nanochat.jobs.processes import is_alive, process_space
from nanochat.planning import hardware
from nanochat.watching.files import (
    Document,
    age,
    is_file,
    last_error,
    launcher_said,
    log_age,
    losses,
    moment,
    names_in,
    newest_commit,
    number,
    parsed,
    plain,
    read,
    text,
)
from nanochat.watching.queue import Job, Queue

# in the order in which they run; a test keeps it equal to nanochat.runs.STAGES, which takes 0.2 s to import
STAGES = (
    "tokenizer", "tokens/pretrain", "tokens/mid_train", "tokens/sft", "tokens/core", "preflight", "base_train", "base_eval",
    "mid_train", "sft", "chat_eval/mid_train", "chat_eval/sft", "trace", "report",
)  # fmt: skip
OPTIONAL = {"preflight"}  # shown only where it left a trace
MADE_FROM = {
    "tokens/pretrain": ("tokenizer",),
    "tokens/mid_train": ("tokenizer",),
    "tokens/sft": ("tokenizer",),
    "tokens/core": ("tokenizer",),
    "base_train": ("tokens/pretrain",),
    "base_eval": ("base_train", "tokens/core"),
    "mid_train": ("base_train", "tokens/mid_train"),
    "sft": ("mid_train", "tokens/sft"),
    "chat_eval/mid_train": ("mid_train",),
    "chat_eval/sft": ("sft",),
}
EVALUATED = {"base_eval": "base_train", "chat_eval/mid_train": "mid_train", "chat_eval/sft": "sft"}

STOPPED = {"stopped", "requeue", "signal", "handover", "lost"}  # outcomes from which a stage goes on; the others failed

SILENCE_S = 120  # a lease is renewed every 10 s
STALL_S = 300  # without progress, beside a heart that beats


@dataclass
class Stage:
    """What is known of a stage. Its fields are the keys of `--json`; None is unknown."""

    stage: str
    state: str = "not started"
    message: str = ""  # one or two sentences for people
    log: str | None = None
    last_error: str | None = None
    job: str | None = None  # SLURM's id
    job_state: str | None = None
    queue_position: int | None = None
    queue_length: int | None = None
    queue_reason: str | None = None
    expected_start: str | None = None
    job_seconds_left: float | None = None
    host: str | None = None
    device: str | None = None
    num_devices: int | None = None
    attempts: int | None = None
    step: int | None = None
    num_steps: int | None = None
    unit: str | None = None
    loss: float | None = None
    validation_bpb: float | None = None
    losses: list[float] = field(default_factory=list)  # up to the newest commit, averaged to at most 24 numbers
    tokens_per_second: float | None = None
    utilisation: float | None = None  # share of the bf16 peak of that GPU; unknown for a device that is not in the table
    seconds_left: float | None = None
    seconds: float | None = None  # that a finished stage took
    updated: str | None = None
    reused_from: str | None = None


@dataclass
class Traces:
    """All that was found of a stage, as it was found."""

    state_folder: Path
    log: Path | None
    manifest: Document | None
    manifest_is_broken: bool
    record: Document
    status: Document
    lease: Document
    attempts: list[Document]
    identity: str | None  # sha256 of the manifest: how others name it as their input
    exists: bool


class Watcher:
    """Looks at a results folder again and again. What it remembers: which heartbeats it saw beat."""

    def __init__(self, results: Path):
        self.results = results
        self.heartbeats: dict[Path, tuple[str | None, float]] = {}

    def look(self, queue: Queue) -> Document:
        """Everything, as one JSON-able object: {"at", "results", "slurm", "runs": [{"run", "stages"}], "other_jobs"}."""
        jobs: dict[tuple[str, str], Job] = {}
        others = []
        for job in queue.jobs:
            run_and_stage = work_of(job.comment)
            if run_and_stage:
                # a job that runs tells more than one that waits behind it
                if run_and_stage not in jobs or jobs[run_and_stage].is_waiting:
                    jobs[run_and_stage] = job
            else:
                others.append({"job": job.id, "state": job.state, "comment": plain(job.comment), "reason": plain(job.reason)})
        names = sorted({*run_names(self.results), *(run for run, _ in jobs)})
        traces = {run: {stage: self.traces(run, stage) for stage in STAGES} for run in names}
        runs = []
        for run in names:
            stages = [self.stage(name, traces[run][name], jobs.get((run, name)), queue) for name in STAGES]
            stages = [stage for stage in stages if stage.stage not in OPTIONAL or stage.state != "not started"]
            mark_reused(stages, run, traces)
            runs.append({"run": run, "stages": [vars(stage) for stage in stages]})
        return {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "results": str(self.results),
            "slurm": {"answered": queue.problem is None, "problem": queue.problem},
            "runs": runs,
            "other_jobs": others,
        }

    def traces(self, run: str, stage: str) -> Traces:
        folder, state_folder = self.results / run / stage, self.results / run / "resume" / stage
        log = self.results / run / "logs" / f"{stage.replace('/', '_')}.log"
        content = read(folder / "manifest.json")
        manifest = parsed(content)
        lease = parsed(read(state_folder / "lease.json"))
        found = Traces(
            state_folder=state_folder,
            log=log if is_file(log) else None,
            manifest=manifest if isinstance(manifest.get("files"), dict) else None,
            manifest_is_broken=content is not None and not isinstance(manifest.get("files"), dict),
            record=parsed(read(folder / "record.json")),
            status=parsed(read(state_folder / "status.json")),
            lease=lease,
            attempts=[line for row in (read(state_folder / "attempts.jsonl") or b"").splitlines() if (line := parsed(row))],
            identity=hashlib.sha256(content).hexdigest() if content else None,
            exists=False,
        )
        found.exists = bool(content or found.record or found.status or found.attempts or lease or found.log)
        return found

    def stage(self, name: str, found: Traces, job: Job | None, queue: Queue) -> Stage:
        """Decide on the state, and gather what goes with it."""
        stage = Stage(name, log=str(found.log) if found.log else None)
        begun = [attempt for attempt in found.attempts if attempt.get("event") == "start"]
        stage.attempts = len(begun) or None
        job = job or queue.job(text(found.lease, "job"))
        if job:
            tell_job(stage, job)
        if job and job.is_waiting:
            stage.state, stage.message = "queued", waiting_words(job)
            tell_progress(stage, found.status)
        elif found.manifest is not None:
            stage.state = "finished"
            tell_results(stage, found)
        elif found.manifest_is_broken:
            stage.state = "failed"
            stage.message = "manifest.json is damaged. Run: python -m nanochat.verify --repair"
        elif found.lease:
            self.tell_holder(stage, found, job)
        elif job:
            stage.state, stage.message = "running", "" if job.state == "RUNNING" else f"the job is {job.state.lower()}"
        else:
            tell_end(stage, found)
        if stage.state in ("failed", "died") and found.log:
            stage.last_error = last_error(found.log)
        if stage.state in ("running", "evaluating", "stopped", "died"):
            stage.losses = losses(found.state_folder)
        return stage

    def tell_holder(self, stage: Stage, found: Traces, job: Job | None) -> None:
        """Somebody holds the stage: is he alive, and what does he say?"""
        lease, status = found.lease, found.status
        stage.host = text(lease, "host")
        stage.job = stage.job or text(lease, "job")
        stage.log = text(lease, "log") or stage.log
        if not (job or self.beats(found.state_folder / "lease.json", lease)):
            stage.state = "died"
            tell_progress(stage, status)
            silent = age(lease, "heartbeat")
            who = f"job {stage.job}" if stage.job else f"process {lease.get('pid', '?')}"
            since = f" for {span(silent)}" if silent and silent > 0 else ""
            stage.message = f"nothing was heard of {plain(str(who))} on {stage.host or '?'}{since}. {resume_words(found)}"
            return
        said = text(status, "state")
        if said is None or status.get("claim") != lease.get("claim"):  # what it says is of an earlier attempt
            stage.state, stage.message = "running", "starting"
            return
        stage.state = "evaluating" if said == "evaluating" else "running"
        tell_progress(stage, status)
        stage.message = text(status, "message") or ("" if said in ("running", "evaluating") else said)
        heard, updated = moment(lease, "heartbeat"), moment(status, "updated")  # of the same clock
        if heard and updated and (heard - updated).total_seconds() > STALL_S:
            stage.message = f"alive, but no progress for {span((heard - updated).total_seconds())}"

    def beats(self, path: Path, lease: Document) -> bool:
        """Whether the holder of a lease seems to be alive. Once it was seen to beat or not, clocks do not count."""
        beat, now = f"{lease.get('heartbeat')} {lease.get('beat')}", time.monotonic()
        before, since = self.heartbeats.get(path, (None, now))
        has_moved = before is not None and beat != before
        if path not in self.heartbeats or has_moved:
            self.heartbeats[path] = (beat, now)
        if has_moved:
            return True
        if is_gone(lease) or now - since > SILENCE_S:
            return False
        silent = age(lease, "heartbeat")
        return silent is not None and silent <= SILENCE_S


# -- from one source of facts to the stage -----------------------------------------------------------------------------------


def tell_job(stage: Stage, job: Job) -> None:
    stage.job, stage.job_state = job.id, job.state
    stage.job_seconds_left = job.seconds_left
    if job.is_waiting:
        stage.queue_position, stage.queue_length = job.position, job.num_waiting
        stage.queue_reason, stage.expected_start = plain(job.reason) or None, job.start
    else:
        stage.host = plain(job.nodes) or None


def tell_progress(stage: Stage, status: Document) -> None:
    step, num_steps, num_devices = (number(status, key) for key in ("step", "num_steps", "num_devices"))
    stage.step = None if step is None else int(step)
    stage.num_steps = None if num_steps is None else int(num_steps)
    stage.num_devices = None if num_devices is None else int(num_devices)
    stage.unit, stage.device, stage.updated = (text(status, key) for key in ("unit", "device", "updated"))
    stage.loss = number(status, "loss")
    stage.validation_bpb = number(status, "validation_bpb")
    stage.tokens_per_second = number(status, "tokens_per_second")
    stage.seconds_left = number(status, "seconds_left")
    stage.utilisation = utilisation(number(status, "flops_per_second"), stage.device, stage.num_devices)


def tell_results(stage: Stage, found: Traces) -> None:
    """What a finished stage has to show, from its manifest and its record."""
    results = found.manifest.get("results") if found.manifest else None
    results = results if isinstance(results, dict) else {}
    record = found.record
    steps, num_devices = number(results, "steps"), number(record, "num_devices")
    if steps is not None:
        stage.step = stage.num_steps = int(steps)
        stage.unit = "steps"
    stage.num_devices = None if num_devices is None else int(num_devices)
    stage.device, stage.host = text(record, "device"), text(record, "host")
    stage.loss, stage.validation_bpb = number(results, "train_loss"), number(results, "validation_bpb")
    stage.tokens_per_second = number(record, "tokens_per_second")
    flops, train_seconds = number(results, "flops"), number(record, "train_seconds")
    speed = flops / train_seconds if flops and train_seconds else None
    stage.utilisation = utilisation(speed, stage.device, stage.num_devices)
    stage.seconds, stage.updated = time_taken(record), text(record, "finished")
    chatcore = results.get("chatcore")
    scores = {"CORE": number(results, "core")}
    if isinstance(chatcore, dict):
        scores["ChatCORE"] = number(chatcore, "six") if number(chatcore, "six") is not None else number(chatcore, "five")
    if stage.validation_bpb is not None:
        scores["validation bits per byte"] = stage.validation_bpb
    stage.message = ", ".join(f"{name} {value:.4f}" for name, value in scores.items() if value is not None)


def tell_end(stage: Stage, found: Traces) -> None:
    """Nobody works on it: how did the last one end?"""
    last = found.attempts[-1] if found.attempts else {}
    outcome = text(last, "outcome") or "" if last.get("event") == "end" else ""
    outcome = outcome or text(found.status, "state") or ""
    said = launcher_said(found.log, stage.stage) or text(found.status, "message") or ""
    if last.get("event") == "start":
        who = f"job {text(last, 'job')}" if last.get("job") else "the last attempt"
        stage.state, stage.message = "died", f"{who} ended without a word. {resume_words(found)}"
    elif outcome in STOPPED:
        stage.state, stage.message = "stopped", said or resume_words(found)
    elif outcome == "finished":
        stage.message = "it was finished, and its manifest is gone: the next run makes or publishes it again"
        return
    elif outcome:
        stage.state, stage.message = "failed", said or outcome.replace("failed", "")
    elif found.log:
        is_certain = last_error(found.log, only_certain=True)
        stage.state = "failed" if is_certain else "begun"
        stage.message = "" if is_certain else f"its log was written {span(log_age(found.log))} ago; it runs, or was killed"
        return
    else:
        return
    tell_progress(stage, found.status)
    stage.seconds_left = None


def mark_reused(stages: list[Stage], run: str, traces: Mapping[str, Mapping[str, Traces]]) -> None:
    """A stage without a trace, of which something was made all the same, is another run's; so is its evaluation."""
    by_name = {stage.stage: stage for stage in stages}
    for stage in reversed(stages):  # what is made of it comes later
        if stage.state != "not started" or traces[run][stage.stage].exists:
            continue
        made = [by_name[name] for name, needed in MADE_FROM.items() if stage.stage in needed and name not in EVALUATED]
        if made := [other for other in made if other.state != "not started"]:
            stage.state = "reused"
            stage.reused_from = next(filter(None, (owner_of(stage.stage, other, run, traces) for other in made)), None)
    for name, model in EVALUATED.items():
        stage = by_name[name]
        if stage.state == "not started" and not traces[run][name].exists and by_name[model].state == "reused":
            stage.state, stage.reused_from = "reused", by_name[model].reused_from


def owner_of(stage: str, made: Stage, run: str, traces: Mapping[str, Mapping[str, Traces]]) -> str | None:
    """The run whose stage it is that `made` was made from; known once `made` is finished."""
    if made.reused_from:
        return made.reused_from if traces[made.reused_from][stage].exists else None
    manifest = traces[run][made.stage].manifest or {}
    inputs = manifest.get("inputs")
    key = {"tokenizer": "tokenizer", "base_train": "start_from", "mid_train": "start_from"}.get(stage, "tokens")
    wanted = text(inputs, key) if isinstance(inputs, dict) else None
    return next((other for other in traces if wanted and traces[other][stage].identity == wanted), None)


# -- words -------------------------------------------------------------------------------------------------------------------


def waiting_words(job: Job) -> str:
    place = f" number {job.position} of {job.num_waiting} that wait for {job.partition}" if job.position else " waiting"
    reason = f" ({plain(job.reason)})" if job.reason else ""
    start = f", expected to start {job.start.replace('T', ' ')}" if job.start else ""
    return plain(f"job {job.id} is{place}{reason}{start}")


def resume_words(found: Traces) -> str:
    step = newest_commit(found.state_folder)
    return f"Run the same snakemake command again: it goes on {f'from step {step:,}' if step is not None else 'where it was'}"


def span(seconds: float | None) -> str:
    """A time in the unit that people would use."""
    if seconds is None:
        return "?"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


# -- numbers -----------------------------------------------------------------------------------------------------------------


def utilisation(flops_per_second: float | None, device: str | None, num_devices: int | None) -> float | None:
    found = hardware.find(device) if device else None
    if not (found and flops_per_second):
        return None
    return flops_per_second / (max(1, num_devices or 1) * found.peak_flops)


def time_taken(record: Document) -> float | None:
    """Of all segments of a training together, or of the one run of any other stage."""
    segments = record.get("segments")
    spans = [
        (finished - started).total_seconds()
        for segment in (segments if isinstance(segments, list) else [])
        if isinstance(segment, dict) and (started := moment(segment, "started")) and (finished := moment(segment, "finished"))
    ]
    return sum(spans) if spans else number(record, "seconds")


def is_gone(lease: Document) -> bool:
    """Whether the holder was a process of this machine that is not there any more."""
    pid, started = number(lease, "pid"), number(lease, "pid_started")
    if pid is None or lease.get("process_space", "") != process_space() or not process_space():
        return False
    return not is_alive(int(pid), None if started is None else int(started))


# -- whose is it --------------------------------------------------------------------------------------------------------------


def work_of(comment: str) -> tuple[str, str] | None:
    """Run and stage of a job: rule_tokens_sft_wildcards_d20 -> (d20, tokens/sft)."""
    rule, _, wildcards = comment.removeprefix("rule_").partition("_wildcards_")
    if not comment.startswith("rule_") or not wildcards:
        return None
    for stage in STAGES:
        slug = stage.replace("/", "_")
        if stage.startswith("chat_eval/") and rule == "chat_eval":  # its wildcards are the run and the model
            model = slug.removeprefix("chat_eval_")
            if wildcards.endswith(f"_{model}"):
                return wildcards.removesuffix(f"_{model}"), stage
        elif rule == slug:
            return wildcards, stage
    return None


def run_names(results: Path) -> list[str]:
    """Folders with at least one stage, log or resume state in them."""
    known = {stage.split("/")[0] for stage in STAGES} | {"logs", "resume"}
    own = {"gpu_check", "comparison"}
    return [name for name in names_in(results) if name not in own and known & set(names_in(results / name))]
