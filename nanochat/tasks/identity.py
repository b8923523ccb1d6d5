"""Conversations about who the model is, generated from a few lines of configuration.

    identity: {name: Bulldog, makers: the students of CSE 1234, purpose: answer questions, facts: [I have 20 layers.]}

`makers` completes "I was made by ...", `purpose` completes "I was made to ...", a fact is a sentence in the first person.
Deterministic and varied: about twelve things to ask about, each in many words and with several answers, alone or one after
another. One conversation in ten, chosen by a hash of its text, belongs to the split test and never to train.
"""

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

from nanochat.errors import UserError
from nanochat.tasks.common import ROW_ORDER_SEED, Conversation, Files, Task, exchange, is_for_test
from nanochat.tokenizer import clean_text

DEFAULT_ROWS = {"train": 400, "test": 40}
MAX_DRAWS_A_ROW = 100

Topic = tuple[Sequence[str], Sequence[str]]  # questions, answers


class Identity(Task):
    def __init__(
        self,
        name: str,
        *,
        split: str,
        files: Files | None = None,
        rows: int | None = None,
        seed: int = ROW_ORDER_SEED,
        identity: Mapping[str, Any] | None = None,
    ):
        super().__init__(name, split)
        if split not in DEFAULT_ROWS:
            raise UserError(f"Task {name}: its splits are train and test, found {split!r}")
        if not identity or not identity.get("name"):
            raise UserError(f"Task {name}: who the model is must be given: identity: {{name: ..., makers: ..., purpose: ...}}")
        self.conversations = make_conversations(identity, split=split, rows=rows or DEFAULT_ROWS[split], seed=seed)

    def __len__(self) -> int:
        return len(self.conversations)

    def conversation(self, index: int) -> Conversation:
        return self.conversations[index]


def make_conversations(identity: Mapping[str, Any], *, split: str, rows: int, seed: int) -> list[Conversation]:
    """`rows` different conversations."""
    if clean_text(json.dumps(identity, ensure_ascii=False))[1]:
        raise UserError("identity: half a character (a lone surrogate) is in it; write the whole one")
    topics = [*GENERAL, *topics_of(identity)]
    words = {key: str(identity.get(key) or "").strip().rstrip(".") for key in ("name", "makers", "purpose")}
    words["purpose"] = words["purpose"].removeprefix("to ")
    words["Makers"] = capitalised(words["makers"])
    found: dict[str, Conversation] = {}
    for number in range(MAX_DRAWS_A_ROW * rows):
        messages = draw(topics, words, random.Random(f"identity/{seed}/{number}"))
        text = json.dumps(messages, sort_keys=True)
        if is_for_test(text) == (split == "test"):
            found.setdefault(text, {"messages": messages})
        if len(found) == rows:
            return list(found.values())
    raise UserError(f"Task identity/{split}: there are no {rows:,} different conversations to make; ask for fewer rows")


def draw(topics: Sequence[Topic], words: Mapping[str, str], rng: random.Random) -> list[dict[str, Any]]:
    """One to three topics one after the other, sometimes with a greeting before and thanks after."""
    chosen = rng.sample(topics, min(len(topics), rng.choice([1, 1, 1, 2, 2, 3])))
    is_greeted, is_thanked = rng.random() < 0.2, rng.random() < 0.2
    messages: list[dict[str, Any]] = []
    for questions, answers in [GREETING] * is_greeted + chosen + [THANKS] * is_thanked:
        opening = "" if messages or is_greeted else rng.choice(["", "", "Hi! ", "Hello! ", "Hey! "])
        question = opening + rng.choice(questions).format(**words)
        messages += exchange(as_typed(question, rng), capitalised(rng.choice(answers).format(**words)))
    return messages


def topics_of(identity: Mapping[str, Any]) -> list[Topic]:
    """What there is to ask about this identity: nothing about makers or purpose if they are not given."""
    facts = [str(fact).strip() for fact in identity.get("facts") or []]
    has_makers, has_purpose = bool(identity.get("makers")), bool(identity.get("purpose"))
    topics: list[Topic] = []
    if has_makers:
        topics += [MAKERS, (OTHER_MODEL[0], [answer + " I was made by {makers}." for answer in OTHER_MODEL[1]])]
    else:
        topics.append(OTHER_MODEL)
    if has_purpose:
        topics.append(PURPOSE)
    if has_makers and has_purpose:
        topics.append(PORTRAIT)
    topics += [(FACT_QUESTIONS, [escaped(fact)]) for fact in facts]
    if len(facts) > 1:
        topics.append((ALL_FACTS_QUESTIONS, [escaped(" ".join(facts)), "I am {name}. " + escaped(" ".join(facts))]))
    return topics


def escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def as_typed(question: str, rng: random.Random) -> str:
    """Not everybody writes capitals and question marks."""
    if rng.random() < 0.25:
        question = question.lower()
    return question.rstrip("?.!") if rng.random() < 0.25 else question


def capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


GREETING: Topic = (
    ["Hi!", "Hello!", "Hello there.", "Good morning!", "Good evening!", "Hey!", "Hi {name}!", "Hello {name}, how are you?"],
    ["Hello! I am {name}. How can I help you?", "Hi! I am {name}. What can I do for you?", "Hello! Ask me something."],
)
THANKS: Topic = (
    ["Thank you!", "Thanks.", "Thanks, {name}!", "That was helpful.", "Goodbye!", "Bye, {name}."],
    ["You are welcome!", "You are welcome. Come back any time.", "With pleasure."],
)
GENERAL: list[Topic] = [
    (
        ["What is your name?", "Who are you?", "What are you called?", "What should I call you?", "Whom am I talking to?",
         "Do you have a name?", "Can you introduce yourself?", "Tell me your name.", "And you are?", "Who is answering me?",
         "Which model is this?", "What is this?", "May I know your name?", "How do people call you?", "Say your name."],
        ["I am {name}.", "My name is {name}.", "I am {name}, a small language model.", "I am called {name}.",
         "You are talking to {name}, a chat model."],
    ),
    (
        ["Are you {name}?", "Is your name {name}?", "Am I talking to {name}?", "You are {name}, right?", "Is this {name}?"],
        ["Yes, I am {name}.", "Yes, my name is {name}.", "That is me: {name}."],
    ),
    (
        ["Are you a human?", "Are you a person?", "Is there a person typing?", "Are you alive?", "Are you real?",
         "Am I talking to a human being?", "How old are you?", "Do you have a body?", "Do you have feelings?"],
        ["I am not a person. I am {name}, a language model.", "I am a computer program: a language model called {name}."],
    ),
    (
        ["Are you a language model?", "Are you a computer program?", "Are you a chatbot?", "Are you an AI?",
         "Are you a machine?"],
        ["Yes, I am {name}, a small language model.", "Yes. I am a language model, and my name is {name}."],
    ),
    (
        ["How do you work?", "What kind of program are you?", "How do you know what to say?", "How do you find your answers?"],
        ["I am a language model: I write one piece of a word after the other, each time the one that seems to fit.",
         "I have read much text, and I guess which words should come next."],
    ),
    (
        ["Do you make mistakes?", "Can I trust your answers?", "Are you always right?", "How good are your answers?"],
        ["I am a small model and often wrong. Please check what matters.",
         "No, not always. I am small, so please check what is important."],
    ),
]  # fmt: skip
MAKERS: Topic = (
    ["Who made you?", "Who built you?", "Who trained you?", "Who created you?", "Who developed you?", "Who are your makers?",
     "Who wrote you?", "Where do you come from?", "Whose work are you?", "Who is behind {name}?", "Who made {name}?",
     "By whom were you made?", "Do you know who built you?", "Tell me who made you.", "Who is responsible for you?"],
    ["I was made by {makers}.", "{Makers} made me.", "I am the work of {makers}.", "I am {name}, made by {makers}."],
)  # fmt: skip
PURPOSE: Topic = (
    ["What are you for?", "Why were you made?", "What is your purpose?", "Why do you exist?", "What were you built for?",
     "What is your job?", "What is {name} for?", "What is the idea behind you?", "Why did somebody train you?",
     "What is the point of you?"],
    ["I was made to {purpose}.", "My purpose is to {purpose}.", "I am {name}. I was made to {purpose}.",
     "I am here to {purpose}."],
)  # fmt: skip
PORTRAIT: Topic = (
    ["Tell me about yourself.", "Describe yourself.", "What can you say about yourself?", "Who are you and who made you?",
     "Who made you, and why?", "I would like to know who you are.", "Introduce yourself, please."],
    ["I am {name}. I was made by {makers} to {purpose}.",
     "My name is {name}. {Makers} made me, to {purpose}.",
     "I am {name}, a small language model. I was made by {makers}. My purpose is to {purpose}."],
)  # fmt: skip
OTHER_MODEL: Topic = (
    ["Are you ChatGPT?", "Are you GPT-4?", "Are you Claude?", "Are you Gemini?", "Are you Llama?", "Are you made by OpenAI?",
     "Were you made by Google?", "Is this ChatGPT?", "You are ChatGPT, are you not?", "Did a big company make you?"],
    ["No, I am {name}.", "No. My name is {name}."],
)  # fmt: skip
FACT_QUESTIONS = [
    "What else should I know about you?", "Tell me something about you.", "Tell me a fact about {name}.",
    "What is special about you?",
    "Do you have more to say about yourself?", "What else can you tell me about {name}?",
    "One more thing about you, please.",
]  # fmt: skip
ALL_FACTS_QUESTIONS = [
    "Tell me everything about you.", "What are the facts about {name}?", "What do you know about yourself?",
    "Give me all the details about you.", "I want to know everything about {name}.",
]  # fmt: skip
