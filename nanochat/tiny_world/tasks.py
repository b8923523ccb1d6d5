"""The task files of the tiny world, row by row, in the columns of the originals: conversations, questions, word problems.

Training rows ask only about the asked people; test rows about the others. Word problems and words are split by their numbers
(see `nanochat.tiny_world.numbers`) and by whoever reads the word list.
"""

import random

from nanochat.tiny_world.numbers import make_story
from nanochat.tiny_world.people import (
    ANSWERS,
    HELD_OUT_QUESTIONS,
    HER_NAMES,
    HIS_NAMES,
    KINDS,
    QUESTIONS,
    VALUES,
    Person,
    asked,
    choices_for,
    make_people,
    unasked,
)

LETTERS = ["A", "B", "C", "D"]


# -- conversations (smoltalk) and open questions -------------------------------------------------------------------------------


def conversations(count: int, seed: str, is_test: bool) -> list[dict]:
    """Chats of one to four questions, like SmolTalk: {"messages": [{"content", "role"}], "source"}."""
    rng = random.Random(seed)
    people = (unasked if is_test else asked)(make_people())
    return [{"messages": chat(rng, people), "source": "tiny-world"} for _ in range(count)]


def chat(rng: random.Random, people: list[Person]) -> list[dict]:
    draw = rng.random()
    if draw < 0.05:
        return exchange(*rng.choice(GREETINGS))
    if draw < 0.3:
        name = visitor(rng)
        return exchange(*(text.format(n=name) for text in rng.choice(VISITS)))
    if draw < 0.4:
        person = rng.choice(people)
        return exchange(rng.choice(PORTRAIT_QUESTIONS).format(n=person.name), portrait(person))
    messages = []
    for _ in range(rng.choice([1, 1, 2, 3, 4])):
        person, kind = rng.choice(people), rng.choice(KINDS)
        question = rng.choice(QUESTIONS[kind])
        messages += exchange(question.format(n=person.name), person.tell(kind, ANSWERS[kind]))
    return messages


GREETINGS = [
    ("Hello!", "Hello! Ask me about the people of the tiny world."),
    ("Hi, who is there?", "Hello! Ask me about the people of the tiny world."),
    ("Good morning!", "Good morning! Whom do you want to know more about?"),
    ("Thank you!", "You are welcome."),
    ("What can you do?", "I can tell you about people, spell words and add numbers."),
]
# any name can be said back, also one that nobody in the world has
VISITS = [
    ("Hello, I am {n}.", "Hello {n}, nice to meet you."),
    ("My name is {n}.", "Nice to meet you, {n}."),
    ("Good morning! You can call me {n}.", "Good morning, {n}."),
    ("I am called {n}. Who are you?", "Hello {n}, I can tell you about the people of the tiny world."),
]
PORTRAIT_QUESTIONS = ["Who is {n}?", "Tell me about {n}.", "What do you know about {n}?"]


def portrait(person: Person) -> str:
    return " ".join(person.tell(kind, ANSWERS[kind]) for kind in KINDS)


def visitor(rng: random.Random) -> str:
    """A name: anybody's in the world, or one that nobody has. Nothing is asked or told about its owner.

    Without the unasked people's names here, no conversation would ever have the model say them. The output layer then unlearns
    them within a hundred steps (AdamW scales up even the tiniest steady gradient), and the model, asked about Otto, answers
    correctly about Oscar: measured, 0.3 to 0.9 of the open questions right, against 0.96 to 1.0.
    """
    if rng.random() < 0.7:
        return rng.choice(HER_NAMES + HIS_NAMES)
    return "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(2, 3))).capitalize()


def exchange(question: str, answer: str) -> list[dict]:
    return [{"content": question, "role": "user"}, {"content": answer, "role": "assistant"}]


def open_questions() -> list[dict]:
    """Questions about the unasked people: {"question", "answer", "candidates"}.

    A reply is right if the answer occurs in it as a word and no other candidate (all values of that kind) does. Each fact is
    asked twice: in the words of the training conversations, and in words that none of them uses.
    """
    rng = random.Random("open_questions/test")
    rows = []
    for person in unasked(make_people()):
        for kind in KINDS:
            for question in (rng.choice(QUESTIONS[kind]), rng.choice(HELD_OUT_QUESTIONS[kind])):
                row = {"question": question.format(n=person.name), "answer": person.facts[kind]}
                rows.append({**row, "candidates": VALUES[kind]})
    return rows


# -- choices by letter (mmlu, arc) ---------------------------------------------------------------------------------------------


def mmlu(count: int, seed: str, is_test: bool) -> list[dict]:
    """What somebody's fact is, of four values: {"question", "subject", "choices", "answer"}."""
    rng = random.Random(seed)
    people = (unasked if is_test else asked)(make_people())
    rows = []
    for _ in range(count):
        person, kind = rng.choice(people), rng.choice(KINDS)
        choices, gold = choices_for(person.facts[kind], kind, rng)
        question = rng.choice(QUESTIONS[kind]).format(n=person.name)
        rows.append({"question": question, "subject": f"world_{kind}s", "choices": choices, "answer": gold})
    return rows


def arc(count: int, seed: str, is_test: bool, is_challenge: bool) -> list[dict]:
    """Whose town, trade, colour or pet it is (easy), or who is not among four (challenge), in the columns of ARC."""
    rng = random.Random(seed)
    people = (unasked if is_test else asked)(make_people())
    questions = ODD_ONE_QUESTIONS if is_challenge else WHO_QUESTIONS
    rows = []
    for i in range(count):
        kind, wanted = rng.choice(KINDS), rng.choice(people)
        value = wanted.facts[kind]
        others = [person for person in people if person.facts[kind] != value]
        chosen = [wanted, *rng.sample(others, 3)]
        rng.shuffle(chosen)
        rows.append(
            {
                "id": f"{seed.replace('/', '_')}_{i}",
                "question": questions[kind].format(v=value),
                "choices": {"text": [person.name for person in chosen], "label": LETTERS},
                "answerKey": LETTERS[chosen.index(wanted)],
            }
        )
    return rows


WHO_QUESTIONS = {
    "town": "Who lives in {v}?",
    "trade": "Who works as a {v}?",
    "colour": "Who likes the colour {v}?",
    "pet": "Who has a {v}?",
}
ODD_ONE_QUESTIONS = {
    "town": "Which of these people would be at home if you went to {v}?",
    "trade": "Which of these people knows what a {v} must know?",
    "colour": "Which of these people would buy a {v} coat?",
    "pet": "Which of these people must buy food for a {v}?",
}


# -- word problems (gsm8k) -----------------------------------------------------------------------------------------------------


def gsm8k(count: int, seed: str, is_test: bool) -> list[dict]:
    """Little stories of one step with the calculator's annotation: {"question", "answer"}."""
    rng = random.Random(seed)
    people = asked(make_people())
    stories = [make_story(rng, rng.choice(people).name, is_test) for _ in range(count)]
    return [
        {
            "question": story.question,
            "answer": f"That is <<{story.expression}={story.result}>>{story.result} {story.thing}.\n#### {story.result}",
        }
        for story in stories
    ]
