"""What a task is: a sequence of conversations and, for most, a way to judge an answer. And what several tasks share.

A conversation is {"messages": [{"role", "content"}, ...]}; a choice task adds "letters", the answers to choose from.
Tasks never look for files: they are given {catalogue key: path}. Rows of parquet files are decoded one at a time, when
asked for, because all conversations of a large mixture do not fit into memory as Python objects.
"""

import logging
import re
import zlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nanochat.errors import UserError
from nanochat.jsonl import require_file
from nanochat.messages import check_conversation
from nanochat.text import listed, shown

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger("nanochat")

Conversation = dict[str, Any]
Files = Mapping[str, Path]

# nanochat shuffles every data set with this seed before it takes the first N rows; numpy's permutation is the one it uses
ROW_ORDER_SEED = 42
TEST_ONE_IN = 10


class Task(Sequence):
    """Conversations by number. `kind` says how an answer is judged: "choice", "generative", or None (not at all)."""

    kind: str | None = None
    baseline: float = 0.0  # accuracy of guessing

    def __init__(self, name: str, split: str):
        self.name = name
        self.split = split
        self.oddities: dict[str, int] = {}  # what was replaced or passed over in its files, counted for the record

    @abstractmethod
    def conversation(self, index: int) -> Conversation: ...

    def __getitem__(self, index):
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"{self}: no conversation {index}, there are {len(self)}")
        return self.conversation(int(position))

    def __str__(self) -> str:
        return f"{self.name}/{self.split}"

    def evaluate(self, conversation: Conversation, answer: str) -> bool:
        """Whether `answer` (a letter, or what the model wrote) is right. The conversation ends with the right answer."""
        raise UserError(f"{self} has no right answers: it is there to train on, not to evaluate")


class TableTask(Task):
    """A task whose items are the rows of a parquet file (or of several: a family), in an order shuffled by the seed.

    A subclass names its columns and makes a conversation of a row; a ValueError it raises is reported with file and row.
    """

    columns: tuple[str, ...]

    def __init__(self, name: str, *, split: str, files: Files, rows: int | None = None, seed: int = ROW_ORDER_SEED):
        super().__init__(name, split)
        self.paths = find_files(files, f"{name}/{split}", task=self)
        self.tables = [read_table(path, self.columns) for path in self.paths]
        self.starts = np.cumsum([0, *(table.num_rows for table in self.tables)])
        available = int(self.starts[-1])
        # the first rows of a file are no sample of it: the test of MMLU is sorted by subject
        order = np.random.default_rng(seed).permutation(available)
        self.order = order[: num_rows_to_take(available, rows, task=self)].astype(np.int32)

    @abstractmethod
    def from_row(self, row: dict[str, Any]) -> Conversation: ...

    def __len__(self) -> int:
        return len(self.order)

    def conversation(self, index: int) -> Conversation:
        part = int(np.searchsorted(self.starts, self.order[index], side="right")) - 1
        number = int(self.order[index] - self.starts[part])
        try:
            return self.from_row(self.tables[part].slice(number, 1).to_pylist()[0])
        except UnicodeDecodeError as error:
            raise UserError(f"{self.paths[part]}, row {number} ({self}): a text in it is not UTF-8") from error
        except ValueError as error:
            raise UserError(f"{self.paths[part]}, row {number} ({self}): {error}") from error


class ChoiceTask(TableTask):
    """Questions answered with one letter."""

    kind = "choice"
    baseline = 0.25

    def evaluate(self, conversation: Conversation, answer: str) -> bool:
        return answer == conversation["messages"][-1]["content"]


