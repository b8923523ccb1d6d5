"""Byte pair encoding written for reading, not for speed: the reference for rustbpe and tiktoken."""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

import regex

Pair = tuple[int, int]


def train(texts: Iterable[str], num_merges: int, pattern: str) -> list[Pair]:
    """The merged pairs in order; pair number i becomes token 256 + i."""
    words = Counter(tuple(chunk.encode()) for text in texts for chunk in regex.findall(pattern, text))
    merges: list[Pair] = []
    while len(merges) < num_merges:
        counts: Counter[Pair] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                counts[pair] += count
        if not counts:
            break
        # the most frequent pair; of several the one with the smaller ids
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        new_id = 256 + len(merges)
        merges.append(best)
        merged: Counter[tuple[int, ...]] = Counter()
        for word, count in words.items():
            merged[merge(word, best, new_id)] += count
        words = merged
    return merges


def merge(word: tuple[int, ...], pair: Pair, new_id: int) -> tuple[int, ...]:
    """Replace the pair from left to right: merge((1, 1, 1), (1, 1), 9) -> (9, 1)"""
    merged, i = [], 0
    while i < len(word):
        if word[i : i + 2] == pair:
            merged.append(new_id)
            i += 2
        else:
            merged.append(word[i])
            i += 1
    return tuple(merged)


def encode(text: str, merges: list[Pair], pattern: str) -> list[int]:
    """Every merge in the order it was learned, over each chunk of the text."""
    ids: list[int] = []
    for chunk in regex.findall(pattern, text):
        word = tuple(chunk.encode())
        for i, pair in enumerate(merges):
            word = merge(word, pair, 256 + i)
        ids += word
    return ids


def token_strings(merges: list[Pair]) -> list[bytes]:
    """The bytes of tokens 0, 1, 2, ..."""
    tokens = [bytes([i]) for i in range(256)]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return tokens
