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
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol

import numpy as np
import torch

from nanochat.accuracy import centered, wilson_interval
from nanochat.batching import batches_by_tokens, default_batch_tokens, hidden_at
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

PROMPTS_AT_ONCE = 1_024  # rendered and sorted together; bounds the memory
WEIGHED_ITEMS = 8  # of a task, to tell how much text it is

Poll = Callable[[float], None]  # called before each batch with the share that is done; may raise


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
    parts: Parts | None = None,
) -> tuple[dict, list[dict]]:
    """Evaluate a chat model on tasks by name; returns (results, answers).

    results: {"tasks": {name: {"kind", "num_items", "num_available", "accuracy", "baseline", "interval" (Wilson, 95 %),
    "num_cropped"}}, "chatcore": {"five", "six"}}. `max_per_task` keeps the first items, as nanochat does;
    num_items says how many.

    answers: a row an item: {"task", "index", "prompt_sha256", "correct"} and for a choice {"logprobs" (of the letters),
    "prediction", "gold"}, for a generated answer {"answer", "num_tokens", "is_complete" (it ended by itself)}.

    `num_workers` answers are checked at a time. `parts` are the processes that split the items, the tasks that an earlier
    attempt finished, and who may ask for a stop.
    """
    parts = parts or Parts(Ranks())
    engine = Engine(model, tokenizer)
    num_items = {name: count_items(name, task, max_per_task) for name, task in tasks.items()}
    parts.expect({name: weigh(task, num_items[name], max_new_tokens) for name, task in tasks.items()})
    sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k}
    results, answers = {}, []
    for number, (name, task) in enumerate(tasks.items(), start=1):
        indices = range(parts.ranks.rank, num_items[name], parts.ranks.world_size)
        if task.kind == "choice":
            share = partial(evaluate_choices, engine, name, task, indices, batch_tokens=batch_tokens, poll=parts.poll)
        else:
            share = partial(
                write_and_check, engine, name, task, indices, seed=seed, num_workers=num_workers, poll=parts.poll, **sampling
            )
        rows = parts.rows(name, share)
        results[name] = summarise(task, rows)
        answers += rows
        low, high = results[name]["interval"]
        log.info("chat %d/%d %-14s accuracy %.4f (95 %%: %.4f to %.4f), %d of %d items, %s", number, len(tasks), name,
                 results[name]["accuracy"], low, high, len(rows), len(task), parts.took(name))  # fmt: skip
    return {"tasks": results, "chatcore": chatcore(results)}, answers


def count_items(name: str, task: Task, max_per_task: int | None) -> int:
    if task.kind not in ("choice", "generative"):
        raise UserError(f"chat task {name} has nothing to evaluate: it is there to train on")
    num_items = len(task) if max_per_task is None else min(len(task), max_per_task)
    if num_items < 1:
        raise UserError(f"chat task {name}: no item to evaluate (the task has {len(task)}, max_per_task is {max_per_task})")
    return num_items


def weigh(task: Task, num_items: int, max_new_tokens: int) -> Work:
    """What the time of a task is in proportion to: text to read, or tokens to write."""
    if task.kind == "generative":
        return Work("generative", num_items * max_new_tokens)
    some = range(min(WEIGHED_ITEMS, num_items))
    return Work("choice", sum(len(str(task[index])) for index in some) / len(some) * num_items)


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


def evaluate_choices(
    engine: Engine, name: str, task: Task, indices: Sequence[int], *, batch_tokens: int | None, poll: Poll
) -> list[dict]:
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
        logprobs = letter_logprobs(
            engine, [tokens for tokens, _ in prompts], allowed, progress, poll, batch_tokens=batch_tokens
        )
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
    engine: Engine,
    prompts: Sequence[list[int]],
    allowed: Sequence[list[int]],
    progress: Progress,
    poll: Poll,
    *,
    batch_tokens: int,
) -> list[np.ndarray]:
    """Log-probabilities of the allowed next tokens after each prompt, among these tokens; only that position is projected."""
    found: dict[int, np.ndarray] = {}
    for batch in batches_by_tokens([len(prompt) for prompt in prompts], batch_tokens):
        poll(progress.done / progress.total)
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


def write_and_check(
    engine: Engine, name: str, task: Task, indices: Sequence[int], *, num_workers: int | None, poll: Poll, **sampling
) -> list[dict]:
    """One row an item: the answer that the engine wrote, and whether it is right."""
    rows = generate_answers(engine, name, task, indices, poll=poll, **sampling)
    check_answers(task, rows, num_workers=num_workers, poll=poll)
    return rows


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
    poll: Poll,
) -> list[dict]:
    """One row an item with its generated answer, not yet checked."""
    prompts = {index: render(engine, task[index], room=max_new_tokens) for index in indices}
    # in the order in which the engine would take them: its batches stay what they are, and there is time to ask between two
    longest_first = sorted(indices, key=lambda index: -len(prompts[index][0]))
    answers: dict[int, list[int]] = {}
    for first in range(0, len(longest_first), engine.max_rows):
        poll(first / len(longest_first))
        keys = longest_first[first : first + engine.max_rows]
        written = engine.generate_batch(
            [prompts[index][0] for index in keys],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            seed=f"{seed}/{name}",
            keys=keys,
        )
        answers |= zip(keys, written, strict=True)
    rows = []
    for index, (tokens, was_cropped) in prompts.items():
        row = answer_row(name, index, tokens, was_cropped)
        row["answer"] = engine.tokenizer.decode(answers[index])
        row["num_tokens"] = len(answers[index])
        row["is_complete"] = len(answers[index]) < min(max_new_tokens, engine.limit + 1 - len(tokens))
        rows.append(row)
    return rows


def check_answers(task: Task, rows: list[dict], *, num_workers: int | None, poll: Poll) -> None:
    """Judge each answer and note it in its row. In threads: a task that runs code waits for a process of its own."""
    with ThreadPoolExecutor(num_workers or os.cpu_count()) as pool:
        verdicts = [pool.submit(task.evaluate, task[row["index"]], row["answer"]) for row in rows]
        try:
            for row, verdict in zip(rows, verdicts, strict=True):
                poll(1.0)
                row["correct"] = bool(verdict.result())
        finally:
            pool.shutdown(cancel_futures=True)  # after a stop, those that have not begun are not waited for


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