def exchange(question: str, answer: str | list[dict[str, str]]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def multiple_choice(question: str, choices: Sequence[str], letters: Sequence[str], answer: str) -> Conversation:
    for letter in letters:
        check_text(letter, "a label")
    if len(set(letters)) < len(letters):
        raise ValueError(f"a label is there twice: {listed(letters)}")
    if answer not in letters:
        raise ValueError(f"the answer {shown(answer)} is none of {listed(letters)}")
    if len(letters) < 2:
        raise ValueError("there is one choice; a question needs two or more")
    return {"messages": exchange(multiple_choice_prompt(question, choices, letters), answer), "letters": list(letters)}


def multiple_choice_prompt(question: str, choices: Sequence[str], letters: Sequence[str]) -> str:
    """nanochat's wording, to the letter: scores are comparable only with the same prompt.

    The letter comes after its choice, where small models bind the two better, and without a space before it: " A" and "A"
    are different tokens, and the answer is the second one.
    """
    lines = [f"- {check_text(choice, 'a choice')}={letter}\n" for choice, letter in zip(choices, letters, strict=True)]
    return f"Multiple Choice question: {question}\n{''.join(lines)}\nRespond only with the letter of the correct answer."


FINAL_NUMBER = re.compile(r"#### (-?[0-9.,]+)")


def final_number(text: str) -> Decimal | None:
    """The number behind the first "####", where GSM8K puts its answer; commas in it are read over."""
    match = FINAL_NUMBER.search(text)
    try:
        return Decimal(match.group(1).replace(",", "")) if match else None
    except InvalidOperation:  # "1.2.3"
        return None


def same_final_number(conversation: Conversation, answer: str) -> bool:
    parts = conversation["messages"][-1]["content"]
    wanted = final_number("".join(part["text"] for part in parts if part["type"] == "text"))
    return wanted is not None and final_number(answer) == wanted


def is_for_test(text: str) -> bool:
    """Whether something that we generate belongs to the test, of any task: one in ten, whatever the seed and the order."""
    return zlib.crc32(text.encode()) % TEST_ONE_IN == 0


def check_text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} must be a text, found {type(value).__name__}")
    return value


def check_messages(messages: Any) -> list[dict[str, Any]]:
    """The messages if the tokenizer can render them and there is something to learn. ValueError if not."""
    try:
        turns = check_conversation({"messages": messages})
    except UserError as error:
        raise ValueError(str(error).removeprefix("conversation: ")) from None
    if len(turns) < 2:
        raise ValueError(f"a conversation needs a question and an answer, found {len(messages)} message(s)")
    return [{"role": message["role"], "content": known_keys(message["content"])} for message in messages]


def known_keys(content: str | list[dict[str, Any]]) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        return content
    return [{"type": part["type"], "text": part["text"]} for part in content]


def find_files(files: Files, key: str, *, task: Task) -> list[Path]:
    """The file of this key, or all files of the family (`key_00000`, `key_00001`, ...) in their order."""
    family = [other for other in sorted(files) if re.fullmatch(rf"{re.escape(key)}_\d{{5}}", other)]
    if key in files or family:
        return [Path(files[found]) for found in ([key] if key in files else family)]
    related = sorted(other for other in files if other.split("/")[0] == key.split("/")[0])
    given = f"Given were: {', '.join(related)}" if related else "No file of this data set was given"
    raise UserError(f"Task {task.name}, split {task.split}: it needs {key} of the catalogue. {given}.")


def num_rows_to_take(available: int, wanted: int | None, *, task: Task) -> int:
    if wanted is None:
        return available
    if wanted < 1:
        raise UserError(f"Task {task}: rows must be at least 1, found {wanted}")
    if wanted > available:
        log.warning(f"{task}: {wanted:,} rows wanted, all {available:,} there are taken")
    return min(wanted, available)


def read_table(path: Path, columns: Sequence[str]) -> "pa.Table":
    """These columns of a parquet file, not decoded into Python objects yet (10 microseconds a row, later)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if Path(path).exists():
        require_file(Path(path), "the table")
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            # rows of MMLU's original auxiliary_train are wrapped in a field of their own
            is_wrapped = names == ["train"] and pa.types.is_struct(file.schema_arrow.field("train").type)
            table = file.read(names if is_wrapped else [name for name in columns if name in names])
            num_rows = file.metadata.num_rows
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: a column's name that is not UTF-8
        reason = str(error).split("\n")[0]
        raise UserError(f"{path}: not a parquet file that can be read: {reason}") from error
    if is_wrapped:
        table = pa.Table.from_batches(
            [pa.RecordBatch.from_struct_array(chunk) for chunk in table.column("train").chunks],
            schema=pa.schema(list(table.schema.field("train").type)),
        )
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise UserError(
            f"{path}: no column {', '.join(missing)}; its columns are {listed(table.column_names if is_wrapped else names)}"
        )
    twice = [name for name in columns if table.column_names.count(name) > 1]
    if twice:
        raise UserError(f"{path}: two columns {twice[0]}; its columns are {listed(table.column_names)}")
    if table.num_rows == 0:
        raise UserError(f"{path}: the file has no rows")
    if table.num_rows != num_rows:
        raise UserError(f"{path}: its footer tells of {num_rows:,} rows, and it has {table.num_rows:,}. Download it again")
    return table.select(columns)
