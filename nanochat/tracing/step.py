"""The training step, seen: one real step of a trained model on a few tokens, recorded as the training's own code makes it.

`trace_step` calls `nanochat.train.update`, the function that trains every model here, on a copy of the model, and looks at
its lines as they finish (`lines.py`): the loss of each token, the gradient of each component, what Muon and AdamW make of it,
and the weights after it. None of that code is repeated or changed here; a recorded step ends in the same bits as an unrecorded
one.

Three things differ from a step of that training, and the page says so. The batch is the start of a single row. The optimizer
is fresh, but for one step on another row: nobody publishes the running means with which a training ended. The arithmetic is
float32, but for Muon's iteration on CPUs that multiply bfloat16: such a CPU and another one give slightly different numbers.

The result is plain JSON, floats with six digits, token texts with control characters shown:

    setting        which step, rows and rate; what was cut off
    tokens, loss   the text: each token's loss before and after the step, its probability, what the model preferred
    gradient       its length before and after clipping
    components     each one's gradient, weights, rate, and how far the step moved it
    muon, adamw    single matrices on their way through the optimizers
    schedule       the rates over the whole training, with this step in it
    bpb            bits per byte of a piece of validation text, with all that they are made of
    code           the functions that ran, with what their lines made
    weights        sha256 of all weights after the step

Cost: about seven times the weights in memory, and twice the arithmetic of Muon, which does not depend on the number of tokens:
d20 (561 M parameters) took 4 min 39 s and 16.7 GB on one core of an AMD EPYC, d12 (186 M) half of that and 5.5 GB.
"""

import copy
import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanochat.dataloader import Loader, PackedRows
from nanochat.distributed import Ranks
from nanochat.errors import UserError
from nanochat.gpt import GPT
from nanochat.loss_eval import evaluate_bpb
from nanochat.optimizer import SMEAR_LR, Optimizer, Parts, build_optimizer
from nanochat.schedule import muon_momentum, width_scale
from nanochat.text import visible
from nanochat.tokenizer import Tokenizer
from nanochat.tracing.forward import token_text
from nanochat.tracing.lines import Line, LineRecorder
from nanochat.tracing.pictures import number
from nanochat.tracing.step_code import FILES, Listing
from nanochat.tracing.step_watch import Watcher, losses_now
from nanochat.train import Numerics, Schedule, sum_of_losses, update

ROWS_TO_TRY = 4_096  # rows that are looked at for some that have anything to learn before the cut
POINTS = 240  # of a curve over the training
# groups of the components of 2026, whose rates are shares of others'
RATE_OF = {
    "value_embedding": "embedding_lr",
    "residual_scale": "optimizer.scalar_lr",
    "embedding_scale": "optimizer.scalar_lr",
    "smear_and_backout": "optimizer.SMEAR_LR",
}
RATES = ("matrix_lr", "embedding_lr", "unembedding_lr", "weight_decay")
STEP = 1  # the step that is shown, of this optimizer's own: one was before it


