"""Score a chat model on tasks: choices by the logits of their letters, open answers by writing them and then checking each.

    choice       the prompt ends where the answer begins; the likeliest of the letters A, B, C, ... is the answer
    generative   the engine writes the answer (many prompts a batch), then the task checks it; code runs in the task's sandbox

ChatCORE is the mean of (accuracy - baseline) / (1 - baseline): over five tasks as on nanochat's published cards, or over six,
with the spelling. They are different numbers, so both are given, each only where all its tasks were evaluated.

All questions of all tasks are read before the first is answered: what is wrong with one is told then. Writing and checking are
separate steps: every answer of a task exists, and is kept, before the first one is judged.

Covered: an item that is malformed, and letters that the tokenizer cannot write as one token, are named and counted at the
    start. A conversation longer than the model reads keeps <|bos|> and its end, and is counted.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Protocol

import numpy as np
import torch

from nanochat.accuracy import centered, centered_interval, mean_interval, mean_wilson, pass_at_k
from nanochat.batching import Tree, batches_by_tokens, default_batch_tokens, hidden_at
from nanochat.distributed import Ranks
from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.gpt import GPT
from nanochat.partial import Parts, Work
from nanochat.progress import Progress
from nanochat.tokenizer import Tokenizer

log = logging.getLogger("nanochat")

CHATCORE_FIVE = ("arc_easy", "arc_challenge", "mmlu", "gsm8k", "humaneval")
CHATCORE_SIX = (*CHATCORE_FIVE, "spelling_bee")

PASS_AT = (1, 10, 100)  # the k of pass@k, as far as there are so many samples
TOLD_PROBLEMS = 5  # of each task

Poll = Callable[[float], None]  # called before each batch with the share that is done; may raise


class Task(Protocol):
    """What this module needs of a task (`nanochat.tasks`)."""

    kind: str | None  # "choice" | "generative"
    baseline: float

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> dict: ...
    def evaluate(self, conversation: dict, answer: str) -> bool: ...


@dataclass(frozen=True)
class Sampling:
    """How answers in words are written."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_k: int | None = 50
    num_samples: int = 1  # answers to each question
    seed: int = 0


@dataclass(frozen=True)
class Question:
    """An item as the model reads it."""

    index: int
    tokens: Sequence[int]
    was_cropped: bool
    letter_ids: Sequence[int] = ()  # of a choice: the tokens to choose from


def evaluate_chat(
    model: GPT,
    tokenizer: Tokenizer,
    tasks: Mapping[str, Task],
    *,
    sampling: Sampling = Sampling(),
    max_per_task: int | None = None,
    batch_tokens: int | None = None,
    num_workers: int | None = None,
    parts: Parts | None = None,
) -> tuple[dict, list[dict]]:
    """Evaluate a chat model on tasks by name; returns (results, answers).

    results: {"tasks": {name: {"kind", "num_items", "num_available", "accuracy", "baseline", "interval" (95 %), "num_cropped"}},
    "chatcore": {"five", "six", "five_interval", "six_interval"}}. `max_per_task` keeps the first items, as nanochat does;
    num_items says how many. With several samples, each question that is answered in words is answered so many times; its task
    has "num_samples" and "pass_at": {"1", "10", ...} (arXiv 2107.03374), and pass@1 is its accuracy.

    answers: a row an answer: {"task", "index", "prompt_sha256", "correct"} and for a choice {"logprobs" (of the letters),
    "prediction", "gold"}, for a written one {"answer", "num_tokens", "is_complete" (it ended by itself), "sample"}.

    `num_workers` answers are checked at a time. `parts` are the processes that split the items, the tasks that an earlier
    attempt finished, and who may ask for a stop. Raises UserError, before anything is answered, for items that cannot be read.
    """
    parts = parts or Parts(Ranks())
    engine = Engine(model, tokenizer)
    num_items = {name: count_items(name, task, max_per_task) for name, task in tasks.items()}
    indices = {name: range(parts.ranks.rank, count, parts.ranks.world_size) for name, count in num_items.items()}
    questions = read_questions(tokenizer, tasks, indices, limit=engine.limit, max_new_tokens=sampling.max_new_tokens)
    parts.expect(weigh(tasks, questions, num_items, sampling))
    results, answers = {}, []
    for number, (name, task) in enumerate(tasks.items(), start=1):
        if task.kind == "choice":
            choose = partial(choose_letters, engine, name, task, questions[name], batch_tokens=batch_tokens, poll=parts.poll)
            rows = parts.rows(name, choose)
        else:
            write = partial(write_answers, engine, name, questions[name], sampling, poll=parts.poll)
            written = parts.rows(written_part(name), write)
            mine = [row for row in written if row["index"] in indices[name]]
            rows = parts.rows(name, partial(check_answers, task, mine, num_workers=num_workers, poll=parts.poll))
        results[name] = summarise(task, rows)
        answers += rows
        low, high = results[name]["interval"]
        log.info("chat %d/%d %-14s accuracy %.4f (95 %%: %.4f to %.4f), %d of %d items, %s", number, len(tasks), name,
                 results[name]["accuracy"], low, high, num_items[name], len(task), parts.took(name))  # fmt: skip
    return {"tasks": results, "chatcore": chatcore(results)}, answers


