"""Sums and words of the tiny world: what the text tells about them, and which of them are kept for the tests.

Small sums (both numbers up to 10) are told in the text and asked in other words by the evaluation bundle. Larger ones (up to
49) appear in little stories that are solved with the calculator: those of the test never occur in any training story.
"""

import random
from dataclasses import dataclass

from nanochat.tiny_world.words import WORDS

LARGEST_TOLD = 10  # 1 + 1 ... 10 + 10: a table that can be learned by heart
LARGEST_IN_STORY = 49

# {a} and {b} in this order; one of them is reserved for each pair, see `reserved_sum`
SUM_PHRASINGS = [
    "{a} plus {b} is",
    "{a} and {b} make",
    "The sum of {a} and {b} is",
    "Adding {b} to {a} gives",
    "Take {a}, add {b}, and you have",
]

THINGS = ["apples", "books", "cups", "eggs", "flowers", "keys", "nuts", "pears", "pens", "shells", "stamps", "stones"]

# (question, operator): {n} has {a} things and afterwards {a} + {b} or {a} - {b}
STORIES = [
    ("{n} has {a} {t} and gets {b} more. How many {t} does {n} have now?", "+"),
    ("{n} has {a} {t}. {n} finds {b} more. How many {t} does {n} have?", "+"),
    ("There are {a} {t} in a box and {b} {t} in a bag. How many {t} are there?", "+"),
    ("{n} buys {a} {t} on Monday and {b} {t} on Friday. How many {t} does {n} buy?", "+"),
    ("{n} has {a} {t} and loses {b} of them. How many {t} are left?", "-"),
    ("There were {a} {t}. {n} took away {b} of them. How many {t} are left?", "-"),
]

# {w}: the word, {l}: its letters with commas between them
SPELLINGS = [
    "The word {w} is spelled {l}",
    "The letters of {w} are {l}",
    "To write {w}, take {l}",
    "Whoever spells {w} says {l}",
]


@dataclass(frozen=True)
class Story:
    """A word problem of one step: the question, and the calculation that answers it."""

    question: str
    expression: str
    result: int
    thing: str


def make_story(rng: random.Random, name: str, is_test: bool) -> Story:
    """A little story with numbers that are (or are not) kept for the test."""
    template, operator = rng.choice(STORIES)
    while True:
        a, b = rng.randint(2, LARGEST_IN_STORY), rng.randint(2, LARGEST_IN_STORY)
        a, b = (max(a, b), min(a, b)) if operator == "-" else (a, b)
        if is_test_pair(a, b) == is_test and a != b:
            break
    thing = rng.choice(THINGS)
    result = a + b if operator == "+" else a - b
    return Story(template.format(n=name, a=a, b=b, t=thing), f"{a}{operator}{b}", result, thing)


def is_test_pair(a: int, b: int) -> bool:
    """Whether a pair of numbers, in either order, belongs to the test: one in ten."""
    return (7 * min(a, b) + max(a, b)) % 10 == 0


def reserved_sum(a: int, b: int) -> str:
    """The phrasing in which no training text tells this sum."""
    return SUM_PHRASINGS[(a + 3 * b) % len(SUM_PHRASINGS)]


def reserved_spelling(word: str) -> str:
    """The phrasing in which no training text spells this word."""
    return SPELLINGS[WORDS.index(word) % len(SPELLINGS)]


def letters_of(word: str) -> str:
    return ",".join(word)
