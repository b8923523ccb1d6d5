"""Spell a word, and count a letter in it: "How many r are in strawberry?" Generated from a list of words, one a line.

Language models see tokens, not letters, so small ones have to be taught how each token is spelled. One word in ten belongs
to the test of both tasks and occurs in no training item; which one, a hash of the word decides, so that another list, order
or seed moves no word from one side to the other.

Letters stand without a space before them ("r,a,w", "3:r"): " r" is another token than "r".
"""

import logging
import random
from abc import abstractmethod
from pathlib import Path
from string import ascii_lowercase

import numpy as np

from nanochat.errors import UserError
from nanochat.jsonl import require_file
from nanochat.tasks.common import (
    ROW_ORDER_SEED,
    TEST_ONE_IN,
    Conversation,
    Files,
    Task,
    exchange,
    find_files,
    is_for_test,
    num_rows_to_take,
    same_final_number,
)

log = logging.getLogger("nanochat")

LONGEST_WORD = 64  # letters; the longest English one has 45


class SpellingTask(Task):
    """`rows` items, one a word of the split; more items than words go through the words again, asked differently."""

    kind = "generative"

    def __init__(self, name: str, *, split: str, files: Files, rows: int | None = None, seed: int = ROW_ORDER_SEED):
        super().__init__(name, split)
        if split not in ("train", "test"):
            raise UserError(f"Task {name}: its splits are train and test, found {split!r}")
        path = find_files(files, "words", task=self)[0]
        listed, num_passed_over = read_words(path)
        if num_passed_over:
            log.warning(
                f"{path}: {num_passed_over:,} entries were passed over: not of small letters alone, "
                f"longer than {LONGEST_WORD}, or there twice"
            )
            self.oddities["words_passed_over"] = num_passed_over
        words = [word for word in listed if is_for_test(word) == (split == "test")]
        if not words:
            raise UserError(f"{path}: no word of this list belongs to {self}; one word in {TEST_ONE_IN} is for the test")
        self.words = [words[i] for i in np.random.default_rng(seed).permutation(len(words))]
        self.num_items = len(words) if rows is None else num_rows_to_take(max(len(words), rows), rows, task=self)
        self.seed = seed

    def __len__(self) -> int:
        return self.num_items

    def conversation(self, index: int) -> Conversation:
        rng = random.Random(f"{self}/{self.seed}/{index}")
        return self.ask(self.words[index % len(self.words)], rng)

    @abstractmethod
    def ask(self, word: str, rng: random.Random) -> Conversation: ...


class SimpleSpelling(SpellingTask):
    """ "Spell the word cat"  ->  "cat:c,a,t"."""

    def ask(self, word: str, rng: random.Random) -> Conversation:
        question = rng.choice(SPELL_QUESTIONS).format(word=quoted(word, rng))
        return {"messages": exchange(casual(question, rng), spelled(word))}

    def evaluate(self, conversation: Conversation, answer: str) -> bool:
        return answer.strip() == conversation["messages"][-1]["content"]


class SpellingBee(SpellingTask):
    """ "How many r are in strawberry?": spells the word, counts along, asks Python too, and ends "#### 3"."""

    def ask(self, word: str, rng: random.Random) -> Conversation:
        letter = rng.choice(word) if rng.random() < 0.9 else rng.choice(ascii_lowercase)
        question = rng.choice(COUNT_QUESTIONS).format(word=quoted(word, rng), letter=quoted(letter, rng))
        return {"messages": exchange(casual(question, rng), counted(word, letter))}

    def evaluate(self, conversation: Conversation, answer: str) -> bool:
        return same_final_number(conversation, answer)


def spelled(word: str) -> str:
    return f"{word}:{','.join(word)}"


