"""Hostile text, documents and conversations, mixed from a seed: whatever people, crawlers and attackers write."""

import random
from collections.abc import Callable
from typing import Any

from nanochat.tokenizer import MAX_RUN, SPECIAL_TOKENS

Message = dict[str, Any]
WORDS = ["the", "bird", "naïve", "für", "площадь", "面積", "שלום", "عالم", "don't", "X1", "42", "3,000.5", "ﬁn", "Ａ", "ǅ", "İ"]
PIECES = [  # each short, and each read as something else by some program
    *("\0", "\ufeff", "\u202e", "\u202c", "\u2066", "\u2069", "\u200b", "\u200d", "\u061c", "\x1b[31m", "\x07", "\x08", "\x7f"),
    *(
        "\x1c",
        "\x1d",
        "\x85",
        "\u2028",
        "\u2029",
        "\u00a0",
        "\u3000",
        "\r",
        "\r\n",
        "\n\n",
        "\t",
        "\v",
        "\f",
        "\ufffd",
        "\ufffe",
    ),
    *("e\u0301", "a\u030a\u0323", "👩‍👩‍👧‍👦", "🏳️‍🌈", "\U0010ffff", "\ue000", "\u0378", "𝕏", "ﷺ", "が", "각", "क्ष"),
    *(
        "<<1+1=2>>",
        "<<",
        ">>",
        "#### 12",
        "#### -1,000.5",
        "```python\n",
        "\n```",
        "<script>",
        "&lt;",
        "{name}",
        "%s",
        "${HOME}",
    ),
    *(
        '{"role": "user"}',
        '"}]',
        "\\u0000",
        "\\ud83d",
        "'''",
        '"""',
        "\\",
        "';--",
        "../../etc/passwd",
        "=cmd()",
        "---\n",
        "!!python",
    ),
    *("<|", "|>", "<|bos", "bos|>", "＜|bos|＞", "<|bos|", "<|endoftext|>", "<|im_start|>", "<｜bos｜>", "<|BOS|>", "< |bos|>"),
]
RUNS = [" ", "\n", "\t", "\u00a0", "\u3000", "a", "ab", ".", "1", "\u0301", "\x1c", "面", "🙂", "\r\n", " x", "\ufeff", "<|"]
SURROGATES = ["\ud800", "\udc00", "\ud83d", "\udfff", "\udc80", "\ud83d\ud83d"]


def text(rng: random.Random, *, surrogates: bool = False, longest: int = 2 * MAX_RUN + 5) -> str:
    """A text of a few ingredients; one in fifty has a run of up to `longest` characters."""
    return "".join(_piece(rng, surrogates=surrogates, longest=longest) for _ in range(rng.choice([0, 1, 2, 3, 5, 8, 13])))


