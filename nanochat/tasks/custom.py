"""Conversations of one's own, from a JSON-lines file: each line a list of messages, or {"messages": [...]}.

    [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello! How can I help?"}]

A system message may come first; then user and assistant alternate. The whole file is checked at once, so that a mistake
in its last line is reported in the first second.
"""

import json
from pathlib import Path

import numpy as np

from nanochat.errors import UserError
from nanochat.tasks.common import ROW_ORDER_SEED, Conversation, Files, Task, check_messages, find_files, num_rows_to_take


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
        conversations = [conversation for path in paths for conversation in read_conversations(path)]
        order = np.random.default_rng(seed).permutation(len(conversations))
        self.conversations = [conversations[i] for i in order[: num_rows_to_take(len(order), rows, task=self)]]

    def __len__(self) -> int:
        return len(self.conversations)

    def conversation(self, index: int) -> Conversation:
        return self.conversations[index]


def read_conversations(path: Path) -> list[Conversation]:
    """All conversations of the file; blank lines are passed over. UserError names the file and the line."""
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: cannot read the conversations: {error.strerror}") from error
    conversations = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line.decode())
            messages = content.get("messages") if isinstance(content, dict) else content
            conversations.append({"messages": check_messages(messages)})
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not JSON: {error.msg} at column {error.colno}") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: {error}") from error
    if not conversations:
        raise UserError(f"{path}: no conversations in this file")
    return conversations
