"""Hostile conversations: JSON lines and parquet -> task -> rows and masks; and malformed ones, which are refused."""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.errors import UserError
from nanochat.tasks import build
from nanochat.tokenizer import Tokenizer, clean_text
from nanochat.tokens import tokenize_conversations
from torture import ingredients
from torture.hostile_documents import FILE_ITEMS, Trials, attempt, check_encoding


def conversations(num_files: int, seed: int, tokenizer: Tokenizer, folder: Path, items: int = FILE_ITEMS) -> Trials:
    """A trial a conversation, and two a file: the files hold JSON lines, and where all contents are texts parquet as well."""
    for number in range(num_files):
        rng = random.Random(f"{seed}/conversations/{number}")
        written = [ingredients.conversation(rng, surrogates=True) for _ in range(items)]
        cleaned = [clean(messages) for messages in written]
        for place, messages in enumerate(cleaned):
            yield attempt(
                f"seed {seed}, file {number}, conversation {place}",
                lambda messages=messages: check_rendering(messages, tokenizer, rng),  # noqa: B023
            )
        lines = write_lines(written, folder / "own.jsonl", rng)
        yield attempt(f"seed {seed}, file {number}", lambda: check_task(lines, written, cleaned, tokenizer, rng))  # noqa: B023
        plain = [messages for messages in cleaned if all(isinstance(m["content"], str) for m in messages)]
        table = write_table(plain, folder / "smoltalk.parquet", rng)
        yield attempt(f"seed {seed}, file {number}, parquet", lambda: check_table(table, plain))  # noqa: B023


def clean(messages: Any) -> Any:
    """A deep copy with each lone surrogate as U+FFFD."""
    return json.loads(
        json.dumps(messages),
        object_hook=lambda part: {k: clean_text(v)[0] if isinstance(v, str) else v for k, v in part.items()},
    )


def write_lines(written: list, path: Path, rng: random.Random) -> Path:
    """JSON lines in every shape that is allowed: lists and dicts, extra keys, blank lines, any line ends, none at the end."""
    lines = []
    for messages in written:
        told = [{**message, "name": "x", "weight": 1} if rng.random() < 0.1 else message for message in messages]
        content = {"messages": told, "id": 7} if rng.random() < 0.5 else told
        text = json.dumps(content, ensure_ascii=rng.random() < 0.5)
        lines += [text.encode("utf-8") if is_whole(text) else json.dumps(content).encode()]
        lines += [rng.choice([b"", b"  ", b"\t"])] * (rng.random() < 0.1)
    ends = rng.choice([b"\n", b"\r\n"])
    start, last = rng.choice([b"", b"\xef\xbb\xbf"]), rng.choice([b"", ends])
    path.write_bytes(start + ends.join(lines) + last)
    return path


def is_whole(text: str) -> bool:
    return clean_text(text)[1] == 0 and clean_text(text)[0] == text


def write_table(plain: list, path: Path, rng: random.Random) -> Path:
    told = [[{**message, "name": None} for message in messages] for messages in plain]
    table = pa.table({"messages": rng.choice([plain, told]), "source": ["x"] * len(plain)})
    pq.write_table(table, path, row_group_size=rng.choice([1, 7, 1024]))
    return path


def by_hand(messages: list, tokenizer: Tokenizer) -> list[tuple[list[int], int]]:
    """The spans of ids of a conversation with their mask, as the template says."""
    special = tokenizer.specials
    spans, system = [([tokenizer.bos_id], 0)], ""
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "system":
            system = content + "\n\n"
            continue
        said = int(role == "assistant")
        parts = content if isinstance(content, list) else [{"type": "text", "text": system + content}]
        system = ""
        spans.append(([special[f"<|{role}_start|>"]], 0))
        for part in parts:
            mark = {"python": "python", "python_output": "output"}.get(part["type"])
            ids = tokenizer.encode(part["text"])
            ids = [special[f"<|{mark}_start|>"], *ids, special[f"<|{mark}_end|>"]] if mark else ids
            spans.append((ids, said * (mark != "output")))
        spans.append(([special[f"<|{role}_end|>"]], said))
    return spans


