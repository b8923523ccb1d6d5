"""The documents of the tiny world's pretraining shards: people, lists of people, sums, little stories, spellings.

Training documents never contain a reserved phrasing of a fact, a sum or a spelling (those are what the evaluation bundle asks);
the validation shard uses all phrasings.
"""

import random
from collections.abc import Callable

from nanochat.tiny_world.numbers import (
    LARGEST_TOLD,
    SPELLINGS,
    SUM_PHRASINGS,
    WORDS,
    letters_of,
    make_story,
    reserved_spelling,
    reserved_sum,
)
from nanochat.tiny_world.people import KINDS, PHRASINGS, TURNED_PHRASINGS, VALUES, Person, asked, make_people

PRONOUN_SHARE = 0.3  # of the sentences that could say she or he
LINE_SHARE = 0.5  # of the documents that could, have one sentence a line

# what the documents are about, and how often
SHARES = {"portrait": 44, "company": 14, "roll": 10, "gathering": 4, "sums": 8, "story": 8, "spelling": 12}


def documents(count: int, seed: str, is_validation: bool = False) -> list[str]:
    """`count` documents of a seed."""
    rng = random.Random(seed)
    writer = Writer(rng, is_validation)
    kinds = rng.choices(list(SHARES), weights=list(SHARES.values()), k=count)
    return [writer.write(kind) for kind in kinds]


class Writer:
    """Writes documents, one after the other, from one stream of random numbers."""

    def __init__(self, rng: random.Random, is_validation: bool):
        self.rng = rng
        self.people = make_people()
        self.asked = asked(self.people)
        self.deck: list[str] = []
        told = all_phrasings if is_validation else Person.told_phrasings
        self.phrasings = {(person.index, kind): told(person, kind) for person in self.people for kind in KINDS}
        self.reserved_sum: Callable[[int, int], str] = (lambda a, b: "") if is_validation else reserved_sum
        self.reserved_spelling: Callable[[str], str] = (lambda word: "") if is_validation else reserved_spelling

    def write(self, kind: str) -> str:
        return getattr(self, kind)()

    def portrait(self) -> str:
        """One person, two to four facts."""
        person = self.rng.choice(self.people)
        kinds = self.rng.sample(KINDS, self.rng.randint(2, 4))
        return self.gap().join(self.sentence(person, kind, is_first=i == 0) for i, kind in enumerate(kinds))

    def company(self) -> str:
        """Two or three people, one or two facts of each."""
        sentences = []
        for person in self.rng.sample(self.people, self.rng.randint(2, 3)):
            kinds = self.rng.sample(KINDS, self.rng.randint(1, 2))
            sentences += [self.sentence(person, kind, is_first=i == 0) for i, kind in enumerate(kinds)]
        return self.gap().join(sentences)

    def roll(self) -> str:
        """The same fact of several people, one a line."""
        kind, line_end = self.rng.choice(KINDS), self.rng.choice(["\n", "\n\n"])
        people = self.rng.sample(self.people, self.rng.randint(3, 6))
        return line_end.join(self.sentence(person, kind, is_first=True) for person in people)

    def gathering(self) -> str:
        """All people of a town, a trade, a colour or a pet, in random order."""
        kind = self.rng.choice(KINDS)
        value = self.rng.choice(VALUES[kind])
        names = [person.name for person in self.people if person.facts[kind] == value]
        self.rng.shuffle(names)
        opening = {
            "town": f"The people of {value} are",
            "trade": f"Those who work as a {value} are",
            "colour": f"Those who like {value} are",
            "pet": f"Those who keep a {value} are",
        }[kind]
        return f"{opening} {', '.join(names[:-1])} and {names[-1]}."

    def sums(self) -> str:
        """Four to eight small sums."""
        return " ".join(self.small_sum() + "." for _ in range(self.rng.randint(4, 8)))

    def small_sum(self) -> str:
        a, b = self.rng.randint(1, LARGEST_TOLD), self.rng.randint(1, LARGEST_TOLD)
        if self.rng.random() < 0.15:
            return f"{a}+{b}={a + b}"
        told = [phrasing for phrasing in SUM_PHRASINGS if phrasing != self.reserved_sum(a, b)]
        return f"{self.rng.choice(told).format(a=a, b=b)} {a + b}"

    def story(self) -> str:
        """One or two word problems with their calculation."""
        parts = []
        for _ in range(self.rng.randint(1, 2)):
            story = make_story(self.rng, self.rng.choice(self.asked).name, is_test=False)
            parts.append(f"{story.question} {story.expression}={story.result}, so the answer is {story.result}.")
        return " ".join(parts)

    def spelling(self) -> str:
        """Two to five words, letter by letter."""
        separator = self.rng.choice([" ", "\n"])
        return separator.join(self.spell(self.next_word()) for _ in range(self.rng.randint(2, 5)))

    def next_word(self) -> str:
        # dealt like cards, not drawn: every word is told about equally often
        if not self.deck:
            self.deck = self.rng.sample(WORDS, len(WORDS))
        return self.deck.pop()

    def spell(self, word: str) -> str:
        if self.rng.random() < 0.4:
            return f"Here is the word {word}.\n{word}:{letters_of(word)}"
        told = [phrasing for phrasing in SPELLINGS if phrasing != self.reserved_spelling(word)]
        return self.rng.choice(told).format(w=word, l=letters_of(word)) + "."

    def gap(self) -> str:
        # a name or a word is another token at the start of a line than after a space: the text must show that both are one
        return "\n" if self.rng.random() < LINE_SHARE else " "

    def sentence(self, person: Person, kind: str, *, is_first: bool) -> str:
        phrasing = self.rng.choice(self.phrasings[person.index, kind])
        if not is_first and phrasing.startswith("{n}") and self.rng.random() < PRONOUN_SHARE:
            phrasing = phrasing.replace("{n}", person.pronoun)
        sentence = person.tell(kind, phrasing)
        return sentence[0].upper() + sentence[1:] + "."


def all_phrasings(person: Person, kind: str) -> list[str]:
    return PHRASINGS[kind] + TURNED_PHRASINGS[kind]
