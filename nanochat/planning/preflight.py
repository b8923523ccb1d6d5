"""Open everything that a run will read, once, with the code that will read it, before a GPU waits for it.

Each function takes what its stage is told and returns what it found: numbers for the manifest, which do not vary, and what the
work amounts to, for the prediction. Whatever is missing or malformed is a UserError that names it.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nanochat import core_tokens, tasks
from nanochat.batching import context_limit
from nanochat.chat_eval import count_items, read_questions
from nanochat.conversations import build_mixture
from nanochat.dataloader import Loader, open_rows
from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.gpt import GPT, GPTConfig
from nanochat.manifest import Artefact
from nanochat.sandbox import require
from nanochat.tokenizer import Tokenizer

log = logging.getLogger("nanochat")

SAMPLED = 8  # answers of a task from which their size is estimated, spread over it
PROBE = "The quick brown fox: 12 + 30 = 42.\n"


def open_tokenizer(artefact: Artefact, *, vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer.load(artefact.path("tokenizer.json", verify=False))
    if tokenizer.vocab_size != vocab_size:
        raise UserError(f"{artefact.manifest}: has {tokenizer.vocab_size:,} tokens, and the model is to have {vocab_size:,}")
    if tokenizer.decode(tokenizer.encode(PROBE)) != PROBE:
        raise UserError(f"{artefact.manifest}: does not give a text back as it was")
    return tokenizer


def open_tokens(artefact: Artefact, *, batch_tokens: int, vocab_size: int) -> dict[str, int]:
    """Rows of both splits; the first batch of the training is put together as the training will do it."""
    found = {}
    for split in ("train", "validation"):
        packed = open_rows(artefact, split, verify=False)
        if split == "train":
            x, _ = Loader(packed, max(1, batch_tokens // packed.sequence_len), seed=0).batch(0)
        else:
            x, _ = packed.inputs_and_targets(np.arange(1))
        if (largest := int(x.max())) >= vocab_size:
            raise UserError(f"{artefact.manifest}: holds token {largest:,}, and the model knows {vocab_size:,}")
        found[split] = len(packed)
    return found


def open_mixture(specification: Mapping[str, Any], files: Mapping[str, Path], tokenizer: Tokenizer) -> dict[str, int]:
    """Conversations of the mixture and of its validation; the first ones of each are rendered."""
    found = {}
    for split in ("mixture", "validation"):
        mixture = build_mixture(
            specification[split],
            files=files,
            identity=specification.get("identity"),
            seed=specification["seed"],
            mixture_rows=specification.get("mixture_rows") if split == "mixture" else None,
        )
        for task in mixture.tasks:
            tokenizer.render_conversation(task[0], max_tokens=specification["sequence_len"] + 1)
        found[split] = len(mixture)
    return found


def open_core(artefact: Artefact, *, vocab_size: int) -> dict[str, int]:
    """Items of each task."""
    found = {}
    for task in core_tokens.load(artefact, verify=False).tasks:
        if (largest := int(task.tokens.max())) >= vocab_size:
            raise UserError(f"{artefact.manifest}: holds token {largest:,}, and the model knows {vocab_size:,}")
        found[task.label] = len(task)
    return found


def open_chat_tasks(
    specification: Mapping[str, Any], files: Mapping[str, Path], tokenizer: Tokenizer, *, model: Mapping[str, Any]
) -> dict[str, tuple[int, float, float]]:
    """Task -> items, tokens of a question, tokens of a reference answer (0 where a letter is the answer).

    Every question is read, of the answers a few.
    """
    if "humaneval" in specification["tasks"]:
        look_at_sandbox(specification["sandbox"])
    rows = {"spelling_bee": specification["spelling_items"]}  # made, not read, so somebody must say how many
    chosen = {name: tasks.build(name, split="test", files=files, rows=rows.get(name)) for name in specification["tasks"]}
    indices = {name: range(count_items(name, task, None)) for name, task in chosen.items()}
    limit = context_limit(GPTConfig(**model))
    questions = read_questions(tokenizer, chosen, indices, limit=limit, max_new_tokens=0)
    found = {}
    for name, task in chosen.items():
        size = sum(len(question.tokens) for question in questions[name]) / len(task)
        found[name] = (len(task), size, 0 if task.kind == "choice" else answer_tokens(tokenizer, task))
    return found


def answer_tokens(tokenizer: Tokenizer, task: tasks.Task) -> float:
    """Of a reference answer; about, from a few of them."""
    some = [task[index] for index in spread(len(task))]
    lengths = [len(tokenizer.render_conversation(one)[0]) - len(tokenizer.render_prompt(one)) for one in some]
    return sum(max(1, length) for length in lengths) / len(lengths)


def look_at_sandbox(tier: str) -> None:
    """A warning and no error: chat_eval may run on another machine, and refuses there by itself."""
    try:
        require(tier)
    except UserError as error:
        log.warning(f"preflight  on this machine, chat_eval would refuse: {error}")


def open_engine(model: Mapping[str, Any], tokenizer: Tokenizer) -> None:
    """Whether model and tokenizer go together, with a model of one narrow block in place of the real one."""
    head = 2 * model["n_kv_head"] * (model["n_head"] // model["n_kv_head"])
    small = {**model, "n_layer": 1, "n_embd": head, "sequence_len": min(32, model["sequence_len"])}
    Engine(GPT(GPTConfig(**small)).init_weights(0).eval(), tokenizer).complete([PROBE], max_new_tokens=2)


def spread(number: int) -> list[int]:
    """A few indices below `number`, evenly spread.  16 -> 0, 2, 4, ... 14"""
    count = min(SAMPLED, number)
    return [index * number // count for index in range(count)]
