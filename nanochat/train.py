"""The training loop: the only one. base_train, mid_train and sft differ in where their model and their batches come from.

What a run computes is a function of (initial weights, rows, seed, schedule) and of nothing else: a step's batch follows from
the seed and the step, no random number is drawn on the way, and evaluations change nothing. So a training that was killed any
number of times and resumed from its commits ends in the same bits as one that was not; on the same hardware, number of ranks,
micro-batch, dtype and library versions, which together are its numeric identity. On others it goes on, and says that its bits
are not those of an undisturbed run. Not part of it: the number of threads on a CPU, which changed no bit where it was measured.
"""

import gc
import logging
import math
import platform
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.agreement import Agreement
from nanochat.casts import Casts
from nanochat.checkpoint import Commit, CommitMismatch, Commits, load_weights, require_same_tensors, weights
from nanochat.dataloader import Loader
from nanochat.distributed import Ranks
from nanochat.errors import UserError
from nanochat.gpt import GPT
from nanochat.identities import GENERATIONS, in_words
from nanochat.jobs.attempt import LOST, Attempt
from nanochat.loss import chunked_sum_of_losses
from nanochat.optimizer import Optimizer
from nanochat.planning.memory import largest_micro_batch, peak_bytes
from nanochat.schedule import divisor_at_most, flops_per_token, learning_rate_scale, micro_batch_on_cpu
from nanochat.stage import now, versions

log = logging.getLogger("nanochat")

LossOf = Callable[[GPT, Tensor, Tensor], Tensor]

SECONDS_BETWEEN_LINES = 5
NUM_SPEEDS = 500  # points on the curve of the speed
COMPARE_EVERY = 100  # steps after which the ranks compare what they hold, where no commit makes them do it before
ARITHMETIC = ("torch", "numpy")  # packages whose version may decide the last bits


@dataclass(frozen=True)
class Schedule:
    """How long, and at which share of the rates; see `nanochat.schedule`."""

    num_steps: int
    lr_scale: float = 1.0
    warmup_ratio: float = 0.0
    warmdown_ratio: float = 0.2
    final_lr_ratio: float = 0.0

    def scale(self, step: int) -> float:
        return self.lr_scale * learning_rate_scale(
            step,
            self.num_steps,
            warmup_ratio=self.warmup_ratio,
            warmdown_ratio=self.warmdown_ratio,
            final_lr_ratio=self.final_lr_ratio,
        )


@dataclass(frozen=True)
class Numerics:
    """What must be equal for two trainings to agree in every bit, beside the specification."""

    device_type: str
    world_size: int
    dtype: str
    micro_batch: int
    muon_dtype: str = "bfloat16"  # of Muon's iteration: what the device multiplies fast, whatever the activations are in
    attention: str = "sdpa"  # what computes attention: a name that nanochat.attention.use_attention knows
    is_compiled: bool = False
    determinism: str = "strict"  # fast: a GPU's kernels may sum in any order, so the same work ends in other bits each time
    hardware: str = ""  # the GPU's name, or the CPU's and its widest instructions (`Ranks.hardware`)
    versions: dict[str, str] = field(default_factory=lambda: {name: versions()[name] for name in ARITHMETIC})


@dataclass
class Training:
    """What came out of it, beside the weights in the model."""

    metrics: list[dict]
    segments: list[dict]
    train_seconds: float
    tokens_per_second: float
    speeds: list[list[float]]  # [step, tokens/s over the steps since the entry before]
    numerics: Numerics
    is_exact: bool

    def record(self, ranks: Ranks) -> dict[str, Any]:
        """What varies from run to run, for the record."""
        return {
            **ranks.record(),
            "world_size": ranks.world_size,
            "dtype": self.numerics.dtype,
            "micro_batch": self.numerics.micro_batch,
            "seconds": sum(seconds_of(segment) for segment in self.segments),
            "train_seconds": self.train_seconds,
            "tokens_per_second": self.tokens_per_second,
            "speeds": self.speeds,
            "peak_memory_bytes": peak_memory_bytes(ranks),
            "numerics": asdict(self.numerics),
            "generation": GENERATIONS["training"],
            "segments": self.segments,
            "is_exact": self.is_exact,
        }


