"""Where a text may be cut before it is encoded: in runs that the regex cannot bear, between words, between batches.

A word is what lies between two places where the splitting pattern (`tokenizer.SPLIT_PATTERN`) ends a match whatever stands
before and behind, so a text's tokens are those of its words, each encoded by itself:

    between an ASCII letter and another ASCII character        end|.  don|'t  two| words
    in front of a blank, behind a visible ASCII character      12| eggs.| Then
    behind a line end, in front of a visible ASCII character   end.\\n|Then

Not covered: other patterns, which may join what is cut here. Nothing is cut where neither side is ASCII.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np

# tiktoken's regex overflows its stack at 999,999 blanks in a row (a panic, not an error). Longer runs are cut here.
MAX_RUN = 10_000
# Python counts \x1c-\x1f as blanks, the Rust regex does not
_BLANK, _OTHER = r"[^\S\x1c-\x1f]", r"[\S\x1c-\x1f]"
# Tried where a run begins and nowhere else: tried at every character, runs just short of MAX_RUN took 14 s a megabyte
_LONG_RUN = re.compile("|".join(f"(?<!{kind}){kind}{{{MAX_RUN},}}+" for kind in (_BLANK, _OTHER)))


def split_long_runs(text: str) -> list[str]:
    """Cut a text so that no run of blanks or of non-blanks is longer than MAX_RUN; joined, the pieces are the text."""
    if len(text) <= MAX_RUN:
        return [text]
    runs = (match.span() for match in _LONG_RUN.finditer(text))
    cuts = [0, *(cut for start, end in runs for cut in range(start + MAX_RUN, end + 1, MAX_RUN)), len(text)]
    return [text[start:end] for start, end in pairwise(cuts) if end > start]


def find_words(data: bytes, text_starts: np.ndarray) -> np.ndarray:
    """Where the words of texts begin in their UTF-8, laid end to end, and where the last one ends: int64 (words + 1,).

    Long runs are cut as `split_long_runs` cuts them.
    """
    codes = np.frombuffer(data, np.uint8)  # what is not ASCII has bytes above 127 only
    letter, visible = _between(codes | 0x20, "a", "z"), _between(codes, "!", "~")
    is_start = np.zeros(len(data) + 1, dtype=bool)
    is_start[1:-1] = (visible[:-1] & (codes[1:] == ord(" "))) | ((codes[:-1] == ord("\n")) & visible[1:])
    is_start[text_starts] = is_start[-1] = True
    # no run of blanks or of non-blanks goes on where it was cut so far
    starts = np.flatnonzero(is_start)
    for part in np.flatnonzero(np.diff(starts) >= MAX_RUN):
        start, end = starts[part], starts[part + 1]
        pieces = split_long_runs(data[start:end].decode())
        is_start[start + np.cumsum([len(piece.encode()) for piece in pieces])] = True
    is_start[1:-1] |= letter[:-1] & ~letter[1:] & (codes[1:] < 128)
    return np.flatnonzero(is_start)


def _between(codes: np.ndarray, first: str, last: str) -> np.ndarray:
    return codes - np.uint8(ord(first)) <= np.uint8(ord(last) - ord(first))  # smaller ones wrap around to large ones


def batches(texts: Iterable[str], num_characters: int) -> Iterator[list[str]]:
    """Lists of texts that together reach `num_characters`: a thousand short texts, or one long one."""
    batch: list[str] = []
    remaining = num_characters
    for text in texts:
        batch.append(text)
        remaining -= len(text)
        if remaining <= 0:
            yield batch
            batch, remaining = [], num_characters
    if batch:
        yield batch
