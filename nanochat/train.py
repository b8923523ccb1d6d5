"""The training loop: the only one. base_train, mid_train and sft differ in where their model and their batches come from.

What a run computes is a function of (initial weights, rows, seed, schedule) and of nothing else: a step's batch follows from
the seed and the step, no random number is drawn on the way, and evaluations change nothing. So a training that was killed any
number of times and resumed from its commits ends in the same bits as one that was not; on the same device type, number of
ranks, micro-batch, dtype and library versions, which together are its numeric identity.
"""

import logging
import math
import platform
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.adamw import gradient_of
from nanochat.checkpoint import Commit, Commits, load_weights, weights
from nanochat.dataloader import Loader
from nanochat.distributed import Ranks
from nanochat.errors import UserError
from nanochat.gpt import GPT
from nanochat.optimizer import Optimizer
from nanochat.schedule import divisor_at_most, learning_rate_scale
from nanochat.stage import now, versions

log = logging.getLogger("nanochat")

SECONDS_BETWEEN_LINES = 5
# fp32 logits of one micro-batch, of which the backward pass holds about three: on CPUs few enough to stay near the caches
LOGIT_BYTES = {"cpu": 2**26, "cuda": 2**34}


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
    versions: dict[str, str] = field(default_factory=versions)


@dataclass
class Training:
    """What came out of it, beside the weights in the model."""

    metrics: list[dict]
    segments: list[dict]
    train_seconds: float
    tokens_per_second: float
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
            "peak_memory_bytes": peak_memory_bytes(ranks),
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
) -> Training:
    """Train to the end of the schedule, from the newest commit if there is one.

    `evaluate(model)` returns what is logged of the validation rows. A commit is made before every evaluation and every
    `commit_every` steps, so that whatever happens there costs no more than the steps since.
    """
    progress = Progress(name, schedule.num_steps, loader.tokens_per_step)
    start, metrics, history = restore(commits, model, optimizer, numerics, ranks)
    segments, is_exact, train_seconds = history["segments"], history["is_exact"], history["train_seconds"]
    segment = {"started": now().isoformat(), "host": platform.node(), "from_step": start}

    def commit(step: int) -> None:
        if ranks.is_main:
            here = {**segment, "finished": now().isoformat(), "to_step": step}
            state = {
                "segments": [*segments, here],
                "is_exact": is_exact,
                "train_seconds": train_seconds,
                "numerics": asdict(numerics),
                "finished": step == schedule.num_steps,
            }
            on_cpu = {key: tensor.cpu() for key, tensor in optimizer.state().items()}
            commits.write(Commit(step, weights(model), on_cpu, metrics, state))
        ranks.wait()

    for step in range(start, schedule.num_steps + 1):
        is_last = step == schedule.num_steps
        is_evaluated = is_last or (eval_every > 0 and step > 0 and step % eval_every == 0)
        if (is_evaluated or (commit_every > 0 and step % commit_every == 0)) and step > start:
            commit(step)
        if is_evaluated:
            found = evaluate(model)
            metrics.append({"step": step, **found})
            progress.say(step, "  ".join(f"{key} {value:.4f}" for key, value in found.items()))
        if is_last:
            break
        began = time.perf_counter()
        lr_scale = schedule.scale(step)
        loss, grad_norm = update(
            model, optimizer, loader, step=step, lr_scale=lr_scale, grad_clip=grad_clip, numerics=numerics, ranks=ranks
        )
        train_seconds += time.perf_counter() - began
        tokens = (step + 1) * loader.tokens_per_step
        metrics.append({"step": step, "loss": loss, "lr_scale": lr_scale, "grad_norm": grad_norm, "tokens": tokens})
        progress.step(step, loss)
    segments = [*segments, {**segment, "finished": now().isoformat(), "to_step": schedule.num_steps}]
    speed = schedule.num_steps * loader.tokens_per_step / train_seconds if train_seconds else 0.0
    return Training(metrics, segments, train_seconds, speed, numerics, is_exact)


