"""Hostile text through the real path: files -> documents and conversations -> tokens -> rows, and prompts and back again.

What comes out is compared with what plain Python says of the same bytes. A trial is told as what went wrong, or None.

Covered: the text (ingredients.py), every string type of parquet, row groups of any size, files of JSON lines in every shape,
    special tokens written into every place; refusals are UserErrors that name the file and the row or line. Hostile
    files (bombs, what is no file, malformed tables), and texts of 100 MB.
Not covered: other versions of pyarrow and tiktoken than the pinned ones.
"""

import logging
import random
from pathlib import Path
from typing import Any

from nanochat.tokenizer import Tokenizer
from torture import hostile_files, hostile_sizes, ingredients, special_tokens
from torture.board import Row, Say, row
from torture.hostile_documents import FILE_ITEMS, Trials, documents
from torture.hostile_talk import conversations, malformed_lines, malformed_rows

PART = "hostile_text"


def rows(size: int, *, seed: int, folder: Path, say: Say) -> list[Row]:
    """100 x `size` documents and as many conversations; the other rows scale with less."""
    logging.disable(logging.WARNING)  # what is odd in a file is told there, and is counted here
    try:
        return all_rows(size, seed=seed, folder=folder, say=say)
    finally:
        logging.disable(logging.NOTSET)


def all_rows(size: int, *, seed: int, folder: Path, say: Say) -> list[Row]:
    tokenizer = a_tokenizer(seed)
    num_files = -(-130 * size // FILE_ITEMS)  # of whose documents one in six is null or empty
    found = []

    def add(promise: str, trials: Trials, *, is_control: bool = False, **details: Any) -> None:
        found.append(row(PART, promise, to_the_end(trials), is_control=is_control, **details))
        say(f"{promise}: {found[-1].failures} of {found[-1].trials:,}")

    add("hostile documents become tokens that say the same text, every row of the file counted",
        documents(num_files, seed, tokenizer, folder))  # fmt: skip
    add("hostile conversations become tokens and masks that say the same, none lost",
        conversations(num_files, seed, tokenizer, folder))  # fmt: skip
    add("a malformed conversation is refused with its file and line", malformed_lines(20 * size, seed, folder))
    add("a malformed conversation in parquet is refused with its file and row", malformed_rows(2 * size, seed, folder))
    add("special tokens in text never become special ids", special_tokens.in_text(max(1, size // 20), seed, tokenizer, folder))
    add("special tokens that a model says are never shown as text", special_tokens.in_answers(2 * size, seed, tokenizer))
    add("what is no file, or another, is refused by name", hostile_files.no_files(folder))
    add(
        "a table row of wrong types is refused by file and row, or is a good one",
        hostile_files.table_rows(5 * size, seed, folder),
    )
    add("a damaged or hostile CORE bundle is refused by name", hostile_files.bundles(5 * size, seed, folder))
    add("a YAML bomb is refused", hostile_files.yaml_bombs())
    length = 1_000_000 * size
    add("text of any length is tokenized in bounded memory and time", hostile_sizes.huge(length, folder), characters=length)
    add(
        "the vocabulary is the same for any threads, hash seeds and orders",
        hostile_sizes.vocabularies(seed, runs=3 + size // 50),
    )
    add("without the cut of long runs, blanks break the tokenizer",
        special_tokens.without_the_cut(tokenizer), is_control=True)  # fmt: skip
    add("with special tokens allowed in text, text makes special ids",
        special_tokens.with_specials_allowed(seed, tokenizer), is_control=True)  # fmt: skip
    return found


def to_the_end(trials: Trials) -> Trials:
    """The trials, with one more that failed if they broke off: the others of this part are to run all the same."""
    try:
        yield from trials
    except Exception as error:
        yield f"the trials broke off: {type(error).__name__}: {error}"


def a_tokenizer(seed: int) -> Tokenizer:
    """A small vocabulary, trained on hostile text."""
    rng = random.Random(f"{seed}/vocabulary")
    return Tokenizer.train([ingredients.text(rng, longest=200) for _ in range(1_500)], 700)