def written_part(name: str) -> str:
    """What the answers of a task are kept as, before they are checked."""
    return f"{name}, answers"


def count_parts(tasks: Mapping[str, Task]) -> int:
    """Of an evaluation of these tasks: a written answer is kept twice, before and after it is checked."""
    return sum(2 if task.kind == "generative" else 1 for task in tasks.values())


def count_items(name: str, task: Task, max_per_task: int | None) -> int:
    if task.kind not in ("choice", "generative"):
        raise UserError(f"chat task {name} has nothing to evaluate: it is there to train on")
    num_items = len(task) if max_per_task is None else min(len(task), max_per_task)
    if num_items < 1:
        raise UserError(f"chat task {name}: no item to evaluate (the task has {len(task)}, max_per_task is {max_per_task})")
    return num_items


def weigh(
    tasks: Mapping[str, Task], questions: Mapping[str, Sequence[Question]], num_items: Mapping[str, int], sampling: Sampling
) -> dict[str, Work]:
    """What the time of each part is in proportion to: tokens to read, tokens to write, answers to check."""
    works = {}
    for name, task in tasks.items():
        if task.kind == "generative":
            works[written_part(name)] = Work("generative", num_items[name] * sampling.num_samples * sampling.max_new_tokens)
            works[name] = Work(f"checking {name}", num_items[name])
        else:
            mean = sum(len(question.tokens) for question in questions[name]) / max(1, len(questions[name]))
            works[name] = Work("choice", mean * num_items[name])
    return works


# -- results -----------------------------------------------------------------------------------------------------------------


def chatcore(results: Mapping[str, dict]) -> dict[str, float | list[float] | None]:
    """Both ChatCORE numbers with their intervals; None where one of its tasks was not evaluated."""
    (five, five_interval), (six, six_interval) = (mean_centered(results, names) for names in (CHATCORE_FIVE, CHATCORE_SIX))
    return {"five": five, "five_interval": five_interval, "six": six, "six_interval": six_interval}


def mean_centered(results: Mapping[str, dict], names: Sequence[str]) -> tuple[float | None, list[float] | None]:
    if not all(name in results for name in names):
        return None, None
    found = [results[name] for name in names]
    scores = [centered(result["accuracy"], result["baseline"]) for result in found]
    interval = mean_interval(scores, [centered_interval(result["interval"], result["baseline"]) for result in found])
    return sum(scores) / len(names), list(interval)


def summarise(task: Task, rows: list[dict]) -> dict:
    verdicts = [[row["correct"] for row in some] for _, some in groupby(rows, key=lambda row: row["index"])]
    num_samples, rates = len(verdicts[0]), [sum(some) / len(some) for some in verdicts]
    result = {
        "kind": task.kind,
        "num_items": len(verdicts),
        "num_available": len(task),
        "accuracy": sum(rates) / len(rates),
        "baseline": task.baseline,
        "interval": list(mean_wilson(rates)),
        "num_cropped": sum("cropped" in row for row in rows) // num_samples,
    }
    if num_samples > 1:
        ks = sorted({k for k in PASS_AT if k <= num_samples} | {num_samples})
        pass_at = {str(k): float(np.mean([pass_at_k(num_samples, sum(some), k) for some in verdicts])) for k in ks}
        result |= {"num_samples": num_samples, "pass_at": pass_at}
    return result


# -- questions ---------------------------------------------------------------------------------------------------------------


def read_questions(
    tokenizer: Tokenizer,
    tasks: Mapping[str, Task],
    indices: Mapping[str, Sequence[int]],
    *,
    limit: int,
    max_new_tokens: int,
) -> dict[str, list[Question]]:
    """All questions as tokens, for a model that reads `limit` of them.

    UserError names the first of those that cannot be read, and counts them all.
    """
    questions: dict[str, list[Question]] = {name: [] for name in tasks}
    problems: list[str] = []
    for name, task in tasks.items():
        found: list[str] = []
        letter_ids: dict[str, int] = {}
        for index in indices[name]:
            try:
                conversation = task[index]
                room = 0 if task.kind == "choice" else max_new_tokens
                tokens, was_cropped = render(tokenizer, conversation, limit=limit, room=room)
                letters = conversation["letters"] if task.kind == "choice" else []
                allowed = [letter_id(tokenizer, letter, letter_ids) for letter in letters]
                questions[name].append(Question(index, tokens, was_cropped, allowed))
            except UserError as error:
                found.append(f"{name}, item {index}: {error}")
        problems += found[:TOLD_PROBLEMS]
        if len(found) > TOLD_PROBLEMS:
            problems.append(f"{name}: {len(found)} of {len(indices[name])} items in all cannot be read")
    if problems:
        told = "\n  ".join(problems)
        raise UserError(f"the chat tasks have questions that cannot be read, so nothing is evaluated:\n  {told}")
    return questions


