"""CORE's prompts as tokens: rendered and tokenized once per tokenizer, kept as flat files, and read with no text in between.

    core = prepare(bundle, tokenizer)          # minutes of CPU for the 22 tasks, once
    names = save(core, folder)                 # to be published with these files
    core = load(open_verified(manifest))       # mapped into memory; nothing is read before it is asked for
    core.tasks[0][5].prefix, .suffixes, .starts

The options of an item share their beginning (examples and question, mostly), so it is kept once, as its prefix:

    tokens.npy    uint16 (N,): of each item the prefix, then the suffix of each option
    items.npy     ITEM (I,): of each item its line, its gold and where its tokens and options begin within its task
    options.npy   OPTION (O,): of each option the length of its suffix, and where its scored tokens start
    tasks.json    of each task, in order: its name, kind, baseline, examples, and how much of each file is its own

Scored are, as nanochat does:

    multiple_choice     the tokens behind the part that all choices share
    schema              the tokens that all contexts end in
    language_modeling   the tokens behind the context

Covered: an item of which nothing could be scored is refused here, by its line, before any model is there to meet it.
Not covered: the length of a model's context, which is the model's business.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.lib import format as npy

from nanochat.core_bundle import CoreTask, list_labels, read_bundle, refuse, render_prompts
from nanochat.errors import UserError
from nanochat.manifest import Artefact, write_json
from nanochat.progress import Progress
from nanochat.storage import atomic_path
from nanochat.text import listed

log = logging.getLogger("nanochat")

ITEMS_AT_ONCE = 256  # rendered and tokenized together; their texts are in memory
MAX_ID = np.iinfo(np.uint16).max

ITEM = np.dtype(
    [
        ("line", "<i4"),
        ("gold", "<i4"),
        ("prompt", "<u8"),  # the first 16 digits of a sha256
        ("first_token", "<i8"),
        ("first_option", "<i8"),
        ("num_options", "<i4"),
        ("prefix", "<i4"),  # tokens
    ]
)
OPTION = np.dtype([("suffix", "<i4"), ("start", "<i4")])
NONE = np.empty(0, np.uint16)
ARRAYS = {"tokens": np.dtype("<u2"), "items": ITEM, "options": OPTION}
TASKS = "tasks.json"


class Encoder(Protocol):
    """What is needed of a tokenizer."""

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1, bos: bool = False) -> Sequence[Any]: ...


@dataclass(frozen=True)
class Prompts:
    """One item: each of its options is the prefix and a suffix, and is scored from its start on, counted from the prefix's."""

    line: int  # of the bundle's file
    gold: int
    prompt_sha256: str  # of the texts, 16 digits
    prefix: np.ndarray  # uint16, what all options share, <|bos|> first; at least one token
    suffixes: tuple[np.ndarray, ...]  # uint16, at least one token each
    starts: tuple[int, ...]  # never below the length of the prefix


@dataclass(frozen=True)
class About:
    """What there is to say of a task, its items aside."""

    label: str
    kind: str
    num_fewshot: int  # examples asked for
    num_examples: int  # examples shown: fewer where there are not enough other items
    baseline: float
    num_available: int  # items in the bundle; of these, the ones that were drawn are here


@dataclass(frozen=True)
class TokenizedTask(About):
    """One task, with its items in the order in which they are evaluated."""

    items: np.ndarray  # ITEM
    options: np.ndarray  # OPTION
    tokens: np.ndarray  # uint16

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Prompts:
        item = self.items[index]
        options = self.options[item["first_option"] :][: item["num_options"]]
        ends = item["first_token"] + np.cumsum([item["prefix"], *options["suffix"]])
        return Prompts(
            line=int(item["line"]),
            gold=int(item["gold"]),
            prompt_sha256=f"{item['prompt']:016x}",
            prefix=self.tokens[item["first_token"] : ends[0]],
            suffixes=tuple(self.tokens[start:end] for start, end in pairwise(ends)),
            starts=tuple(options["start"].tolist()),
        )

    def num_tokens(self) -> int:
        """Of all items, what options share counted once."""
        return len(self.tokens)

    def about(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(About)}


