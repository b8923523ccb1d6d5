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
from nanochat.chat_eval import letter_id
from nanochat.conversations import build_mixture
from nanochat.dataloader import Loader, open_rows
from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.gpt import GPT, GPTConfig
from nanochat.manifest import Artefact
from nanochat.sandbox import require
from nanochat.tokenizer import Tokenizer

log = logging.getLogger("nanochat")

SAMPLED = 8  # items of a task from which its size is estimated, spread over it
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
    specification: Mapping[str, Any], files: Mapping[str, Path], tokenizer: Tokenizer
) -> dict[str, tuple[int, float, float]]:
    """Task -> items, tokens of a question, tokens of a reference answer (0 where a letter is the answer)."""
    if "humaneval" in specification["tasks"]:
        look_at_sandbox(specification["sandbox"])
    found = {}
    letters: dict[str, int] = {}
    for name in specification["tasks"]:
        rows = specification["spelling_items"] if name == "spelling_bee" else None
        task = tasks.build(name, split="test", files=files, rows=rows)
        if len(task) < 1:
            raise UserError(f"chat task {name}: has no items")
        questions, answers = [], []
        for conversation in (task[index] for index in spread(len(task))):
            prompt = len(tokenizer.render_prompt(conversation))
            questions.append(prompt)
            if task.kind == "choice":
                for letter in conversation["letters"]:
                    letter_id(tokenizer, letter, letters)
                answers.append(0)
            else:
                answers.append(max(1, len(tokenizer.render_conversation(conversation)[0]) - prompt))
        found[name] = (len(task), sum(questions) / len(questions), sum(answers) / len(answers))
    return found


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
