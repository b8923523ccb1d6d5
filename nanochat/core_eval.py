"""The CORE metric of DCLM (arXiv 2406.11794): 22 tasks that a base model answers by likelihood, from a few examples.

Prompts come as tokens (`nanochat.core_tokens`). What the options of an item share, mostly a long prompt, is read once; many
items share a forward pass without padding; only the tokens that decide go through the output projection. What decides:

    multiple_choice     mean loss of the tokens behind the part that all choices share
    schema              mean loss of the tokens that all contexts end in
    language_modeling   whether every token of the continuation is the likeliest one

CORE is the mean over the tasks of (accuracy - baseline) / (1 - baseline). Its interval is about the luck of the items;
trainings that differ in nothing but luck were 0.008 apart.

Where nanochat stops, this goes on and says so: fewer items than examples (all others are shown), a continuation that melts into
the last token of its context (scored from the first token that differs), a choice that is the beginning of another (all are
scored from its last token). A prompt longer than the model can read loses its beginning, as in nanochat, and is
counted in the results.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

from nanochat.accuracy import centered, centered_interval, mean_interval, wilson_interval
from nanochat.batching import Tree, batches_by_tokens, context_limit, default_batch_tokens, hidden_at
from nanochat.core_tokens import CoreTokens, Prompts, TokenizedTask
from nanochat.distributed import Ranks
from nanochat.errors import UserError
from nanochat.gpt import GPT
from nanochat.partial import Parts, Work
from nanochat.progress import Progress

log = logging.getLogger("nanochat")

POSITIONS_AT_ONCE = 2_048  # positions that go through the output projection together: at 65,536 tokens, 0.5 GB of logits

Poll = Callable[[float], None]  # called before each batch with the share that is done; may raise


class Decoder(Protocol):
    """What is needed of a tokenizer."""

    def decode(self, ids: list[int]) -> str: ...


@dataclass(frozen=True)
class Question:
    """An item as the model reads it: trees of tokens, and for each of its options what follows which tokens of them."""

    trees: tuple[Tree, ...]
    before: tuple[np.ndarray, ...]  # of each option: the token of all trees' tokens in front of each scored one
    scored: tuple[np.ndarray, ...]  # of each option: the scored tokens
    was_cropped: bool = False

    def __len__(self) -> int:
        return sum(map(len, self.trees))


@dataclass(frozen=True)
class Score:
    """Mean loss (nats a token) of an option's scored tokens, and the tokens that the model would have said instead."""

    loss: float
    likeliest: np.ndarray


def evaluate_core(
    model: GPT,
    tokenizer: Decoder,
    core: CoreTokens,
    *,
    batch_tokens: int | None = None,
    parts: Parts | None = None,
) -> tuple[dict, list[dict]]:
    """Evaluate a base model on tasks; returns (results, examples).

    results: {"core", "interval", "tasks": {label: {"type", "num_fewshot" (shown), "num_fewshot_asked", "num_items",
    "num_available", "accuracy", "interval", "baseline", "centered", "centered_interval", "num_cropped"}}}; intervals: 95 %.
    "core" and its interval are None when only some tasks of the bundle were evaluated, since their mean is another number.

    examples: a row an item: {"task", "index", "line" (of the file), "prompt_sha256", "losses" (one an option), "prediction",
    "gold", "correct"}; for language modelling, prediction and gold are texts.

    `parts` are the processes that split the items, the tasks that an earlier attempt finished, and who may ask for a stop.
    """
    parts = parts or Parts(Ranks())
    batch_tokens = batch_tokens or default_batch_tokens(model.wte.weight.device)
    parts.expect({task.label: Work("CORE", task.num_tokens()) for task in core.tasks})
    results, examples = {}, []
    for number, task in enumerate(core.tasks, start=1):
        indices = range(parts.ranks.rank, len(task), parts.ranks.world_size)
        share = partial(evaluate_task, model, tokenizer, task, indices, batch_tokens=batch_tokens, poll=parts.poll)
        rows = parts.rows(task.label, share)
        results[task.label] = summarise(task, rows)
        examples += rows
        log.info("CORE %2d/%d %-32s accuracy %.4f, centered %+.4f, %d of %d items, %s", number, len(core.tasks), task.label,
                 results[task.label]["accuracy"], results[task.label]["centered"], len(rows), task.num_available,
                 parts.took(task.label))  # fmt: skip
    return {**mean_centered(results, num_listed=core.num_listed), "tasks": results}, examples


def evaluate_task(
    model: GPT, tokenizer: Decoder, task: TokenizedTask, indices: Sequence[int], *, batch_tokens: int, poll: Poll
) -> list[dict]:
    """One row for each of the items of a task at `indices`."""
    max_tokens = context_limit(model.config)
    questions = [ask(task[index], max_tokens=max_tokens) for index in indices]
    rows: list[dict] = []
    progress = Progress(f"CORE {task.label}", len(questions), "items")
    for batch in batches_by_tokens(list(map(len, questions)), batch_tokens):
        poll(progress.done / progress.total)
        scores = score(model, [questions[place] for place in batch])
        for place, found in zip(batch, scores, strict=True):
            rows.append(judge(task, indices[place], questions[place], found, tokenizer))
        progress.add(len(batch))
    return rows


# -- from an item to what the model reads --------------------------------------------------------------------------------------


def ask(item: Prompts, *, max_tokens: int) -> Question:
    """The trees of an item. The last token of an option is scored and never read, since nothing follows it."""
    longest = len(item.prefix) + max(map(len, item.suffixes))
    if len(item.suffixes) > 1 and longest <= max_tokens:
        return ask_branching(item)
    options = [(np.concatenate([item.prefix, suffix]), start) for suffix, start in zip(item.suffixes, item.starts, strict=True)]
    # cropped, options of different lengths lose different beginnings, and share nothing any more
    return ask_singly([crop(tokens, start, max_tokens) for tokens, start in options], was_cropped=longest > max_tokens)