@dataclass(frozen=True)
class CoreTokens:
    tasks: tuple[TokenizedTask, ...]
    num_listed: int  # tasks of the bundle: CORE is the mean of all of them
    max_per_task: int | None = None

    def summary(self) -> dict[str, Any]:
        """How much there is of each task, for the manifest."""
        tasks = {
            task.label: {
                "num_items": len(task),
                "num_available": task.num_available,
                "num_fewshot": task.num_examples,
                "num_fewshot_asked": task.num_fewshot,
                "tokens": task.num_tokens(),
            }
            for task in self.tasks
        }
        return {"tasks": tasks, "num_listed": self.num_listed}


# -- making ------------------------------------------------------------------------------------------------------------------


def prepare(
    bundle: Path,
    tokenizer: Encoder,
    *,
    tasks: Sequence[str] | None = None,
    max_per_task: int | None = None,
    num_threads: int = 1,
) -> CoreTokens:
    """Tokenize the tasks of a bundle (all of them, or those named); with `max_per_task`, the first items after the shuffle.

    The same for any number of threads. UserError, naming file and line, for a bundle that is broken and for an item of which
    nothing could be scored.
    """
    found, problems = [], []
    for task in read_bundle(bundle, labels=tasks, max_per_task=max_per_task):
        if task.num_examples < task.num_fewshot:
            log.warning("CORE %s: %d examples in front of each item, not %d: there are no more other items",
                        task.label, task.num_examples, task.num_fewshot)  # fmt: skip
        tokenized, empty = tokenize(task, tokenizer, num_threads=num_threads)
        found.append(tokenized)
        if empty:
            lines = listed([str(line) for line in sorted(empty)])
            problems.append(
                f"{task.file}: {len(empty):,} items have an option without any text, so nothing can be scored: line {lines}"
            )
    refuse(bundle, problems)
    return CoreTokens(tuple(found), len(list_labels(bundle)), max_per_task)


def tokenize(task: CoreTask, tokenizer: Encoder, *, num_threads: int = 1) -> tuple[TokenizedTask, list[int]]:
    """The task as tokens, and the lines of the items of which nothing could be scored, which it lacks."""
    tokens, empty, num_tokens = [NONE], [], 0
    items: list[tuple[int, ...]] = []
    options: list[tuple[int, int]] = []
    for index, texts, sequences in encode_items(task, tokenizer, num_threads):
        item = task.items[index]
        starts = find_starts(task.kind, sequences)
        scored = sequences[-len(starts) :]
        if min(map(len, scored)) < 2:  # <|bos|> alone
            empty.append(item.line)
            continue
        prefix = min(common_length(scored), *starts)
        items.append((item.line, item.gold, int(prompt_digits(texts), 16), num_tokens, len(options), len(starts), prefix))
        options += [(len(whole) - prefix, start) for whole, start in zip(scored, starts, strict=True)]
        tokens += [scored[0][:prefix], *(whole[prefix:] for whole in scored)]
        num_tokens += prefix + sum(len(whole) - prefix for whole in scored)
    about: dict[str, Any] = {field.name: getattr(task, field.name) for field in fields(About)}
    arrays = {"items": np.array(items, ITEM), "options": np.array(options, OPTION), "tokens": np.concatenate(tokens)}
    return TokenizedTask(**about | arrays), empty


def encode_items(task: CoreTask, tokenizer: Encoder, num_threads: int) -> Iterator[tuple[int, list[str], list[np.ndarray]]]:
    """Index, texts and tokens of each item."""
    progress = Progress(f"CORE {task.label}", len(task.items), "items tokenized")
    for first in range(0, len(task.items), ITEMS_AT_ONCE):
        part = range(len(task.items))[first : first + ITEMS_AT_ONCE]
        texts = [render_prompts(task, index) for index in part]
        encoded = iter(tokenizer.encode_batch([text for item in texts for text in item], num_threads=num_threads, bos=True))
        for index, item in zip(part, texts, strict=True):
            yield index, item, [as_uint16(next(encoded)) for _ in item]
        progress.add(len(part))