def update(
    model: GPT,
    optimizer: Optimizer,
    loader: Loader,
    *,
    step: int,
    lr_scale: float,
    grad_clip: float,
    numerics: Numerics,
    ranks: Ranks,
) -> tuple[float, float]:
    """One step: gradients of the whole batch, clipped, applied. Returns the loss (nats a token) and the gradient's norm.

    The loss is the sum over the step's supervised tokens divided by their number, on all ranks and micro-batches together. A
    mean of micro-batch means would weigh the tokens of short answers more than those of long ones.
    """
    x, y = loader.batch(step, ranks.rank, ranks.world_size)
    num_supervised = max(1, loader.supervised_tokens(step))
    loss = torch.zeros((), device=ranks.device)
    for inputs, targets in zip(x.split(numerics.micro_batch), y.split(numerics.micro_batch), strict=True):
        inputs, targets = inputs.to(ranks.device), targets.to(ranks.device)
        part = sum_of_losses(model, inputs, targets) / num_supervised
        part.backward()
        loss += part.detach()
    parameters = list(model.parameters())
    ranks.sum_([loss, *map(gradient_of, parameters)])
    grad_norm = clip_gradients(parameters, grad_clip)
    if not (math.isfinite(loss.item()) and math.isfinite(grad_norm)):
        raise UserError(
            f"step {step}: the loss is {loss.item()} and the gradient's norm {grad_norm}; the update was not made, and the "
            f"commits before this step are good. Lower the learning rate, or look at the rows of this batch: "
            f"{loader.step_rows(step).tolist()[:8]} ..."
        )
    optimizer.step(step=step, lr_scale=lr_scale)
    for parameter in parameters:
        parameter.grad = None
    return loss.item(), grad_norm


def sum_of_losses(model: GPT, inputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats, summed over the targets that are not -1: ids (B, T), targets (B, T) -> a number."""
    logits = model(inputs)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum")


def clip_gradients(parameters: list[torch.nn.Parameter], limit: float) -> float:
    """Scale all gradients so that their common norm is at most `limit` (0: leave them); returns the norm before."""
    norm = torch.nn.utils.get_total_norm([gradient_of(parameter) for parameter in parameters])
    if limit > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm.item()


def choose_micro_batch(requested: int, *, rows: int, logit_bytes_per_row: int, device_type: str) -> int:
    """Rows in one forward pass: what was asked for, or (0) as many as keep the logits within a fixed share of memory.

    Never more than the step's rows on this rank, and always a divisor of them, so that all micro-batches are alike.
    """
    if requested:
        if rows % requested:
            raise UserError(f"micro_batch {requested} does not divide the {rows} rows that each rank has in a step")
        return requested
    return divisor_at_most(rows, LOGIT_BYTES[device_type] / logit_bytes_per_row)


def restore(
    commits: Commits, model: GPT, optimizer: Optimizer, numerics: Numerics, ranks: Ranks
) -> tuple[int, list[dict], dict[str, Any]]:
    """Go back to the newest commit: the step to go on from, the metrics up to it, and what is known of earlier segments."""
    commit = commits.latest() if ranks.is_main else None
    ranks.wait()
    if not ranks.is_main:
        commit = commits.latest()
    if commit is None:
        return 0, [], {"segments": [], "is_exact": True, "train_seconds": 0.0}
    load_weights(model, commit.weights)
    optimizer.load_state(commit.optimizer)
    before, current = commit.state["numerics"], asdict(numerics)
    is_exact = commit.state["is_exact"] and before == current
    log.info(f"going on from step {commit.step:,}")
    if before != current:
        changed = ", ".join(f"{key} was {before[key]}, is {current[key]}" for key in current if before[key] != current[key])
        log.warning(f"not bit-identical to an undisturbed run from here on: {changed}")
    keep = {key: commit.state[key] for key in ("segments", "train_seconds")}
    return commit.step, commit.metrics, {**keep, "is_exact": is_exact}


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

    def say(self, step: int, text: str) -> None:
        log.info(f"{self.name}  step {step:,}/{self.num_steps:,} ({step / self.num_steps:.0%})  {text}")
        self.last_line = self.last_time = time.monotonic()
