"""The CORE metric of DCLM (arXiv 2406.11794): 22 tasks that a base model answers by likelihood, from a few examples.

A prompt is rendered (`nanochat.core_bundle`) and tokenized once; sequences of similar length share a forward pass; only the
tokens that decide are pushed through the output projection. What decides:

    multiple_choice     mean loss of the tokens behind the part that all choices share
    schema              mean loss of the tokens that all contexts end in
    language_modeling   whether every token of the continuation is the likeliest one

CORE is the mean over the tasks of (accuracy - baseline) / (1 - baseline). One run of it is worth about +-0.008.

Where nanochat stops, this goes on and says so: fewer items than examples (all others are shown), a continuation that melts into
the last token of its context (scored from the first token that differs), a choice that is the beginning of another (all are
scored from its last token). A prompt longer than the model can read loses its beginning, as in nanochat, and is
counted in the results.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from nanochat.accuracy import centered, wilson_interval
from nanochat.batching import batches_by_tokens, context_limit, default_batch_tokens, hidden_at
from nanochat.core_bundle import CoreTask, list_labels, read_bundle, render_prompts
from nanochat.distributed import Ranks
from nanochat.errors import UserError
from nanochat.gpt import GPT
from nanochat.partial import Parts, Work
from nanochat.progress import Progress
from nanochat.tokenizer import Tokenizer

log = logging.getLogger("nanochat")

ITEMS_AT_ONCE = 512  # rendered, tokenized and sorted together; bounds the memory
POSITIONS_AT_ONCE = 2_048  # positions that go through the output projection together: at 65,536 tokens, 0.5 GB of logits
WEIGHED_ITEMS = 8  # of a task, to tell how much text it is

Poll = Callable[[float], None]  # called before each batch with the share that is done; may raise


@dataclass(frozen=True)
class Option:
    """The tokens of one option of an item; those from `start` on are scored."""

    tokens: np.ndarray  # uint16
    start: int
    was_cropped: bool = False


@dataclass(frozen=True)
class Score:
    """Mean loss (nats a token) of an option's scored tokens, and the tokens that the model would have said instead."""

    loss: float
    likeliest: np.ndarray


def evaluate_core(
    model: GPT,
    tokenizer: Tokenizer,
    bundle: Path,
    *,
    tasks: Sequence[str] | None = None,
    max_per_task: int | None = None,
    batch_tokens: int | None = None,
    parts: Parts | None = None,
) -> tuple[dict, list[dict]]:
    """Evaluate a base model on the tasks of a bundle (all of them, or those named); returns (results, examples).

    results: {"core", "tasks": {label: {"type", "num_fewshot", "num_items", "num_available", "accuracy", "interval", "baseline",
    "centered", "num_cropped"}}}; "core" is None when only some tasks of the bundle were evaluated, since their mean is another
    number. `max_per_task` keeps the first items after the shuffle, as nanochat does; num_items says how many.

    examples: a row an item: {"task", "index", "line" (of the file), "prompt_sha256", "losses" (one an option), "prediction",
    "gold", "correct"}; for language modelling, prediction and gold are texts.

    `parts` are the processes that split the items, the tasks that an earlier attempt finished, and who may ask for a stop.
    """
    parts = parts or Parts(Ranks())
    chosen = read_bundle(bundle, labels=tasks, max_per_task=max_per_task)
    batch_tokens = batch_tokens or default_batch_tokens(model.wte.weight.device)
    parts.expect({task.label: Work("CORE", num_characters(task)) for task in chosen})
    results, examples = {}, []
    for number, task in enumerate(chosen, start=1):
        if task.num_examples < task.num_fewshot:
            log.warning("CORE %s: %d examples in front of each item, not %d: there are no more other items",
                        task.label, task.num_examples, task.num_fewshot)  # fmt: skip
        indices = range(parts.ranks.rank, len(task.items), parts.ranks.world_size)
        share = partial(evaluate_task, model, tokenizer, task, indices, batch_tokens=batch_tokens, poll=parts.poll)
        rows = parts.rows(task.label, share)
        results[task.label] = summarise(task, rows)
        examples += rows
        log.info("CORE %2d/%d %-32s accuracy %.4f, centered %+.4f, %d of %d items, %s", number, len(chosen), task.label,
                 results[task.label]["accuracy"], results[task.label]["centered"], len(rows), task.num_available,
                 parts.took(task.label))  # fmt: skip
    return {"core": mean_centered(results, num_listed=len(list_labels(bundle))), "tasks": results}, examples