def render(tokenizer: Tokenizer, conversation: dict, *, limit: int, room: int) -> tuple[list[int], bool]:
    """The tokens up to where the answer begins, and whether they had to be cropped to leave `room` for it.

    A conversation longer than the model can read keeps <|bos|> and its end, where the question is. The prompt gives up
    half of the model's positions at most.
    """
    tokens = tokenizer.render_prompt(conversation)
    most = max(limit - room, limit // 2)
    if len(tokens) <= most:
        return tokens, False
    return [tokens[0], *tokens[len(tokens) - most + 1 :]], True


def letter_id(tokenizer: Tokenizer, letter: str, known: dict[str, int]) -> int:
    if letter not in known:
        tokens = tokenizer.encode(letter)
        if len(tokens) != 1:
            raise UserError(
                f"the choice {letter!r} is {len(tokens)} tokens for this tokenizer; choices are compared by one token each"
            )
        known[letter] = tokens[0]
    return known[letter]


def answer_row(name: str, question: Question) -> dict:
    sha256 = hashlib.sha256(repr(list(question.tokens)).encode()).hexdigest()[:16]
    row = {"task": name, "index": question.index, "prompt_sha256": sha256}
    return row | {"cropped": True} if question.was_cropped else row


# -- choices -----------------------------------------------------------------------------------------------------------------


def choose_letters(
    engine: Engine, name: str, task: Task, questions: Sequence[Question], *, batch_tokens: int | None, poll: Poll
) -> list[dict]:
    """One row an item: the letter whose token has the highest logit right after the prompt."""
    rows: list[dict] = []
    progress = Progress(f"chat {name}", len(questions), "answers")
    lengths = [len(question.tokens) for question in questions]
    for batch in batches_by_tokens(lengths, batch_tokens or default_batch_tokens(engine.device)):
        poll(progress.done / progress.total)
        chosen = [questions[place] for place in batch]
        for question, logprobs in zip(chosen, letter_logprobs(engine.model, chosen), strict=True):
            conversation, row = task[question.index], answer_row(name, question)
            row["logprobs"] = [round(float(logprob), 6) for logprob in logprobs]
            row["prediction"] = conversation["letters"][int(np.argmax(logprobs))]
            row["gold"] = conversation["messages"][-1]["content"]
            row["correct"] = bool(task.evaluate(conversation, row["prediction"]))
            rows.append(row)
        progress.add(len(batch))
    return rows


@torch.inference_mode()
def letter_logprobs(model: GPT, questions: Sequence[Question]) -> list[np.ndarray]:
    """Log-probabilities of each question's letters right after it, among these; only that position is projected."""
    asked = [((Tree(question.tokens),), np.array([len(question.tokens) - 1])) for question in questions]
    logits = model.logits(hidden_at(model, asked))  # (N, V)
    logprobs = [
        row[list(question.letter_ids)].log_softmax(dim=0).cpu().numpy() for question, row in zip(questions, logits, strict=True)
    ]
    if not all(np.isfinite(some).all() for some in logprobs):
        raise UserError("the model's logits are not finite numbers; its weights are broken. Train it again")
    return logprobs


# -- answers in words --------------------------------------------------------------------------------------------------------


def write_answers(
    engine: Engine,
    name: str,
    questions: Sequence[Question],
    sampling: Sampling,
    *,
    poll: Poll,
) -> list[dict]:
    """A row an answer, not yet checked."""
    asked = [(question, sample) for question in questions for sample in range(sampling.num_samples)]
    answers = engine.generate_batch(
        [question.tokens for question, _ in asked],
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        seed=f"{sampling.seed}/{name}",
        keys=[f"{question.index}/{sample}" if sample else question.index for question, sample in asked],
        poll=poll,
    )
    rows = []
    for (question, sample), tokens in zip(asked, answers, strict=True):
        row = answer_row(name, question) | ({"sample": sample} if sampling.num_samples > 1 else {})
        row["answer"] = engine.tokenizer.decode(tokens)
        row["num_tokens"] = len(tokens)
        row["is_complete"] = len(tokens) < min(sampling.max_new_tokens, engine.limit + 1 - len(question.tokens))
        rows.append(row)
    return rows


def check_answers(task: Task, rows: list[dict], *, num_workers: int | None, poll: Poll) -> list[dict]:
    """The rows with their verdicts. In threads: a task that runs code waits for a process of its own."""
    with ThreadPoolExecutor(num_workers or os.cpu_count()) as pool:
        verdicts = [pool.submit(task.evaluate, task[row["index"]], row["answer"]) for row in rows]
        try:
            checked: list[dict] = []
            for row, verdict in zip(rows, verdicts, strict=True):
                poll(len(checked) / len(rows))
                checked.append({**row, "correct": bool(verdict.result())})
            return checked
        finally:
            pool.shutdown(cancel_futures=True)  # after a stop, those that have not begun are not waited for