def counted(word: str, letter: str) -> list[dict[str, str]]:
    """The whole way to the answer, as parts of a message with one call of the calculator."""
    lines, count = [], 0
    for position, character in enumerate(word, start=1):
        count += character == letter
        lines.append(f"{position}:{character} count={count}" if character == letter else f"{position}:{character}")
    by_hand = "\n".join(lines)
    return [
        {"type": "text", "text": f"I spell the word and count '{letter}'.\n\n{spelled(word)}\n\n{by_hand}\n\n"},
        {"type": "text", "text": f"That makes {count}. Python counts too:\n\n"},
        {"type": "python", "text": f'"{word}".count("{letter}")'},
        {"type": "python_output", "text": str(word.count(letter))},
        {"type": "text", "text": f"\n\n#### {count}"},
    ]


def quoted(text: str, rng: random.Random) -> str:
    mark = rng.choice(["", "", "'", '"'])
    return f"{mark}{text}{mark}"


def casual(question: str, rng: random.Random) -> str:
    """Not everybody writes capitals and question marks."""
    if rng.random() < 0.3:
        question = question[0].lower() + question[1:]
    return question.rstrip("?.") if rng.random() < 0.4 else question


def read_words(path: Path) -> tuple[list[str], int]:
    """The words of a list, one a line with any line ends, and how many entries were passed over.

    A word is made of small letters only, is no longer than any real one, and counts once.
    """
    require_file(path, "the list of words")
    try:
        lines = path.read_text(encoding="utf-8-sig").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read the list of words: {error}") from error
    words = dict.fromkeys(line for line in lines if len(line) <= LONGEST_WORD and line.isalpha() and line.islower())
    return list(words), len(lines) - len(words)


SPELL_QUESTIONS = [
    "Spell the word {word}.",
    "Spell {word}.",
    "How is {word} spelled?",
    "How do you spell {word}?",
    "How would you spell the word {word}?",
    "Please spell {word} for me.",
    "Can you spell {word}?",
    "Could you spell the word {word}, please?",
    "Write {word} letter by letter.",
    "Which letters does {word} have?",
    "What are the letters of {word}?",
    "Take the word {word} apart into letters.",
    "List the letters of the word {word}.",
    "Give me the spelling of {word}.",
    "The word is {word}. Spell it.",
    "I do not know how to spell {word}. Can you help me?",
]

COUNT_QUESTIONS = [
    "How many {letter} are in {word}?",
    "How many {letter} are there in the word {word}?",
    "How many times is {letter} in {word}?",
    "How many times does the letter {letter} occur in {word}?",
    "How many times do I write {letter} when I write {word}?",
    "How often does {letter} come up in {word}?",
    "How often is the letter {letter} used in the word {word}?",
    "How many of the letters of {word} are {letter}?",
    "How many {letter} do you see in {word}?",
    "How many {letter} do I need to write {word}?",
    "What is the number of {letter} in {word}?",
    "What number of {letter} does the word {word} have?",
    "Count the {letter} in {word}.",
    "Count the letter {letter} in the word {word}.",
    "Please count every {letter} in {word}.",
    "Can you count the {letter} in {word}?",
    "Could you tell me how many {letter} there are in {word}?",
    "Tell me how many {letter} are in the word {word}.",
    "Do you know how many {letter} {word} has?",
    "I need the number of {letter} in {word}.",
    "I wonder how many {letter} are in {word}.",
    "Look at the word {word}. How many {letter} does it have?",
    "The word is {word}. How many {letter} are in it?",
    "In the word {word}, how many letters are {letter}?",
    "In {word}, how often do you find {letter}?",
    "{word}: how many {letter}?",
    "Is there a {letter} in {word}, and how many?",
    "Find all {letter} in {word}. How many are there?",
    "Wie viele {letter} hat das Wort {word}?",
    "Wie oft steht {letter} in {word}?",
    "Combien de {letter} y a-t-il dans le mot {word}?",
    "Combien de fois trouve-t-on {letter} dans {word}?",
    "¿Cuántas {letter} tiene la palabra {word}?",
    "¿Cuántas veces está {letter} en {word}?",
    "Quante {letter} ci sono nella parola {word}?",
    "Quantas letras {letter} tem {word}?",
]