def evaluate_task(
    model: GPT, tokenizer: Tokenizer, task: CoreTask, indices: Sequence[int], *, batch_tokens: int, poll: Poll
) -> list[dict]:
    """One row for each of the items of a task at `indices`."""
    rows: list[dict] = []
    progress = Progress(f"CORE {task.label}", sum(len(task.items[index].options) for index in indices), "options")
    for first in range(0, len(indices), ITEMS_AT_ONCE):
        part = indices[first : first + ITEMS_AT_ONCE]
        prompts = [render_prompts(task, index) for index in part]
        items = tokenize(tokenizer, task, prompts, max_tokens=context_limit(model.config))
        options = [option for item in items for option in item]
        scores = iter(score(model, options, progress, poll, pad_id=tokenizer.bos_id, batch_tokens=batch_tokens))
        for index, prompt, item in zip(part, prompts, items, strict=True):
            rows.append(judge(task, index, prompt, item, [next(scores) for _ in item], tokenizer))
    return rows


def num_characters(task: CoreTask) -> float:
    """About how much text a task is, examples included: what its time is in proportion to."""
    some = range(min(WEIGHED_ITEMS, len(task.items)))
    # of language modelling, the context alone is rendered as well, and not evaluated
    texts = [text for index in some for text in render_prompts(task, index)[-len(task.items[index].options) :]]
    return sum(map(len, texts)) / len(some) * len(task.items)


# -- from text to scored tokens ----------------------------------------------------------------------------------------------


def tokenize(tokenizer: Tokenizer, task: CoreTask, prompts: list[list[str]], *, max_tokens: int) -> list[list[Option]]:
    """The rendered texts of several items -> the options of each."""
    encoded = iter(tokenizer.encode_batch([text for texts in prompts for text in texts], num_threads=4, bos=True))
    items = []
    for texts in prompts:
        options = find_scored(task.kind, [next(encoded) for _ in texts])
        items.append([crop(option, max_tokens) for option in options])
    return items


def find_scored(kind: str, sequences: list[np.ndarray]) -> list[Option]:
    """Where the deciding tokens of each option begin; they end with the sequence."""
    if kind == "schema":
        shared = common_length([tokens[::-1] for tokens in sequences])
        return [Option(tokens, len(tokens) - max(shared, 1)) for tokens in sequences]
    shared = common_length(sequences)
    # at least one token decides, also where a choice is the beginning of another or a continuation adds nothing
    if kind == "language_modeling":
        _, whole = sequences
        return [Option(whole, min(shared, len(whole) - 1))]
    start = min(shared, min(map(len, sequences)) - 1)
    return [Option(tokens, start) for tokens in sequences]


def common_length(sequences: list[np.ndarray]) -> int:
    """How many first tokens all sequences share.  [5, 6, 7], [5, 6, 8, 9]  ->  2"""
    shortest = min(map(len, sequences))
    differs = np.zeros(shortest, dtype=bool)
    for tokens in sequences[1:]:
        differs |= tokens[:shortest] != sequences[0][:shortest]
    return int(differs.argmax()) if differs.any() else shortest


def crop(option: Option, max_tokens: int) -> Option:
    """Without its first tokens, if the model cannot read them all; a scored token needs at least one before it."""
    excess = len(option.tokens) - max_tokens
    if excess <= 0:
        return option
    return Option(option.tokens[excess:], max(option.start - excess, 1), was_cropped=True)


# -- from tokens to rows -----------------------------------------------------------------------------------------------------


