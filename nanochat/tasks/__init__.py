"""The tasks that a chat model is trained on and scored with, by name.

    task = build("gsm8k", split="train", files={"gsm8k/train": Path("train.parquet")})
    len(task), task[0]      ->  7473, {"messages": [{"role": "user", ...}, {"role": "assistant", ...}]}
    task.evaluate(task[0], "... #### 72")   ->  True

To add one: a file here with a class like those of arc.py, and a line in the table below.
"""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from nanochat.errors import UserError
from nanochat.tasks.arc import ARC
from nanochat.tasks.common import ROW_ORDER_SEED, Conversation, Files, Task, multiple_choice_prompt
from nanochat.tasks.custom import Custom
from nanochat.tasks.gsm8k import GSM8K
from nanochat.tasks.humaneval import HumanEval
from nanochat.tasks.identity import Identity
from nanochat.tasks.mmlu import MMLU
from nanochat.tasks.open_questions import OpenQuestions
from nanochat.tasks.smoltalk import SmolTalk
from nanochat.tasks.spelling import SimpleSpelling, SpellingBee

__all__ = ["TASKS", "Conversation", "Files", "Task", "build", "multiple_choice_prompt"]

TASKS: dict[str, Callable[..., Task]] = {
    "smoltalk": SmolTalk,
    "mmlu": MMLU,
    "gsm8k": GSM8K,
    "arc_easy": ARC,
    "arc_challenge": ARC,
    "humaneval": HumanEval,
    "simple_spelling": SimpleSpelling,
    "spelling_bee": SpellingBee,
    "open_questions": OpenQuestions,
    "identity": Identity,
    "custom": Custom,
}


def build(name: str, *, split: str, files: Files, rows: int | None = None, seed: int = ROW_ORDER_SEED, **options: Any) -> Task:
    """The task of this name.

    files    paths by catalogue key: "<name>/<split>" for tables, "words" for the spellings, `source` for custom
    rows     only the first so many of the shuffled rows; of the spellings, how many to make
    seed     of the order of the rows, or of what is made. The default gives nanochat's order.
    options  identity: `identity`, the section of the configuration; custom: `file` (a path) or `source` (a catalogue key)
    """
    if name not in TASKS:
        near = get_close_matches(name, TASKS, n=1)
        raise UserError(
            f"There is no task {name}. " + (f"Did you mean {near[0]}?" if near else f"There are {', '.join(TASKS)}.")
        )
    return TASKS[name](name, split=split, files=files, rows=rows, seed=seed, **options)