def seconds_of(segment: dict) -> float:
    return (datetime.fromisoformat(segment["finished"]) - datetime.fromisoformat(segment["started"])).total_seconds()


def peak_memory_bytes(ranks: Ranks) -> int:
    """The most memory this process ever held: on its GPU, or resident in RAM."""
    if ranks.device.type == "cuda":
        return torch.cuda.max_memory_allocated(ranks.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def rare_garbage_collection() -> Iterator[None]:
    """What is there already is never looked through again, and the rest when `gc.collect` is called.

    A step makes no cycles to speak of, but enough objects for Python to look for some: half a second at a time in a large
    process, on one rank while the others wait.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


@rare_garbage_collection()
def train(
    model: GPT,
    optimizer: Optimizer,
    loader: Loader,
    *,
    name: str,
    schedule: Schedule,
    grad_clip: float,
    evaluate: Callable[[GPT], dict[str, float]],
    eval_every: int,
    commits: Commits,
    commit_every: int,
    numerics: Numerics,
    ranks: Ranks,
    attempt: Attempt | None = None,
) -> Training | None:
    """Train to the end of the schedule, from the newest commit if there is one. None if stopped before, at a commit.

    `evaluate(model)` returns what is logged of the validation rows. A commit is made before every evaluation and every
    `commit_every` steps, so that whatever happens there costs no more than the steps since; and when `attempt` asks for a
    stop, after the step that is under way.
    """
    attempt = attempt or Attempt()
    progress = Progress(name, schedule.num_steps, loader.tokens_per_step)
    plan = {**asdict(schedule), "tokens_per_step": loader.tokens_per_step}
    start, metrics, history = restore(commits, model, optimizer, numerics, ranks, plan=plan)
    own = optimizer.own_state()
    agreement = Agreement(ranks, dict(model.named_parameters()), own=own, first_rows=optimizer.first_rows())
    agreement.require(start)  # that all ranks begin with the same
    casts = Casts(model)
    flops = flops_per_token(model.config.as_dict())
    if ranks.is_main:
        attempt.report(state="running", step=start, num_steps=schedule.num_steps, unit="steps", **ranks.record())
    segments, is_exact, train_seconds = history["segments"], history["is_exact"], history["train_seconds"]
    segment = {"started": now().isoformat(), "host": platform.node(), "from_step": start, "changed": history["changed"]}
    speeds = Speeds(history["speeds"], schedule.num_steps, loader.tokens_per_step)

    def commit(step: int) -> None:
        gc.collect()
        agreed = agreement.require(step)
        gathered = optimizer.gather()
        if ranks.is_main and gathered is not None:
            attempt.ensure_held()
            began = time.perf_counter()
            here = {**segment, "finished": now().isoformat(), "to_step": step}
            state = {
                "segments": [*segments, here],
                "is_exact": is_exact,
                "train_seconds": train_seconds,
                "speeds": speeds.points,
                "numerics": asdict(numerics),
                "plan": plan,
                "fingerprint": agreed,
                "finished": step == schedule.num_steps,
            }
            commits.write(Commit(step, weights(model), gathered, metrics, state))
            took = round(time.perf_counter() - began, 3)
            attempt.report(committed=step, commit_seconds=max(took, attempt.status.get("commit_seconds", 0.0)))
        ranks.wait()

    for step in range(start, schedule.num_steps + 1):
        is_last = step == schedule.num_steps
        is_evaluated = is_last or (eval_every > 0 and step > 0 and step % eval_every == 0)
        if (is_evaluated or (commit_every > 0 and step % commit_every == 0)) and step > start:
            commit(step)
        elif step % COMPARE_EVERY == 0:
            agreement.require(step)
        if is_evaluated:
            if ranks.is_main:
                attempt.report(state="evaluating", step=step)
            with torch.compiler.set_stance("force_eager"):  # other shapes, and no gradients: each would be compiled anew
                found = evaluate(model)
            metrics.append({"step": step, **found})
            if ranks.is_main:
                attempt.report(state="running", **found)
            progress.say(step, "  ".join(f"{key} {value:.4f}" for key, value in found.items()))
        if is_last:
            break
        began = time.perf_counter()
        lr_scale = schedule.scale(step)
        reason = attempt.stop_requested() if ranks.is_main else None
        if reason == LOST:
            attempt.ensure_held()
        loss, grad_norm, should_stop = update(
            model,
            optimizer,
            loader,
            step=step,
            lr_scale=lr_scale,
            progress=step / schedule.num_steps,
            grad_clip=grad_clip,
            numerics=numerics,
            ranks=ranks,
            casts=casts,
            agreement=agreement,
            should_stop=reason is not None,
        )
        took = time.perf_counter() - began
        train_seconds += took
        speeds.add(step + 1, took)
        tokens = (step + 1) * loader.tokens_per_step
        metrics.append({"step": step, "loss": loss, "lr_scale": lr_scale, "grad_norm": grad_norm, "tokens": tokens})
        progress.step(step, loss)
        if ranks.is_main:
            attempt.report(step=step + 1, loss=loss, **progress.speeds(step + 1, flops))
        if should_stop and step + 1 < schedule.num_steps:
            commit(step + 1)
            if ranks.is_main:
                attempt.stopped(step + 1, schedule.num_steps)
            return None
    agreement.require(schedule.num_steps)  # what is published now
    segments = [*segments, {**segment, "finished": now().isoformat(), "to_step": schedule.num_steps}]
    speed = schedule.num_steps * loader.tokens_per_step / train_seconds if train_seconds else 0.0
    return Training(metrics, segments, train_seconds, speed, speeds.points, numerics, is_exact)


def update(
    model: GPT,
    optimizer: Optimizer,
    loader: Loader,
    *,
    step: int,
    lr_scale: float,
    progress: float,
    grad_clip: float,
    numerics: Numerics,
    ranks: Ranks,
    casts: Casts | None = None,
    agreement: Agreement | None = None,
    loss_of: LossOf = chunked_sum_of_losses,
    should_stop: bool = False,
) -> tuple[float, float, bool]:
    """One step: gradients of the whole batch, clipped, applied.

    Returns the loss (nats a token), the gradient's norm, and whether any rank said `should_stop`: that travels beside the
    loss, so that all ranks know after the same step, without an exchange of its own.

    The loss is the sum over the step's supervised tokens divided by their number, on all ranks and micro-batches together. A
    mean of micro-batch means would weigh the tokens of short answers more than those of long ones. `loss_of` makes that sum of
    a micro-batch; `sum_of_losses` is the definition, to which the default is equal but for rounding.
    """
    x, y = loader.batch(step, ranks.rank, ranks.world_size)
    num_supervised = max(1, loader.supervised_tokens(step))
    loss_and_stop = torch.tensor([0.0, float(should_stop)], device=ranks.device)
    try:
        with (casts or Casts(model)).made():
            for inputs, targets in zip(x.split(numerics.micro_batch), y.split(numerics.micro_batch), strict=True):
                inputs, targets = inputs.to(ranks.device), targets.to(ranks.device)
                part = loss_of(model, inputs, targets) / num_supervised
                part.backward()
                loss_and_stop[0] += part.detach()
    except torch.OutOfMemoryError as error:
        raise out_of_memory(error, numerics.micro_batch) from None
    ranks.sum_([loss_and_stop])
    optimizer.sum_gradients()
    grad_norm = optimizer.clip(grad_clip)
    # the only moment of a step at which the host waits for a GPU
    loss, stops, norm = torch.cat([loss_and_stop, grad_norm[None]]).tolist()
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise UserError(
            f"step {step}: the loss is {loss} and the gradient's norm {norm}; the update was not made, and the "
            f"commits before this step are good. Lower the learning rate, or look at the rows of this batch: "
            f"{loader.step_rows(step).tolist()[:8]} ..."
        )
    if agreement:
        agreement.see(optimizer.gradients()[1])
    optimizer.step(step=step, lr_scale=lr_scale, progress=progress)
    if agreement:
        agreement.keep()
    for parameter in model.parameters():
        parameter.grad = None
    return loss, norm, stops > 0


def out_of_memory(error: torch.OutOfMemoryError, micro_batch: int) -> UserError:
    """In words: how many rows did not fit, and how many to try."""
    smaller = divisor_at_most(micro_batch, micro_batch // 2) if micro_batch > 1 else 0
    remedy = f"Set micro_batch: {smaller}" if smaller else "Not even one row fits: a smaller model, or a GPU with more memory"
    return UserError(
        f"the GPU's memory does not hold a forward and backward pass of micro_batch {micro_batch} rows. {remedy}. "
        f"The commits are good, and the training goes on from the newest.\n  PyTorch says: {str(error).splitlines()[0]}"
    )


def sum_of_losses(model: GPT, inputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats, summed over the targets that are not -1: ids (B, T), targets (B, T) -> a number.

    The definition. It keeps the logits of all positions, several times; trainings use `nanochat.loss`, which does not.
    """
    logits = model(inputs)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum")


def choose_micro_batch(
    requested: int,
    *,
    rows: int,
    model: Mapping[str, Any],
    dtype: str,
    memory_bytes: int | None = None,
    world_size: int = 1,
    recompute: bool = False,
) -> int:
    """Rows in one forward pass: what was asked for, or (0) what fits the GPU's memory; on a CPU, what stays near its caches.

    Never more than the step's rows on this rank, and always a divisor of them, so that all micro-batches are alike.
    `model` are the fields of GPTConfig, `memory_bytes` those of the GPU (None: a CPU).
    """
    if requested:
        if rows % requested:
            raise UserError(f"micro_batch {requested} does not divide the {rows} rows that each rank has in a step")
        return requested
    if memory_bytes is None:
        return micro_batch_on_cpu(model, rows)
    found = largest_micro_batch(
        model, rows=rows, memory_bytes=memory_bytes, world_size=world_size, dtype=dtype, recompute=recompute
    )
    if not found:
        need = peak_bytes(model, micro_batch=1, world_size=world_size, dtype=dtype, recompute=recompute)
        raise UserError(
            f"the model does not fit this GPU: with one row in a forward pass it needs about {need / 1e9:.1f} GB, and the GPU "
            f"has {memory_bytes / 1e9:.1f} GB. Take a smaller depth, or a GPU with more memory"
        )
    return found


def restore(
    commits: Commits, model: GPT, optimizer: Optimizer, numerics: Numerics, ranks: Ranks, *, plan: Mapping[str, Any]
) -> tuple[int, list[dict], dict[str, Any]]:
    """Go back to the newest commit: the step to go on from, the metrics up to it, and what is known of earlier segments."""
    commit = commits.latest() if ranks.is_main else None
    ranks.wait()
    if not ranks.is_main:
        commit = commits.latest()
    if commit is None:
        return 0, [], {"segments": [], "is_exact": True, "train_seconds": 0.0, "speeds": [], "changed": []}
    check_plan(commit, plan, where=commits.folder)
    load_weights(model, commit.weights, where=commits.folder)
    require_same_tensors(commits.folder, commit.optimizer, optimizer.empty_state())
    optimizer.load_state(commit.optimizer)
    log.info(f"going on from step {commit.step:,}")
    changed = in_words({"determinism": "strict", **commit.state["numerics"]}, asdict(numerics))
    if numerics.determinism == "fast":
        changed.append("determinism: fast, which makes other bits each time")
    if changed:
        log.warning(f"not bit-identical to an undisturbed run from here on: {'; '.join(changed)}")
    is_exact = commit.state["is_exact"] and not changed
    keep = {key: commit.state[key] for key in ("segments", "train_seconds", "speeds")}
    return commit.step, commit.metrics, {**keep, "is_exact": is_exact, "changed": changed}


def check_plan(commit: Commit, plan: Mapping[str, Any], *, where: Path) -> None:
    """UserError unless the commit lies on this plan: the same specification must make the same number of steps of it."""
    problems = in_words(commit.state["plan"], dict(plan))
    if commit.step > plan["num_steps"]:
        problems.append(f"step {commit.step:,} is behind the last of {plan['num_steps']:,}")
    losses = [row for row in commit.metrics if "loss" in row]
    if [row["step"] for row in losses] != list(range(commit.step)):
        problems.append(f"step {commit.step:,} has the losses of {len(losses):,} steps")
    elif losses and losses[-1]["tokens"] != commit.step * plan["tokens_per_step"]:
        problems.append(f"step {commit.step:,} has seen {losses[-1]['tokens']:,} tokens")
    if problems:
        raise CommitMismatch(
            f"{where}: its newest commit does not fit the plan that its specification makes now:\n  "
            + "\n  ".join(problems)
            + "\nThe code changed in between. To go on with that training, use the code that began it. To begin anew, delete "
            "the folder."
        )


class Speeds:
    """The speed along a training: `points` of [step, tokens/s over the steps since the point before]."""

    def __init__(self, points: list[list[float]], num_steps: int, tokens_per_step: int):
        self.points, self.tokens_per_step = list(points), tokens_per_step
        self.stride = max(1, -(-num_steps // NUM_SPEEDS))
        self.steps, self.seconds = 0, 0.0  # since the last point

    def add(self, step: int, seconds: float) -> None:
        self.steps += 1
        self.seconds += seconds
        if step % self.stride == 0:
            self.points.append([step, round(self.steps * self.tokens_per_step / max(self.seconds, 1e-9), 1)])
            self.steps, self.seconds = 0, 0.0


class Progress:
    """A line every few seconds: step, loss, speed, time left. Lines rather than a bar: they are read in log files as well."""

    def __init__(self, name: str, num_steps: int, tokens_per_step: int):
        self.name, self.num_steps, self.tokens_per_step = name, num_steps, tokens_per_step
        self.last_line = self.last_time = time.monotonic()
        self.smooth = 0.0  # seconds a step, averaged over about the last twenty

    def step(self, step: int, loss: float) -> None:
        now_ = time.monotonic()
        took, self.last_time = now_ - self.last_time, now_
        self.smooth = took if not self.smooth else 0.95 * self.smooth + 0.05 * took
        if now_ - self.last_line >= SECONDS_BETWEEN_LINES or step + 1 == self.num_steps:
            left = timedelta(seconds=round(self.smooth * (self.num_steps - step - 1)))
            self.say(step + 1, f"loss {loss:.4f}  {self.tokens_per_step / self.smooth:,.0f} tokens/s  {left} left")

    def speeds(self, step: int, flops_per_token: int) -> dict[str, float]:
        """What status.json tells of the speed."""
        speed = self.tokens_per_step / self.smooth
        left = self.smooth * (self.num_steps - step)
        return {"tokens_per_second": speed, "flops_per_second": speed * flops_per_token, "seconds_left": left}

    def say(self, step: int, text: str) -> None:
        log.info(f"{self.name}  step {step:,}/{self.num_steps:,} ({step / self.num_steps:.0%})  {text}")
        self.last_line = self.last_time = time.monotonic()