@torch.inference_mode()
def score(
    model: GPT, options: Sequence[Option], progress: Progress, poll: Poll, *, pad_id: int, batch_tokens: int
) -> list[Score]:
    """Score sequences in batches of similar length; the results are in the order given."""
    scores: dict[int, Score] = {}
    for batch in batches_by_tokens([len(option.tokens) for option in options], batch_tokens):
        poll(progress.done / progress.total)
        chosen = [options[index] for index in batch]
        # the token at t is predicted at t - 1
        positions = [range(option.start - 1, len(option.tokens) - 1) for option in chosen]
        hidden = hidden_at(model, [option.tokens for option in chosen], positions, pad_id=pad_id)  # (N, C)
        targets = np.concatenate([option.tokens[option.start :] for option in chosen]).astype(np.int64)  # (N,)
        losses, likeliest = losses_at(model, hidden, torch.from_numpy(targets).to(hidden.device))
        ends = np.cumsum([len(wanted) for wanted in positions])
        for index, loss, tokens in zip(batch, np.split(losses, ends[:-1]), np.split(likeliest, ends[:-1]), strict=True):
            scores[index] = Score(float(loss.mean()), tokens)
        progress.add(len(batch))
    return [scores[index] for index in range(len(options))]


def losses_at(model: GPT, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states (N, C) and the tokens that followed (N,) -> losses (N,) in float64 and likeliest tokens (N,)."""
    losses, likeliest = [], []
    for part, wanted in zip(hidden.split(POSITIONS_AT_ONCE), targets.split(POSITIONS_AT_ONCE), strict=True):
        logits = model.logits(part)  # (N, V)
        losses.append(F.cross_entropy(logits, wanted, reduction="none"))
        likeliest.append(logits.argmax(dim=1))
    return torch.cat(losses).cpu().double().numpy(), torch.cat(likeliest).cpu().numpy()


def judge(
    task: CoreTask, index: int, prompt: list[str], options: list[Option], scores: list[Score], tokenizer: Tokenizer
) -> dict:
    item = task.items[index]
    losses = [score.loss for score in scores]
    if not np.isfinite(losses).all():
        raise UserError(
            f"CORE {task.label}, item {index}: the model's losses are {losses}; its weights are broken. Train it again"
        )
    row = {
        "task": task.label,
        "index": index,
        "line": item.line,
        "prompt_sha256": hashlib.sha256("\0".join(prompt).encode()).hexdigest()[:16],
        "losses": [round(loss, 6) for loss in losses],
    }
    if task.kind == "language_modeling":
        said, wanted = scores[0].likeliest, options[0].tokens[options[0].start :]
        row |= {"prediction": tokenizer.decode(said.tolist()), "gold": tokenizer.decode(wanted.tolist())}
        row["correct"] = bool((said == wanted).all())
    else:
        prediction = losses.index(min(losses))  # of equals the first, as in nanochat
        row |= {"prediction": prediction, "gold": item.gold, "correct": prediction == item.gold}
    if any(option.was_cropped for option in options):
        row["cropped"] = True
    return row


def mean_centered(results: Mapping[str, dict], *, num_listed: int) -> float | None:
    """CORE, if these are the results of all tasks that the bundle lists."""
    mean = sum(result["centered"] for result in results.values()) / len(results)
    if len(results) < num_listed:
        log.info("CORE: not given; %.4f is the mean of %d of the bundle's %d tasks", mean, len(results), num_listed)
        return None
    log.info("CORE: %.4f", mean)
    return mean


def summarise(task: CoreTask, rows: list[dict]) -> dict:
    num_correct = sum(row["correct"] for row in rows)
    accuracy = num_correct / len(rows)
    return {
        "type": task.kind,
        "num_fewshot": task.num_examples,
        "num_items": len(rows),
        "num_available": task.num_available,
        "accuracy": accuracy,
        "interval": list(wilson_interval(num_correct, len(rows))),
        "baseline": task.baseline,
        "centered": centered(accuracy, task.baseline),
        "num_cropped": sum("cropped" in row for row in rows),
    }