def check_rendering(messages: list, tokenizer: Tokenizer, rng: random.Random) -> str | None:
    spans = by_hand(messages, tokenizer)
    ids = [token for span, _ in spans for token in span]
    mask = [value for span, value in spans for _ in span]
    length = rng.choice([None, 1, 5, 50, 500])
    if tokenizer.render_conversation({"messages": messages}, length) != (ids[:length], mask[:length]):
        return f"rendered (max_tokens {length}), it is not what the template says"
    texts = [part["text"] for m in messages if isinstance(m["content"], list) for part in m["content"]]
    for text in [*texts, *(m["content"] for m in messages if isinstance(m["content"], str))]:
        if problem := check_encoding(text, tokenizer):
            return problem
    end = max(i for i, m in enumerate(messages) if m["role"] == "user")
    asked = [token for span, _ in by_hand(messages[: end + 1], tokenizer) for token in span]
    if tokenizer.render_prompt({"messages": messages}) != [*asked, tokenizer.specials["<|assistant_start|>"]]:
        return "the prompt is not what the template says"
    return None


def check_task(path: Path, written: list, cleaned: list, tokenizer: Tokenizer, rng: random.Random) -> str | None:
    task = build("custom", split="train", files={}, file=path)
    if as_texts(conversation["messages"] for conversation in task) != as_texts(cleaned):
        return "other conversations were read than are in the file"
    num_replaced = sum(clean_text(text)[1] for messages in written for text in texts_of(messages))
    if task.oddities.get("replaced_characters", 0) != num_replaced:
        return f"{num_replaced} lone surrogates in the file, counted: {task.oddities}"
    return check_conversation_rows(path, list(task), cleaned, tokenizer, sequence_len=rng.choice([6, 40, 200, 3_000]))


def as_texts(conversations: Any) -> Counter:
    return Counter(json.dumps(messages, sort_keys=True) for messages in conversations)


def texts_of(messages: list) -> Iterator[str]:
    for message in messages:
        content = message["content"]
        yield from [content] if isinstance(content, str) else (part["text"] for part in content)


def check_conversation_rows(path: Path, task: list, cleaned: list, tokenizer: Tokenizer, *, sequence_len: int) -> str | None:
    made = []
    for threads in (1, 2):
        files = path.with_name(f"c{threads}.npy"), path.with_name(f"m{threads}.npy")
        counts = tokenize_conversations(
            task, *files, tokenizer, sequence_len=sequence_len, mask_user=True, num_threads=threads
        )  # fmt: skip
        made.append((*(file.read_bytes() for file in files), counts))
    if made[0] != made[1]:
        return "one and two threads made different rows"
    found, masks, count = np.load(files[0]), np.load(files[1]), made[0][2]
    whole = [[(t, v) for span, v in by_hand(messages, tokenizer) for t in span] for messages in cleaned]
    kept = [pairs for pairs in whole if any(value for _, value in pairs[1 : sequence_len + 1])]
    if (count["conversations"], count["without_target"]) != (len(kept), len(whole) - len(kept)):
        return f"{len(kept)} of {len(whole)} have a target, the counts say {count}"
    if found.size != count["tokens_in"] - count["tokens_truncated"] + count["tokens_padding"]:
        return "rows x (T+1) is not tokens_in - tokens_truncated + tokens_padding"
    if pieces_of(found, masks, tokenizer) != Counter(tuple(pairs[: sequence_len + 1]) for pairs in kept):
        return "the rows hold other conversations, or other masks"
    if count["tokens_supervised"] != masks.sum():
        return "the mask has another number of targets than the counts"
    return None