def trace_step(
    model: GPT,
    tokenizer: Tokenizer,
    rows: PackedRows,
    validation: PackedRows,
    specification: Mapping[str, Any],
    metrics: list[dict],
    *,
    num_tokens: int,
    name: str,
) -> dict[str, Any]:
    """Make a step of `model` on the first `num_tokens` tokens of a row of its training; returns what is shown of it.

    `specification` and `metrics` are those of the training that made the model: its rates, its schedule, how long it was. The
    step is made at the rate of the middle of that training, on rows of the batch it had there. `model` itself is not changed.
    UserError if no row has anything to learn in its first `num_tokens` tokens, or if the rows are not this model's.
    """
    schedule = schedule_of(specification, metrics)
    middle = schedule.num_steps // 2
    loader = Loader(rows, max(1, specification["total_batch_tokens"] // rows.sequence_len), specification["seed"])
    excerpt = Excerpt(loader, middle, num_tokens)
    validation_batch = first_text(validation, tokenizer, num_tokens)
    check_tokens([excerpt.batch(0), excerpt.batch(STEP), validation_batch], model.config.vocab_size)

    model = copy.deepcopy(model).train()
    model.compute_dtype = torch.float32
    optimizer = build_optimizer(
        model,
        **{rate: specification[rate] for rate in RATES},
        parts=Parts(**specification.get("optimizer", {})),
        warmdown_ratio=schedule.warmdown_ratio,
    )
    for adamw in optimizer.adamws.values():
        adamw.piece = 2**62  # whole tables, which are what the page shows; the same bits
    bpb, evaluation_code = trace_evaluation(model, tokenizer, validation_batch)
    progress = middle / schedule.num_steps
    make_step(model, optimizer, excerpt, 0, schedule.scale(middle), specification["grad_clip"], progress=progress)
    watcher = Watcher(model, optimizer, tokenizer, *excerpt.batch(STEP))
    with LineRecorder(FILES, watcher.on_line):
        lr_scale = schedule.scale(middle)
        loss, grad_norm = make_step(model, optimizer, excerpt, STEP, lr_scale, specification["grad_clip"], progress=progress)
    after = evaluate_bpb(model, [validation_batch], tokenizer.token_bytes())

    tokens = watcher.tokens(losses_now(model, *excerpt.batch(STEP)))
    num_supervised = excerpt.supervised_tokens(STEP)
    return {
        "name": visible(name),
        "config": model.config.as_dict(),
        "num_parameters": model.num_parameters(),
        "setting": {
            "step": middle,
            "num_steps": schedule.num_steps,
            "lr_scale": number(lr_scale),
            "momentum": number(muon_momentum(STEP)),
            "grad_clip": specification["grad_clip"],
            "num_tokens": excerpt.num_tokens,
            "num_supervised": num_supervised,
            "sequence_len": rows.sequence_len,
            "batch_rows": loader.batch_rows,
            "row_before": excerpt.chosen[0],
            "row": excerpt.chosen[1],
        },
        "tokens": tokens,
        "loss": {
            "sum": number(math.fsum(token["loss"] for token in tokens if "loss" in token)),
            "before": number(loss),
            "after": number(math.fsum(token["after"] for token in tokens if "loss" in token) / num_supervised),
        },
        "gradient": {"norm": number(grad_norm), "clipped": number(watcher.clipped_norm)},
        "components": watcher.components(lr_scale),
        "muon": watcher.muon.as_json(),
        "adamw": watcher.adamw.as_json(),
        "schedule": describe_schedule(schedule, middle, metrics) | {"rates": describe_rates(model, optimizer, specification)},
        "bpb": bpb | {"after": {key: number(after[key]) for key in ("loss", "bpb")}},
        "code": [*watcher.listing.as_json(), *evaluation_code],
        "weights": {"sha256": fingerprint(model)},
    }


def make_step(
    model: GPT,
    optimizer: Optimizer,
    excerpt: "Excerpt",
    step: int,
    lr_scale: float,
    grad_clip: float,
    *,
    progress: float = 0.0,
) -> tuple[float, float]:
    """A step, made as every training makes it, but for a loss whose logits can be seen: they are there all at once.

    `step` counts this optimizer's own, `progress` is that of the training. Returns the loss and the gradient's norm.
    """
    loss, grad_norm, _ = update(
        model,
        optimizer,
        excerpt,
        step=step,
        lr_scale=lr_scale,
        progress=progress,
        loss_of=sum_of_losses,
        grad_clip=grad_clip,
        numerics=Numerics("cpu", 1, "float32", 1),
        ranks=Ranks(),
    )
    return loss, grad_norm


# -- rows --------------------------------------------------------------------------------------------------------------------


class Excerpt(Loader):
    """A loader of two steps, each of one row that is cut after `num_tokens` tokens, for a CPU to make in seconds.

    The rows are the first two that the training itself read from step `start` on that have anything to learn before the cut.
    """

    def __init__(self, loader: Loader, start: int, num_tokens: int):
        if num_tokens < 1:
            raise UserError(f"trace.step_tokens: at least 1 token is needed, found {num_tokens}")
        super().__init__(loader.rows, 1, loader.seed)
        self.num_tokens = min(num_tokens, loader.sequence_len)
        self.chosen = list(itertools.islice(self._useful(loader, start), 2))
        if len(self.chosen) < 2:
            raise UserError(
                f"none of {ROWS_TO_TRY:,} rows of the training has anything to learn in its first {num_tokens:,} tokens: "
                "only the user speaks there. Raise trace.step_tokens"
            )

    def _useful(self, loader: Loader, start: int) -> Iterator[int]:
        stream = itertools.chain.from_iterable(loader.step_rows(step).tolist() for step in itertools.count(start))
        for row in itertools.islice(stream, ROWS_TO_TRY):
            if bool((cut(self.rows, row, self.num_tokens)[1] >= 0).any()):
                yield row

    def step_rows(self, step: int) -> np.ndarray:
        return np.array([self.chosen[step]])

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> tuple[Tensor, Tensor]:
        return cut(self.rows, self.chosen[step], self.num_tokens)

    def supervised_tokens(self, step: int) -> int:
        return int((self.batch(step)[1] >= 0).sum())


def cut(rows: PackedRows, row: int, num_tokens: int) -> tuple[Tensor, Tensor]:
    """The first tokens of a row as a batch: x and y, each (1, num_tokens)."""
    x, y = rows.inputs_and_targets(np.array([row]))
    return x[:, :num_tokens], y[:, :num_tokens]


def first_text(validation: PackedRows, tokenizer: Tokenizer, num_tokens: int) -> tuple[Tensor, Tensor]:
    """The start of the first validation row in which some text is to be predicted there."""
    token_bytes = torch.as_tensor(tokenizer.token_bytes())
    for row in range(min(len(validation), ROWS_TO_TRY)):
        x, y = cut(validation, row, num_tokens)
        counted = y[(y >= 0) & (y < len(token_bytes))]
        if bool((token_bytes[counted] > 0).any()):
            return x, y
    raise UserError(f"no validation row has any text to predict in its first {num_tokens:,} tokens. Raise trace.step_tokens")


def check_tokens(batches: list[tuple[Tensor, Tensor]], vocab_size: int) -> None:
    highest = max(int(part.max()) for batch in batches for part in batch)
    if highest >= vocab_size:
        raise UserError(f"the rows hold token {highest:,}, and the model has {vocab_size:,} tokens: these are not its own rows")


# -- bits per byte -----------------------------------------------------------------------------------------------------------


def trace_evaluation(
    model: GPT, tokenizer: Tokenizer, batch: tuple[Tensor, Tensor]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Bits per byte of a piece of text as `evaluate_bpb` finds them, the nats and bytes they are made of, and its lines."""
    listing = Listing("evaluation")
    losses: list[float] = []
    sizes: list[int] = []

    def on_line(line: Line) -> None:
        listing.on_line(line)
        if line.function == "batch_sums" and "part_bytes" in line.values:
            for name, found in (("losses", losses), ("part_bytes", sizes)):
                part = line.values[name]
                assert isinstance(part, Tensor)
                found.extend(part.tolist())

    with LineRecorder(FILES, on_line):
        found = evaluate_bpb(model, [batch], tokenizer.token_bytes())
    x, y = (part[0] for part in batch)
    text_nats = math.fsum(nats for nats, size in zip(losses, sizes, strict=True) if size)
    places = (y >= 0).nonzero()[:, 0].tolist()
    counted = {place: (nats, size) for place, nats, size in zip(places, losses, sizes, strict=True)}
    tokens: list[dict[str, Any]] = [{"text": token_text(tokenizer, int(x[0]))}]
    for place, token in enumerate([*x[1:].tolist(), int(y[-1])]):
        if place in counted:
            nats, size = counted[place]
            tokens.append({"text": token_text(tokenizer, token), "nats": number(nats), "bytes": size})
        elif token >= 0:
            tokens.append({"text": token_text(tokenizer, token)})
    described = {
        "tokens": tokens,
        "num_tokens": found["tokens"],
        "nats": number(math.fsum(losses)),
        "text_nats": number(text_nats),
        "bytes": sum(sizes),
        "by_hand": number(text_nats / (math.log(2) * sum(sizes))),
        "bpb": number(found["bpb"]),
        "loss": number(found["loss"]),
    }
    return described, listing.as_json()


# -- the schedule ------------------------------------------------------------------------------------------------------------


def schedule_of(specification: Mapping[str, Any], metrics: list[dict]) -> Schedule:
    """The schedule of a training that is over; its metrics tell how long it was."""
    trained = [row["step"] for row in metrics if "loss" in row]
    num_steps = 1 + max(trained) if trained else specification.get("steps") or 1
    return Schedule(
        num_steps=num_steps,
        lr_scale=specification.get("lr_scale", 1.0),
        warmup_ratio=specification["warmup_ratio"],
        warmdown_ratio=specification["warmdown_ratio"],
        final_lr_ratio=specification["final_lr_ratio"],
    )


def describe_schedule(schedule: Schedule, step: int, metrics: list[dict]) -> dict[str, Any]:
    """Curves over the whole training: the share of the rates, Muon's momentum, and what its metrics hold."""
    steps = sorted({*np.linspace(0, schedule.num_steps - 1, POINTS).round().astype(int).tolist(), step})
    trained = [row for row in metrics if "loss" in row]
    kept = trained[:: max(1, math.ceil(len(trained) / POINTS))]
    evaluated = [row for row in metrics if "validation_bpb" in row]
    return {
        "steps": steps,
        "scale": [number(schedule.scale(s)) for s in steps],
        "momentum": [number(muon_momentum(s)) for s in steps],
        "trained": [{key: finite(row.get(key)) for key in ("step", "loss", "grad_norm")} for row in kept],
        "this": next(({key: finite(row[key]) for key in row} for row in trained if row["step"] == step), None),
        "evaluated": {key: finite(value) for key, value in evaluated[-1].items()} if evaluated else None,
        "lr_scale": schedule.lr_scale,
        "warmup_ratio": schedule.warmup_ratio,
        "warmdown_ratio": schedule.warmdown_ratio,
        "final_lr_ratio": schedule.final_lr_ratio,
    }


def describe_rates(model: GPT, optimizer: Optimizer, specification: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of each group of parameters: the rate that the configuration gives, and the factor that width and group put on it."""
    groups = [("Muon", "matrix_lr", 1.0, optimizer.muon.lr, list(optimizer.muon.momenta))]
    width = width_scale(model.config.n_embd)
    specification = {**specification, "optimizer.scalar_lr": optimizer.parts.scalar_lr, "optimizer.SMEAR_LR": SMEAR_LR}
    for group, adamw in optimizer.adamws.items():
        key = RATE_OF.get(group, f"{group}_lr")
        given = specification[key]
        factor = width if group in ("embedding", "unembedding") else adamw.lr / given if given else 1.0
        groups.append(("AdamW", key, factor, adamw.lr, list(adamw.parameters)))
    return [
        {
            "optimizer": moved_by,
            "key": key,
            "given": specification[key],
            "width_scale": number(factor),
            "rate": number(rate),
            "parameters": kinds(names),
            "num_parameters": sum(model.get_parameter(name).numel() for name in names),
        }
        for moved_by, key, factor, rate, names in groups
        if names
    ]


def kinds(names: list[str]) -> list[str]:
    """Names of parameters without the number of the block, each once: blocks.*.attn.c_q."""
    parts = (name.removesuffix(".weight").removesuffix(".bias").split(".") for name in names)
    return list(dict.fromkeys(".".join("*" if part.isdigit() else part for part in name) for name in parts))


# -- small parts -------------------------------------------------------------------------------------------------------------


def finite(value: Any) -> float | None:
    return number(value) if isinstance(value, int | float) else None


def fingerprint(model: GPT) -> str:
    """sha256 of all weights: two models with the same one are equal in every bit."""
    digest = hashlib.sha256()
    for _, parameter in model.named_parameters():
        digest.update(parameter.detach().contiguous().numpy().data)
    return digest.hexdigest()
