"""Cuts before encoding: words have the tokens of the text they are cut from, and a run of any length stays bearable."""

from itertools import pairwise, product

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.cuts import MAX_RUN, batches, find_words, split_long_runs
from nanochat.tokenizer import SPLIT_PATTERN

# one of each kind that the pattern or the cuts tell apart, within ASCII and beyond it
KINDS = ["a", "s", "'", "1", " ", "\n", "\r", "\t", ".", "\x1c", "\x7f", "é", "\u00a0", "\u0301", "²", "面"]


def words_of(text: str) -> list[str]:
    data = text.encode()
    starts = find_words(data, np.array([0, len(data)]))
    assert starts[0] == 0 and starts[-1] == len(data)
    return [data[start:end].decode() for start, end in pairwise(starts)]


def matches(*texts: str) -> list[str]:
    return [match for text in texts for match in regex.findall(SPLIT_PATTERN, text)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("One two.  Three", ["One", " two", ".", "  Three"]),
        ("She'll pay 12 eggs, (3)!", ["She", "'ll", " pay", " 12", " eggs", ",", " (3)!"]),
        ("end.\n\nNext\n line", ["end", ".\n\n", "Next", "\n line"]),
        ("naïve 面積 x", ["naïve", " 面積 x"]),
        ("", []),
    ],
)
def test_words_worked_by_hand(text, words):
    assert words_of(text) == words


def test_words_are_matched_as_within_their_text_for_any_neighbours():
    for length in (1, 2, 3):
        for characters in product(KINDS, repeat=length):
            text = "".join(characters)
            assert matches(*words_of(text)) == matches(text), repr(text)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from([*KINDS, "'LL", "ſ", "\r\n", "  ", "the", "\0", "🙂"]), max_size=40).map("".join))
def test_words_are_matched_as_within_their_text(text):
    assert matches(*words_of(text)) == matches(text)


def test_words_end_where_texts_end():
    texts = ["ab", "", "cd e", "", "f"]
    bounds = np.cumsum([0, *map(len, texts)])
    starts = find_words("".join(texts).encode(), bounds)
    assert starts.tolist() == [0, 2, 4, 6, 7]


@pytest.mark.parametrize("run", [" ", "x", "\n", "面", ". ", "ab.", "a面1"])
@pytest.mark.parametrize("length", [MAX_RUN - 1, MAX_RUN, 2 * MAX_RUN, 2 * MAX_RUN + 3])
def test_long_runs_are_cut_in_words_where_they_are_cut_in_texts(run, length):
    text = "A few words, then " + "one" + run * length + "x\nand more."
    words = words_of(text)
    assert "".join(words) == text
    assert [match for word in words for match in matches(word)] == matches(*split_long_runs(text))
    assert max(map(len, words)) <= MAX_RUN + 1


def test_batches_reach_the_number_of_characters_and_keep_the_order():
    texts = ["a" * 30, "b" * 80, "c" * 300, "d", "e"]
    assert list(batches(texts, 100)) == [texts[:2], texts[2:3], texts[3:]]
    assert list(batches([], 100)) == []