def ask_branching(item: Prompts) -> Question:
    """One tree: what all options share is read once."""
    fork, end = len(item.prefix), len(item.prefix)
    before = []
    for suffix, start in zip(item.suffixes, item.starts, strict=True):
        places = np.arange(start - 1, fork + len(suffix) - 1)  # as if the option followed the prefix at once
        before.append(np.where(places < fork, places, places + end - fork))
        end += len(suffix) - 1
    branches = tuple(suffix[:-1] for suffix in item.suffixes if len(suffix) > 1)
    scored = tuple(suffix[start - fork :] for suffix, start in zip(item.suffixes, item.starts, strict=True))
    return Question((Tree(item.prefix, branches),), tuple(before), scored)


def ask_singly(options: Sequence[tuple[np.ndarray, int]], *, was_cropped: bool) -> Question:
    """A tree an option."""
    trees = tuple(Tree(tokens[:-1]) for tokens, _ in options)
    ends = np.cumsum([0, *map(len, trees)])
    before = tuple(np.arange(start - 1, len(tokens) - 1) + end for (tokens, start), end in zip(options, ends[:-1], strict=True))
    return Question(trees, before, tuple(tokens[start:] for tokens, start in options), was_cropped)


def crop(tokens: np.ndarray, start: int, max_tokens: int) -> tuple[np.ndarray, int]:
    """Without its first tokens, if the model cannot read them all; a scored token needs at least one before it."""
    excess = max(len(tokens) - max_tokens, 0)
    return tokens[excess:], max(start - excess, 1)


# -- from tokens to rows -----------------------------------------------------------------------------------------------------


@torch.inference_mode()
def score(model: GPT, questions: Sequence[Question]) -> list[list[Score]]:
    """One forward pass: the score of each option of each question."""
    hidden = hidden_at(model, [(question.trees, np.concatenate(question.before)) for question in questions])  # (N, C)
    scored = [tokens for question in questions for tokens in question.scored]
    targets = torch.from_numpy(np.concatenate(scored).astype(np.int64)).to(hidden.device)  # (N,)
    losses, likeliest = losses_at(model, hidden, targets)
    cuts = np.cumsum(list(map(len, scored)))[:-1]
    pairs = zip(np.split(losses, cuts), np.split(likeliest, cuts), strict=True)
    scores = (Score(float(loss.mean()), tokens) for loss, tokens in pairs)
    return [[next(scores) for _ in question.scored] for question in questions]


def losses_at(model: GPT, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states (N, C) and the tokens that followed (N,) -> losses (N,) in float64 and likeliest tokens (N,)."""
    losses, likeliest = [], []
    for part, wanted in zip(hidden.split(POSITIONS_AT_ONCE), targets.split(POSITIONS_AT_ONCE), strict=True):
        logits = model.logits(part)  # (N, V)
        losses.append(F.cross_entropy(logits, wanted, reduction="none"))
        likeliest.append(logits.argmax(dim=1))
    return torch.cat(losses).cpu().double().numpy(), torch.cat(likeliest).cpu().numpy()


def judge(task: TokenizedTask, index: int, question: Question, scores: list[Score], tokenizer: Decoder) -> dict:
    item = task[index]
    losses = [score.loss for score in scores]
    if not np.isfinite(losses).all():
        raise UserError(
            f"CORE {task.label}, item {index}: the model's losses are {losses}; its weights are broken. Train it again"
        )
    row = {
        "task": task.label,
        "index": index,
        "line": item.line,
        "prompt_sha256": item.prompt_sha256,
        "losses": [round(loss, 6) for loss in losses],
    }
    if task.kind == "language_modeling":
        said, wanted = scores[0].likeliest, question.scored[0]
        row |= {"prediction": tokenizer.decode(said.tolist()), "gold": tokenizer.decode(wanted.tolist())}
        row["correct"] = bool((said == wanted).all())
    else:
        prediction = losses.index(min(losses))  # of equals the first, as in nanochat
        row |= {"prediction": prediction, "gold": item.gold, "correct": prediction == item.gold}
    if question.was_cropped:
        row["cropped"] = True
    return row


def mean_centered(results: Mapping[str, dict], *, num_listed: int) -> dict:
    """CORE and its interval, if these are the results of all tasks that the bundle lists."""
    mean = sum(result["centered"] for result in results.values()) / len(results)
    if len(results) < num_listed:
        log.info("CORE: not given; %.4f is the mean of %d of the bundle's %d tasks", mean, len(results), num_listed)
        return {"core": None, "interval": None}
    low, high = mean_interval(
        [result["centered"] for result in results.values()], [result["centered_interval"] for result in results.values()]
    )
    log.info("CORE: %.4f (95 %%: %.4f to %.4f)", mean, low, high)
    return {"core": mean, "interval": [low, high]}


def summarise(task: TokenizedTask, rows: list[dict]) -> dict:
    num_correct = sum(row["correct"] for row in rows)
    accuracy, interval = num_correct / len(rows), wilson_interval(num_correct, len(rows))
    return {
        "type": task.kind,
        "num_fewshot": task.num_examples,
        "num_fewshot_asked": task.num_fewshot,
        "num_items": len(rows),
        "num_available": task.num_available,
        "accuracy": accuracy,
        "interval": list(interval),
        "baseline": task.baseline,
        "centered": centered(accuracy, task.baseline),
        "centered_interval": list(centered_interval(interval, task.baseline)),
        "num_cropped": sum("cropped" in row for row in rows),
    }
