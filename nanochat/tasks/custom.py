"""Conversations of one's own, from a JSON-lines file: each line a list of messages, or {"messages": [...]}.

    [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello! How can I help?"}]

A system message may come first; then user and assistant alternate. The whole file is checked at once, so that a mistake
in its last line is reported in the first second. Half characters (lone surrogates: "\\ud83d" without its other half) are read
as U+FFFD, counted, and the count stands in the record of the mixture.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from nanochat import jsonl
from nanochat.errors import UserError
from nanochat.tasks.common import ROW_ORDER_SEED, Conversation, Files, Task, check_messages, find_files, num_rows_to_take
from nanochat.tokenizer import clean_text

log = logging.getLogger("nanochat")


class Custom(Task):
    """Reads `file`, a path, or `source`, a key of the catalogue."""

    def __init__(
        self,
        name: str,
        *,
        split: str,
        files: Files,
        rows: int | None = None,
        seed: int = ROW_ORDER_SEED,
        file: str | Path | None = None,
        source: str | None = None,
    ):
        super().__init__(name, split)
        match file, source:
            case None, str():
                paths = find_files(files, source, task=self)
            case str() | Path(), None:
                paths = [Path(file)]
            case _:
                raise UserError(f"Task {self}: give either file (a path) or source (a key of the catalogue)")
        conversations = []
        for path in paths:
            read, num_replaced = read_conversations(path)
            conversations += read
            if num_replaced:
                log.warning(f"{path}: {num_replaced:,} half characters (lone surrogates) were read as U+FFFD")
                self.oddities["replaced_characters"] = self.oddities.get("replaced_characters", 0) + num_replaced
        order = np.random.default_rng(seed).permutation(len(conversations))
        self.conversations = [conversations[i] for i in order[: num_rows_to_take(len(order), rows, task=self)]]

    def __len__(self) -> int:
        return len(self.conversations)

    def conversation(self, index: int) -> Conversation:
        return self.conversations[index]


def read_conversations(path: Path) -> tuple[list[Conversation], int]:
    """All conversations of the file, and how many lone surrogates were replaced. UserError names the file and the line."""
    conversations, num_replaced = [], 0
    for number, line in jsonl.read_lines(path, "the conversations"):
        try:
            content = jsonl.parse(line)
            messages = check_messages(content.get("messages") if isinstance(content, dict) else content)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}") from error
        cleaned, replaced = clean(messages)
        conversations.append({"messages": cleaned})
        num_replaced += replaced
    if not conversations:
        raise UserError(f"{path}: no conversations in this file")
    return conversations, num_replaced


def clean(value: Any) -> tuple[Any, int]:
    """The same messages, parts and texts with U+FFFD for each lone surrogate, and how many there were."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list):
        pairs = [clean(item) for item in value]
        return [item for item, _ in pairs], sum(count for _, count in pairs)
    cleaned = {key: clean(item) for key, item in value.items()}
    return {key: item for key, (item, _) in cleaned.items()}, sum(count for _, count in cleaned.values())
