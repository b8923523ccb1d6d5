"""Score a chat model on tasks: choices by the logits of their letters, open answers by generating them and then checking each.

    choice       the prompt ends where the answer begins; the likeliest of the letters A, B, C, ... is the answer
    generative   the engine writes the answer (many prompts a batch), then the task checks it; code runs in the task's sandbox

ChatCORE is the mean of (accuracy - baseline) / (1 - baseline): over five tasks as on nanochat's published cards, or over six,
with the spelling. They are different numbers, so both are given, each only where all its tasks were evaluated.

Generating and checking are separate steps: every answer exists before the first one is judged, and every answer is returned.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch

from nanochat.accuracy import centered, wilson_interval
from nanochat.batching import batches_by_tokens, default_batch_tokens, hidden_at
from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.gpt import GPT
from nanochat.progress import Progress
from nanochat.tokenizer import Tokenizer

log = logging.getLogger("nanochat")

CHATCORE_FIVE = ("arc_easy", "arc_challenge", "mmlu", "gsm8k", "humaneval")
CHATCORE_SIX = (*CHATCORE_FIVE, "spelling_bee")

PROMPTS_AT_ONCE = 1_024  # rendered and sorted together; bounds the memory

Gather = Callable[[list[dict]], list[list[dict]]]


class Task(Protocol):
    """What this module needs of a task (`nanochat.tasks`)."""

    kind: str | None  # "choice" | "generative"
    baseline: float

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> dict: ...
    def evaluate(self, conversation: dict, answer: str) -> bool: ...


def evaluate_chat(
    model: GPT,
    tokenizer: Tokenizer,
    tasks: Mapping[str, Task],
    *,
    max_per_task: int | None = None,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    top_k: int | None = 50,
    seed: int = 0,
    batch_tokens: int | None = None,
    num_workers: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    gather: Gather | None = None,
) -> tuple[dict, list[dict]]:
    """Evaluate a chat model on tasks by name; returns (results, answers).

    results: {"tasks": {name: {"kind", "num_items", "num_available", "accuracy", "baseline", "interval" (Wilson, 95 %),
    "num_cropped"}}, "chatcore": {"five", "six"}}. `max_per_task` keeps the first items, as nanochat does;
    num_items says how many.

    answers: a row an item: {"task", "index", "prompt_sha256", "correct"} and for a choice {"logprobs" (of the letters),
    "prediction", "gold"}, for a generated answer {"answer", "num_tokens", "is_complete" (it ended by itself)}.

    `num_workers` answers are checked at a time. Several processes split the items: each passes its rank, and `gather`, which
    returns the lists of all ranks to every rank (`Ranks.gather_objects`).
    """
    engine = Engine(model, tokenizer)
    results, answers = {}, []
    for number, (name, task) in enumerate(tasks.items(), start=1):
        started = time.monotonic()
        num_items = len(task) if max_per_task is None else min(len(task), max_per_task)
        if num_items < 1:
            raise UserError(f"chat task {name}: no item to evaluate (the task has {len(task)}, max_per_task is {max_per_task})")
        indices = range(rank, num_items, world_size)
        if task.kind == "choice":
            rows = evaluate_choices(engine, name, task, indices, batch_tokens=batch_tokens)
        elif task.kind == "generative":
            rows = generate_answers(
                engine, name, task, indices, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, seed=seed
            )
            check_answers(task, rows, num_workers=num_workers)
        else:
            raise UserError(f"chat task {name} has nothing to evaluate: it is there to train on")
        if gather is not None:
            rows = sorted((row for part in gather(rows) for row in part), key=lambda row: row["index"])
        results[name] = summarise(task, rows)
        answers += rows
        low, high = results[name]["interval"]
        log.info("chat %d/%d %-14s accuracy %.4f (95 %%: %.4f to %.4f), %d of %d items, %.1f s", number, len(tasks), name,
                 results[name]["accuracy"], low, high, len(rows), len(task), time.monotonic() - started)  # fmt: skip
    return {"tasks": results, "chatcore": chatcore(results)}, answers


def chatcore(results: Mapping[str, dict]) -> dict[str, float | None]:
    """Both ChatCORE numbers; None where one of its tasks was not evaluated."""
    return {"five": mean_centered(results, CHATCORE_FIVE), "six": mean_centered(results, CHATCORE_SIX)}


def mean_centered(results: Mapping[str, dict], names: Sequence[str]) -> float | None:
    if not all(name in results for name in names):
        return None
    return sum(centered(results[name]["accuracy"], results[name]["baseline"]) for name in names) / len(names)


def summarise(task: Task, rows: list[dict]) -> dict:
    num_correct = sum(row["correct"] for row in rows)
    return {
        "kind": task.kind,
        "num_items": len(rows),
        "num_available": len(task),
        "accuracy": num_correct / len(rows),
        "baseline": task.baseline,
        "interval": list(wilson_interval(num_correct, len(rows))),
        "num_cropped": sum("cropped" in row for row in rows),
    }


# -- choices -----------------------------------------------------------------------------------------------------------------


def evaluate_choices(engine: Engine, name: str, task: Task, indices: Sequence[int], *, batch_tokens: int | None) -> list[dict]:
    """One row an item: the letter whose token has the highest logit right after the prompt."""
    rows: list[dict] = []
    letter_ids: dict[str, int] = {}
    progress = Progress(f"chat {name}", len(indices), "answers")
    for first in range(0, len(indices), PROMPTS_AT_ONCE):
        part = indices[first : first + PROMPTS_AT_ONCE]
        conversations = [task[index] for index in part]
        prompts = [render(engine, conversation, room=0) for conversation in conversations]
        allowed = [[letter_id(engine.tokenizer, letter, letter_ids) for letter in c["letters"]] for c in conversations]
        batch_tokens = batch_tokens or default_batch_tokens(engine.device)
        logprobs = letter_logprobs(engine, [tokens for tokens, _ in prompts], allowed, progress, batch_tokens=batch_tokens)
        for index, conversation, (tokens, was_cropped), row_logprobs in zip(
            part, conversations, prompts, logprobs, strict=True
        ):
            prediction = conversation["letters"][int(np.argmax(row_logprobs))]
            row = answer_row(name, index, tokens, was_cropped)
            row["logprobs"] = [round(float(logprob), 6) for logprob in row_logprobs]
            row["prediction"] = prediction
            row["gold"] = conversation["messages"][-1]["content"]
            row["correct"] = bool(task.evaluate(conversation, prediction))
            rows.append(row)
    return rows


@torch.inference_mode()
def letter_logprobs(
    engine: Engine, prompts: Sequence[list[int]], allowed: Sequence[list[int]], progress: Progress, *, batch_tokens: int
) -> list[np.ndarray]:
    """Log-probabilities of the allowed next tokens after each prompt, among these tokens; only that position is projected."""
    found: dict[int, np.ndarray] = {}
    for batch in batches_by_tokens([len(prompt) for prompt in prompts], batch_tokens):
        chosen = [prompts[index] for index in batch]
        hidden = hidden_at(engine.model, chosen, [[len(prompt) - 1] for prompt in chosen], pad_id=engine.tokenizer.bos_id)
        for index, logits in zip(batch, engine.model.logits(hidden), strict=True):  # (V,) each
            found[index] = logits[allowed[index]].log_softmax(dim=0).cpu().numpy()
            if not np.isfinite(found[index]).all():
                raise UserError("the model's logits are not finite numbers; its weights are broken. Train it again")
        progress.add(len(batch))
    return [found[index] for index in range(len(prompts))]


def letter_id(tokenizer: Tokenizer, letter: str, known: dict[str, int]) -> int:
    if letter not in known:
        tokens = tokenizer.encode(letter)
        if len(tokens) != 1:
            raise UserError(
                f"the choice {letter!r} is {len(tokens)} tokens for this tokenizer; choices are compared by one token each"
            )
        known[letter] = tokens[0]
    return known[letter]


# -- open answers ------------------------------------------------------------------------------------------------------------


def generate_answers(
    engine: Engine,
    name: str,
    task: Task,
    indices: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
) -> list[dict]:
    """One row an item with its generated answer, not yet checked."""
    prompts = [render(engine, task[index], room=max_new_tokens) for index in indices]
    answers = engine.generate_batch(
        [tokens for tokens, _ in prompts],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        seed=f"{seed}/{name}",
        keys=indices,
    )
    rows = []
    for index, (tokens, was_cropped), answer in zip(indices, prompts, answers, strict=True):
        row = answer_row(name, index, tokens, was_cropped)
        row["answer"] = engine.tokenizer.decode(answer)
        row["num_tokens"] = len(answer)
        row["is_complete"] = len(answer) < min(max_new_tokens, engine.limit + 1 - len(tokens))
        rows.append(row)
    return rows


def check_answers(task: Task, rows: list[dict], *, num_workers: int | None) -> None:
    """Judge each answer and note it in its row. In threads: a task that runs code waits for a process of its own."""
    with ThreadPoolExecutor(num_workers or os.cpu_count()) as pool:
        verdicts = list(pool.map(lambda row: task.evaluate(task[row["index"]], row["answer"]), rows))
    for row, verdict in zip(rows, verdicts, strict=True):
        row["correct"] = bool(verdict)


# -- prompts and rows --------------------------------------------------------------------------------------------------------


def render(engine: Engine, conversation: dict, *, room: int) -> tuple[list[int], bool]:
    """The tokens up to where the answer begins, and whether they had to be cropped to leave `room` for it.

    A conversation longer than the model can read keeps <|bos|> and its end, where the question is. The prompt gives up
    half of the model's positions at most.
    """
    tokens = engine.tokenizer.render_prompt(conversation)
    most = max(engine.limit - room, engine.limit // 2)
    if len(tokens) <= most:
        return tokens, False
    return [tokens[0], *tokens[len(tokens) - most + 1 :]], True


def answer_row(name: str, index: int, tokens: Sequence[int], was_cropped: bool) -> dict:
    row = {"task": name, "index": index, "prompt_sha256": hashlib.sha256(repr(list(tokens)).encode()).hexdigest()[:16]}
    return row | {"cropped": True} if was_cropped else row
