"""Sums and words of the tiny world: what the text tells about them, and which of them are kept for the tests.

Small sums (both numbers up to 10) are told in the text and asked in other words by the evaluation bundle. Larger ones (up to 49)
appear in little stories that are solved with the calculator: those of the test never occur in any training story.
"""

import random
from dataclasses import dataclass

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

THINGS = "apples books cups eggs flowers keys nuts pears pens shells stamps stones".split()

# (question, operator): {n} has {a} things and afterwards {a} + {b} or {a} - {b}
STORIES = [
    ("{n} has {a} {t} and gets {b} more. How many {t} does {n} have now?", "+"),
    ("{n} has {a} {t}. {n} finds {b} more. How many {t} does {n} have?", "+"),
    ("There are {a} {t} in a box and {b} {t} in a bag. How many {t} are there?", "+"),
    ("{n} buys {a} {t} on Monday and {b} {t} on Friday. How many {t} does {n} buy?", "+"),
    ("{n} has {a} {t} and loses {b} of them. How many {t} are left?", "-"),
    ("There were {a} {t}. {n} took away {b} of them. How many {t} are left?", "-"),
]

WORDS = (
    "able acid age air apple arm army art autumn baby back bag ball bank basket bath beach bean bear bed bee bell bench bird "
    "blood board boat bone book boot bottle bowl box boy branch bread bridge brother brush bucket button cake camera candle "
    "card carpet castle chain chair cheese cherry chest chicken child church circle city clock cloud coat coffee coin cold "
    "comb cook copper corn cotton cough country cover cow cream cross crowd cup curtain dance daughter day desk dinner dirt "
    "door dream dress drink drum dust ear earth east egg engine evening eye face family farm father feather field finger "
    "fire fish flag floor flower fly fog food foot forest fork friend frog fruit game garden gate girl glass glove gold "
    "grain grass green ground group hair hammer hand hat head heart hill hole home honey hook hotel hour house ice iron "
    "island jacket jelly jewel journey juice jungle kettle key king kitchen kite knee knife knot ladder lake lamp land leaf "
    "leather leg lemon letter library light line lion lip lock machine map market meal meat metal milk minute mirror money "
    "month moon morning mother mountain mouse mouth music nail name neck needle nest net night north nose number nut ocean "
    "office oil onion oven page paint paper park pencil people pepper picture pillow pipe plane plant plate pocket pool "
    "potato prince queen rain ribbon rice ring river road roof room root rope salt sand school sea season seed shadow sheep "
    "shelf ship shirt shoe shop sister skin skirt sky sleep smile smoke snow soap sock song soup south spoon spring square "
    "stamp star station stick stone storm stove street sugar summer sun table tail tea tent thread thumb ticket tiger time "
    "tooth tower town train tree truck umbrella uncle valley village voice wagon wall watch water week west wheel whistle "
    "wind window wing winter wire wolf woman wood wool word worm year zebra"
).split()

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