def pieces_of(found: np.ndarray, masks: np.ndarray, tokenizer: Tokenizer) -> Counter:
    """The conversations in the rows, as (id, mask) pairs: each begins with <|bos|>; <|bos|> alone is padding."""
    pieces: Counter = Counter()
    for tokens, mask in zip(found, masks, strict=True):
        starts = [*np.flatnonzero(tokens == tokenizer.bos_id), len(tokens)]
        for start, end in pairwise(starts):
            if end - start > 1:
                pieces[tuple(zip(tokens[start:end].tolist(), mask[start:end].tolist(), strict=True))] += 1
            elif mask[start]:
                pieces["padding that is supervised"] += 1
    return pieces


def check_table(path: Path, plain: list) -> str | None:
    task = build("smoltalk", split="train", files={"smoltalk/train": path})
    if as_texts(conversation["messages"] for conversation in task) != as_texts(plain):
        return "other conversations were read than are in the file"
    return None


# -- malformed conversations -------------------------------------------------------------------------------------------------

GOOD = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
BAD_LINES = [
    b"{", b"[", b"hello", b"[" * 100_000, b'{"a":' * 5_000, b"\xff\xff", b'"\xed\xa0\x80"', b"\x00", b"[]]", b"{} {}", b"'x'",
    b'[{"role": "user", "content": ' + b"9" * 5_000 + b"}]", b'[{"role": "user", "role": "user", "content": "q"}]',
    b'{"messages": [], "messages": []}', b"NaN", b"\xef\xbb\xbf[]", b'["\\ud800', b"[" + b"null," * 10_000 + b"null]",
]  # fmt: skip


def malformed_lines(count: int, seed: int, folder: Path) -> Trials:
    """One bad line among good ones."""
    for number in range(count):
        rng = random.Random(f"{seed}/lines/{number}")
        name = rng.choice(list(ingredients.WRONG))
        wrong = ingredients.WRONG[name](ingredients.conversation(rng), rng)
        bad = json.dumps(wrong).encode() if rng.random() < 0.8 else rng.choice(BAD_LINES)
        place = rng.randint(1, 4)
        lines = [bad if line == place else json.dumps(GOOD).encode() for line in range(1, 5)]
        path = folder / "bad.jsonl"
        path.write_bytes(b"\n".join(lines))
        yield attempt(
            f"seed {seed}, malformed line {number} ({name})",
            lambda path=path, place=place: refused(lambda: read_all("custom", path), path, f"line {place}"),
        )


def malformed_rows(count: int, seed: int, folder: Path) -> Trials:
    for number in range(count):
        rng = random.Random(f"{seed}/rows/{number}")
        name = rng.choice(["an unknown role", "a message twice", "a system message behind the first", "no question and answer"])
        talk = [m | {"content": "x"} for m in ingredients.conversation(rng)]
        wrong = [m | {"role": str(m["role"])} for m in ingredients.WRONG[name](talk, rng)]
        if rng.random() < 0.3:
            wrong = rng.choice([None, [None], [{"role": None, "content": None}], [GOOD[0], GOOD[1] | {"content": None}]])
        place, path = rng.randint(0, 3), folder / "bad.parquet"
        table = pa.table({"messages": [wrong if line == place else GOOD for line in range(4)]})
        pq.write_table(table, path)
        yield attempt(
            f"seed {seed}, malformed row {number} ({name})",
            lambda path=path, place=place: refused(lambda: read_all("smoltalk", path), path, f"row {place}"),
        )


def read_all(name: str, path: Path) -> None:
    if name == "custom":
        build(name, split="train", files={}, file=path)
    else:
        list(build(name, split="train", files={f"{name}/train": path}))


def refused(function: Callable[[], Any], path: Path, place: str) -> str | None:
    """What is wrong with a refusal: there was none, or it does not say where."""
    try:
        function()
    except UserError as error:
        return None if path.name in str(error) and place in str(error) else f"the message names no place: {error}"
    return "it was not refused"
