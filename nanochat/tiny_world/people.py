"""The people of the tiny world: who they are, what is told about them, and in which words.

Every person has four facts (town, trade, colour, pet). A fact can be told in several phrasings; two of those that end with the
value are *reserved* for each person and fact: no training text uses them, the evaluation bundle asks with them. About 30 % of
the people are *unasked*: no training conversation asks about them or tells a fact of theirs. What the model answers about them,
it learned from the text. (A visitor who says hello may have any name; see `nanochat.tiny_world.tasks.visitor`.)
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass

WORLD_SEED = 20251101

HER_NAMES = [
    "Alice", "Anna", "Bella", "Carla", "Clara", "Diana", "Dora", "Elena", "Emma", "Fiona", "Frida", "Gina", "Greta",
    "Hanna", "Helen", "Ida", "Irene", "Jane", "Julia", "Karin", "Laura", "Maria", "Mira", "Nora", "Olga", "Paula", "Rosa",
    "Sara", "Tina", "Vera", "Wanda", "Zoe",
]  # fmt: skip
HIS_NAMES = [
    "Adam", "Alan", "Boris", "Bruno", "Carl", "Colin", "David", "Dennis", "Edgar", "Erik", "Felix", "Frank", "Georg",
    "Henry", "Hugo", "Ivan", "Jack", "Kevin", "Leo", "Martin", "Noah", "Oscar", "Otto", "Peter", "Robin", "Simon", "Tom",
    "Ulrich", "Victor", "Walter", "Xavier", "Yusuf",
]  # fmt: skip
NUM_UNASKED = 20  # of 64 people

VALUES: dict[str, list[str]] = {
    "town": ["Athens", "Berlin", "Boston", "Cairo", "Delhi", "Dublin", "Kyoto", "Lima",
             "Lisbon", "Oslo", "Paris", "Prague", "Quito", "Rome", "Sydney", "Vienna"],
    "trade": ["baker", "builder", "dancer", "doctor", "farmer", "fisher", "gardener", "lawyer",
              "miller", "painter", "pilot", "sailor", "singer", "tailor", "teacher", "writer"],
    "colour": ["black", "blue", "brown", "green", "grey", "orange", "pink", "purple", "red", "silver", "white", "yellow"],
    "pet": ["cat", "dog", "duck", "goat", "hamster", "horse", "monkey", "parrot", "pony", "rabbit", "snake", "turtle"],
}  # fmt: skip
KINDS = tuple(VALUES)

# {n}: the name, {v}: the value. These end with the value, so that what comes before it can be asked as a question.
PHRASINGS: dict[str, list[str]] = {
    "town": [
        "{n} lives in {v}",
        "{n} owns a house in {v}",
        "The home of {n} is in {v}",
        "{n} comes from the town of {v}",
        "You can find {n} in {v}",
        "The town where {n} lives is {v}",
    ],
    "trade": [
        "{n} works as a {v}",
        "{n} makes a living as a {v}",
        "By trade {n} is a {v}",
        "{n} earns money as a {v}",
        "The work of {n} is the work of a {v}",
        "Every day {n} goes to work as a {v}",
    ],
    "colour": [
        "{n} likes the colour {v}",
        "The favourite colour of {n} is {v}",
        "{n} paints everything in {v}",
        "The colour that {n} likes best is {v}",
        "{n} always wears {v}",
        "The door of {n} is painted in {v}",
    ],
    "pet": [
        "{n} has a {v}",
        "The pet of {n} is a {v}",
        "{n} keeps a {v}",
        "At home {n} feeds a {v}",
        "{n} takes care of a {v}",
        "{n} shares the house with a {v}",
    ],
}
# the value comes first: never asked, never reserved
TURNED_PHRASINGS: dict[str, list[str]] = {
    "town": ["{v} is the town of {n}", "In {v} stands the house of {n}"],
    "trade": ["A {v} by trade, {n} works hard", "Being a {v} is the work of {n}"],
    "colour": ["Of all colours, {v} is the one for {n}", "With {v} one can make {n} happy"],
    "pet": ["A {v} is the pet of {n}", "The {v} of {n} sleeps all day"],
}

# how training conversations ask about the people whom they ask about
QUESTIONS: dict[str, list[str]] = {
    "town": [
        "Where does {n} live?",
        "In which town does {n} live?",
        "Which town is the home of {n}?",
        "Where is {n} from?",
        "Do you know where {n} lives?",
        "Tell me where {n} lives.",
    ],
    "trade": [
        "What does {n} do for work?",
        "What is the trade of {n}?",
        "What is the work of {n}?",
        "How does {n} earn money?",
        "Which trade does {n} have?",
        "Tell me what {n} does for work.",
    ],
    "colour": [
        "Which colour does {n} like?",
        "What is the favourite colour of {n}?",
        "What colour does {n} like best?",
        "Which colour does {n} wear?",
        "Do you know the colour that {n} likes?",
        "Tell me which colour {n} likes.",
    ],
    "pet": [
        "Which pet does {n} have?",
        "What is the pet of {n}?",
        "What pet does {n} keep?",
        "What animal does {n} have?",
        "Do you know the pet of {n}?",
        "Tell me which pet {n} has.",
    ],
}
# no training conversation uses these, about anybody
HELD_OUT_QUESTIONS: dict[str, list[str]] = {
    "town": ["Tell me the town where {n} lives.", "What is the town of {n}?"],
    "trade": ["Tell me the trade of {n}.", "What is {n} by trade?"],
    "colour": ["Tell me the colour that {n} likes.", "Which is the favourite colour of {n}?"],
    "pet": ["Tell me the pet of {n}.", "Which animal is the pet of {n}?"],
}
# The name stands after a space, as in the questions: at the start of an answer it would be another token, and a model of this
# size learns that the two are one name only for the names that it has seen there.
ANSWERS: dict[str, str] = {
    "town": "The home of {n} is in {v}.",
    "trade": "By trade {n} is a {v}.",
    "colour": "The favourite colour of {n} is {v}.",
    "pet": "The pet of {n} is a {v}.",
}


@dataclass(frozen=True)
class Person:
    """One inhabitant: facts maps a kind (town, trade, colour, pet) to its value."""

    index: int
    name: str
    pronoun: str
    is_asked: bool
    facts: dict[str, str]

    def reserved_phrasings(self, kind: str) -> list[str]:
        """The two phrasings in which no training text tells this fact."""
        phrasings, first = PHRASINGS[kind], self.index + KINDS.index(kind)
        return [phrasings[(first + shift) % len(phrasings)] for shift in (0, len(phrasings) // 2)]

    def told_phrasings(self, kind: str) -> list[str]:
        reserved = self.reserved_phrasings(kind)
        return [phrasing for phrasing in PHRASINGS[kind] + TURNED_PHRASINGS[kind] if phrasing not in reserved]

    def tell(self, kind: str, phrasing: str) -> str:
        return phrasing.format(n=self.name, v=self.facts[kind])


def make_people() -> list[Person]:
    """All 64 people, the same ones every time; values are spread evenly, so that no guess is better than another."""
    rng = random.Random(WORLD_SEED)
    names = [(name, "She") for name in HER_NAMES] + [(name, "He") for name in HIS_NAMES]
    rng.shuffle(names)
    columns = {kind: spread(VALUES[kind], len(names), rng) for kind in KINDS}
    return [
        Person(i, name, pronoun, i >= NUM_UNASKED, {kind: columns[kind][i] for kind in KINDS})
        for i, (name, pronoun) in enumerate(names)
    ]


def spread(values: list[str], count: int, rng: random.Random) -> list[str]:
    """`count` values in random order, each about equally often."""
    column = [values[i % len(values)] for i in range(count)]
    rng.shuffle(column)
    return column


def asked(people: Iterable[Person]) -> list[Person]:
    return [person for person in people if person.is_asked]


def unasked(people: Iterable[Person]) -> list[Person]:
    return [person for person in people if not person.is_asked]


def choices_for(value: str, kind: str, rng: random.Random, count: int = 4) -> tuple[list[str], int]:
    """`count` different values of a kind in random order, and where the right one stands."""
    choices = [*rng.sample([other for other in VALUES[kind] if other != value], count - 1), value]
    rng.shuffle(choices)
    return choices, choices.index(value)