def _piece(rng: random.Random, *, surrogates: bool, longest: int) -> str:
    draw = rng.random()
    if draw < 0.35:
        return rng.choice(["", " "]).join(rng.choices(WORDS, k=rng.randint(1, 8)))
    if draw < 0.60:
        return rng.choice(PIECES)
    if draw < 0.75:
        return rng.choice(SPECIAL_TOKENS) * rng.choice([1, 1, 1, 2, 7])
    if draw < 0.88:
        return "".join(any_character(rng) for _ in range(rng.randint(1, 12)))
    if surrogates and draw < 0.94:
        return rng.choice(SURROGATES)
    # 30 of a kind, or rarely many: at and around the length at which runs are cut
    length = rng.choice(
        [rng.randint(2, 60)] * 60 + [MAX_RUN - 1, MAX_RUN, MAX_RUN + 1, 2 * MAX_RUN, rng.randint(longest // 2, longest)]
    )
    run = rng.choice(RUNS)
    return run * (min(length, longest) // len(run))


def any_character(rng: random.Random) -> str:
    """Any code point that UTF-8 can write, assigned or not."""
    code = rng.randrange(rng.choice([0x100, 0x1000, 0x110000]))
    return chr(code) if not 0xD800 <= code < 0xE000 else "\ufffd"


def document(rng: random.Random) -> bytes | None:
    """A document as the bytes in a file: null, empty, blank, not UTF-8 now and then."""
    draw = rng.random()
    if draw < 0.02:
        return None
    if draw < 0.04:
        return rng.choice([b"", b" ", b"\n\t \r\n", "\u3000\u00a0".encode()])
    content = text(rng).encode()
    if draw < 0.08:
        broken = rng.choice([b"\xff", b"\xed\xa0\x80", b"\xc3", b"\xf4\x90\x80\x80", b"\x80" * 9, b"\xc0\x80"])
        place = rng.randrange(len(content) + 1)
        return content[:place] + broken + content[place:]
    return content


def conversation(rng: random.Random, *, surrogates: bool = False) -> list[Message]:
    """The messages of a conversation that is in order, with hostile words in every place."""

    def some() -> str:
        return text(rng, surrogates=surrogates, longest=rng.choice([300] * 20 + [MAX_RUN + 1]))

    messages: list[Message] = [{"role": "system", "content": some()}] if rng.random() < 0.2 else []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        messages += [{"role": "user", "content": some()}, {"role": "assistant", "content": some()}]
        if rng.random() < 0.3:
            kinds = rng.choices(["text", "python", "python_output"], k=rng.randint(0, 4))
            messages[-1]["content"] = [{"type": kind, "text": some()} for kind in kinds]
    if rng.random() < 0.1:
        messages.append({"role": "user", "content": some()})  # nobody answered
    return messages


# -- what is wrong with a conversation: each returns one that must be refused --------------------------------------------------

NO_TEXT = (None, 3, 3.5, float("nan"), float("inf"), True, {}, {"text": "x"}, ["x"], [[]], 10**400)


def _wrong_content(messages: list[Message], rng: random.Random) -> list[Message]:
    messages[rng.randrange(len(messages))]["content"] = rng.choice(NO_TEXT)
    return messages


def _no_content(messages: list[Message], rng: random.Random) -> list[Message]:
    del messages[rng.randrange(len(messages))]["content"]
    return messages


def _wrong_role(messages: list[Message], rng: random.Random) -> list[Message]:
    messages[rng.randrange(len(messages))]["role"] = rng.choice(
        ["tool", "function", "developer", "bot", "User", "assistant ", "", None, 1, ["user"], {"user": 1}, "<|user_start|>"]
    )
    return messages


def _twice(messages: list[Message], rng: random.Random) -> list[Message]:
    place = rng.randrange(len(messages))
    return [*messages[: place + 1], dict(messages[place]), *messages[place + 1 :]]


def _system_late(messages: list[Message], rng: random.Random) -> list[Message]:
    place = rng.randint(2 if messages[0]["role"] == "system" else 1, len(messages))
    return [*messages[:place], {"role": "system", "content": "x"}, *messages[place:]]


def _no_message(messages: list[Message], rng: random.Random) -> list[Message]:
    messages[rng.randrange(len(messages))] = rng.choice([None, "hello", 7, [], ["user", "x"]])  # type: ignore[call-overload]
    return messages


def _bad_part(messages: list[Message], rng: random.Random) -> list[Message]:
    bad = rng.choice(
        [{"type": "image", "text": "x"}, {"type": "text"}, {"text": "x"}, {"type": "text", "text": None}, "x", None, 3, [], {}]
    )
    answers = [message for message in messages if message["role"] == "assistant"]
    rng.choice(answers)["content"] = [{"type": "text", "text": "x"}, bad][rng.randint(0, 1) :]
    return messages


def _parts_of_user(messages: list[Message], rng: random.Random) -> list[Message]:
    asked = [message for message in messages if message["role"] != "assistant"]
    rng.choice(asked)["content"] = [{"type": "text", "text": "x"}]
    return messages


def _too_short(messages: list[Message], rng: random.Random) -> list[Message]:
    return rng.choice([[], messages[:1], [{"role": "assistant", "content": "x"}], [{"role": "system", "content": "x"}]])


def _nested(messages: list[Message], rng: random.Random) -> list[Message]:
    deep: Any = "x"
    for _ in range(rng.choice([3, 90, 400])):
        deep = rng.choice([[deep], {"text": deep}])
    messages[rng.randrange(len(messages))]["content"] = deep
    return messages


Wrong = Callable[[list[Message], random.Random], Any]
WRONG: dict[str, Wrong] = {
    "a content that is no text": _wrong_content,
    "no content": _no_content,
    "an unknown role": _wrong_role,
    "a message twice": _twice,
    "a system message behind the first": _system_late,
    "a message that is none": _no_message,
    "a part that is none": _bad_part,
    "parts of somebody else than the assistant": _parts_of_user,
    "no question and answer": _too_short,
    "deep brackets": _nested,
    "no list": lambda messages, rng: rng.choice(
        [{"message": messages}, {}, None, 3, "x", {"messages": {"a": 1}}, {"messages": None}]
    ),
}


# -- a good row of each task that reads tables ---------------------------------------------------------------------------------

TASK_ROWS = {
    "mmlu": {"question": "q", "choices": ["a", "b"], "answer": 1, "subject": "s"},
    "arc_easy": {"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"},
    "gsm8k": {"question": "q", "answer": "a <<1+1=2>>2\n#### 2"},
    "humaneval": {"prompt": "p", "canonical_solution": "s", "entry_point": "f", "test": "t"},
    "open_questions": {"question": "q", "answer": "a", "candidates": ["a", "b"]},
    "smoltalk": {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
}