def as_uint16(ids: Any) -> np.ndarray:
    ids = np.asarray(ids)
    if ids.dtype != np.uint16 and ids.size and not 0 <= ids.min() <= ids.max() <= MAX_ID:
        raise ValueError(f"token {ids.max()} does not fit into 16 bits")
    return ids.astype(np.uint16, copy=False)


def prompt_digits(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


# -- what is scored ----------------------------------------------------------------------------------------------------------


def find_starts(kind: str, sequences: Sequence[np.ndarray]) -> list[int]:
    """Where the scored tokens of each option begin; they end with its sequence. At least one, and never <|bos|>.

    Of language modelling, the context alone comes first and is no option.
    """
    if kind == "schema":
        shared = common_length([tokens[::-1] for tokens in sequences])
        return [max(len(tokens) - max(shared, 1), 1) for tokens in sequences]  # equal contexts share <|bos|>, too
    shared = common_length(sequences)
    # at least one token is scored, also where a choice is the beginning of another or a continuation adds nothing
    if kind == "language_modeling":
        return [max(min(shared, len(sequences[-1]) - 1), 1)]
    return [max(min(shared, *(len(tokens) - 1 for tokens in sequences)), 1)] * len(sequences)


def common_length(sequences: Sequence[np.ndarray]) -> int:
    """How many first tokens all sequences share.  [5, 6, 7], [5, 6, 8, 9]  ->  2"""
    shortest = min(map(len, sequences))
    differs = np.zeros(shortest, dtype=bool)
    for tokens in sequences[1:]:
        differs |= tokens[:shortest] != sequences[0][:shortest]
    return int(differs.argmax()) if differs.any() else shortest


# -- keeping -----------------------------------------------------------------------------------------------------------------


def save(core: CoreTokens, folder: Path) -> list[str]:
    """Write the files, and return their names; the same prompts give the same bytes."""
    names = []
    for name, dtype in ARRAYS.items():
        names.append(f"{name}.npy")
        with atomic_path(folder / names[-1]) as path:
            write_array(path, [getattr(task, name) for task in core.tasks], dtype)
    tasks = [task.about() | {name: len(getattr(task, name)) for name in ARRAYS} for task in core.tasks]
    write_json(folder / TASKS, {"tasks": tasks, "num_listed": core.num_listed, "max_per_task": core.max_per_task})
    return [*names, TASKS]


def write_array(path: Path, parts: Sequence[np.ndarray], dtype: np.dtype) -> None:
    """One .npy of all parts, none of which is copied for it."""
    with open(path, "wb") as file:
        header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": (sum(map(len, parts)),)}
        npy.write_array_header_1_0(file, header)
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype).view(np.uint8).data)


def load(artefact: Artefact, *, verify: bool = True) -> CoreTokens:
    """What `save` wrote and a stage published. UserError if it is not as it was, or not whole."""
    path = artefact.path(TASKS)
    try:
        content = artefact.json(TASKS)
        whole = {name: map_array(artefact.path(f"{name}.npy", verify=verify), dtype) for name, dtype in ARRAYS.items()}
        ends = {name: np.cumsum([0, *(task[name] for task in content["tasks"])]).tolist() for name in ARRAYS}
        if any(ends[name][-1] != len(array) for name, array in whole.items()):
            raise ValueError("the files do not fit together")
        tasks = []
        for number, task in enumerate(content["tasks"]):
            own = {name: array[ends[name][number] : ends[name][number + 1]] for name, array in whole.items()}
            tasks.append(TokenizedTask(**{**task, **own}))
        return CoreTokens(tuple(tasks), content["num_listed"], content["max_per_task"])
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise UserError(f"{path}: cannot be read as the prompts of CORE ({error}). Run the tokens stage again") from error


def map_array(path: Path, dtype: np.dtype) -> np.ndarray:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim != 1 or array.dtype != dtype:
        raise ValueError(f"{path.name}: expected {dtype} in a row, found {array.dtype} of shape {array.shape}")
    return array.view(np.ndarray)  # slices of a memmap are slow to make
