"""The nine special tokens, written by people into every place that text can reach, and said by a model that means them.

Written, they are characters: no id of them may appear that the template did not put there. Said, they are structure: they may
never be shown as characters. The two controls take the protection away.
"""

import json
import os
import random
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tiktoken
import yaml

from nanochat import tokenizer as tokenizer_module
from nanochat.core_bundle import read_bundle, render_prompts
from nanochat.dialogue import Parts, join_parts, question_tokens
from nanochat.engine import Engine
from nanochat.gpt import GPT, GPTConfig
from nanochat.serving.answer import prompt_of
from nanochat.serving.api import parse
from nanochat.serving.limits import Limits
from nanochat.tasks import build
from nanochat.tokenizer import SPECIAL_TOKENS, Tokenizer
from nanochat.tokens import tokenize_shard
from torture import ingredients

Trials = Iterator[str | None]
Ids = Sequence[int]
Place = Callable[[str], tuple[Ids, Ids]]  # a text -> ids with the text in this place, and with a harmless text in it
CONFIG = GPTConfig.preset("nanochat", vocab_size=1, n_layer=2, n_head=2, n_kv_head=2, n_embd=16, sequence_len=64)


def in_text(count: int, seed: int, tokenizer: Tokenizer, folder: Path) -> Trials:
    """9 tokens x every place x `count` texts around the token."""
    all_places = places(tokenizer, folder)
    for name in SPECIAL_TOKENS:
        for where, place in all_places.items():
            for number in range(count):
                rng = random.Random(f"{seed}/special/{name}/{where}/{number}")
                around = [ingredients.text(rng, longest=30)[:40] for _ in range(2)]
                text = name if number == 0 else around[0] + name * rng.randint(1, 3) + around[1]
                yield check(f"{name} in {where}, text {text[:60]!r}", place, text, tokenizer)


def check(what: str, place: Place, text: str, tokenizer: Tokenizer) -> str | None:
    try:
        found, template = place(text)
    except Exception as error:
        return f"{what}: {type(error).__name__}: {error}"
    special, expected = ([token for token in ids if token >= tokenizer.bos_id] for ids in (found, template))
    # what was cut off may have lost a part of the template, and gained nothing
    if special != expected and not (len(special) < len(expected) and is_part(special, expected)):
        return f"{what}: the special ids are {special}, and without it {expected}"
    return None


def is_part(some: list[int], whole: list[int]) -> bool:
    """Whether `some` is `whole` without some of its members."""
    remaining = iter(whole)
    return all(token in remaining for token in some)


def places(tokenizer: Tokenizer, folder: Path) -> dict[str, Place]:
    """Every way of a text into tokens."""

    def both(ids_of: Callable[[str], Ids]) -> Place:
        return lambda text: (ids_of(text), ids_of("x"))

    found: dict[str, Place] = {
        "a text": both(tokenizer.encode),
        "a document": both(lambda text: tokenizer.encode_array(text, bos=True).tolist()),
        "a batch": both(lambda text: np.concatenate(tokenizer.encode_batch([text, "x", text], num_threads=2)).tolist()),
        "a shard": both(lambda text: through_a_shard(text, tokenizer, folder)),
        "a question in a chat": both(lambda text: question_tokens(tokenizer, text + "?")),
        "a question that a base model continues": both(lambda text: question_tokens(tokenizer, text + "?", continues=True)),
    }
    for part in ("system", "user", "text", "python", "python_output"):
        found[f"the {part} of a conversation"] = both(lambda text, part=part: rendered(text, part, tokenizer))
        found[f"the {part} of a conversation that is cut"] = both(lambda text, part=part: rendered(text, part, tokenizer)[:9])
        found[f"the {part} of a prompt"] = both(lambda text, part=part: prompt(text, part, tokenizer))
    for kind in ("a long chat", "a long chat with a system message", "a base model's chat"):
        found[f"{kind} on the server"] = both(lambda text, kind=kind: served(text, kind, tokenizer))
    for name, row in ingredients.TASK_ROWS.items():
        for column in TEXT_COLUMNS[name]:
            found[f"{column} of {name}"] = both(lambda text, n=name, r=row, c=column: of_task(n, r, c, text, tokenizer, folder))
    for kind in CORE_ROWS:
        found[f"an item of CORE, {kind}"] = both(lambda text, kind=kind: of_core(kind, text, tokenizer, folder))
    return found


def through_a_shard(text: str, tokenizer: Tokenizer, folder: Path) -> list[int]:
    pq.write_table(pa.table({"text": [text + "x"]}), folder / "shard.parquet")
    tokenize_shard(folder / "shard.parquet", folder / "shard.npy", tokenizer, sequence_len=1)
    rows = np.load(folder / "shard.npy")
    return rows[:, 1].tolist()  # in rows of <|bos|> and one token


def talk(text: str, part: str) -> dict:
    texts = dict.fromkeys(("system", "user", "text", "python", "python_output"), "x") | {part: text}
    parts = [{"type": kind, "text": texts[kind]} for kind in ("text", "python", "python_output")]
    said = [{"role": "user", "content": texts["user"]}, {"role": "assistant", "content": parts}]
    return {"messages": [{"role": "system", "content": texts["system"]}, *said, *said]}


def rendered(text: str, part: str, tokenizer: Tokenizer) -> list[int]:
    return tokenizer.render_conversation(talk(text, part))[0]


def prompt(text: str, part: str, tokenizer: Tokenizer) -> list[int]:
    return tokenizer.render_prompt(talk(text, part))


def served(text: str, kind: str, tokenizer: Tokenizer) -> list[int]:
    """What the server makes of a chat that is longer than the model reads."""
    said = [{"role": "user", "content": text}, {"role": "assistant", "content": text}] * 4 + [
        {"role": "user", "content": text + "?"}
    ]
    if kind.endswith("system message"):
        said = [{"role": "system", "content": text}, *said]
    body = json.dumps({"messages": said, "max_tokens": 8}).encode()
    request = parse(body, model="m", defaults={"temperature": 0.0, "top_k": 1, "max_tokens": 8}, longest=64, limits=Limits())
    model = type("Model", (), {"config": CONFIG})()
    engine = type("Engine", (), {"tokenizer": tokenizer, "model": model})()
    tokens, _ = prompt_of(engine, request, continues=kind.startswith("a base"))
    return tokens


TEXT_COLUMNS = {
    "mmlu": ("question", "choices"),
    "arc_easy": ("question", "choices"),
    "gsm8k": ("question", "answer"),
    "humaneval": ("prompt", "canonical_solution"),
    "open_questions": ("question", "answer"),
    "smoltalk": ("messages",),
}


def of_task(name: str, row: dict, column: str, text: str, tokenizer: Tokenizer, folder: Path) -> list[int]:
    """The ids of a task's item with the text in a column; inside GSM8K's calls, too."""
    changed = json.loads(json.dumps(row))
    match changed[column]:
        case str():
            changed[column] = f"{text}<<{text.replace('>', '')}=2>>" if (name, column) == ("gsm8k", "answer") else text + "x"
        case {"text": [_, *_] as choices} | ([str(), *_] as choices):
            choices[0] = text
        case list(messages):
            messages[0]["content"] = messages[1]["content"] = text
    path = folder / "task.parquet"
    pq.write_table(pa.Table.from_pylist([changed]), path)
    (item,) = build(name, split="test", files={f"{name}/test": path})
    ids = tokenizer.render_conversation(item)[0]
    # a text without brackets is no call of the calculator, so that the number of calls depends on it: those are ours
    return [token for token in ids if token not in calls(tokenizer)] if name == "gsm8k" else ids


def calls(tokenizer: Tokenizer) -> set[int]:
    return {tokenizer.specials[name] for name in SPECIAL_TOKENS if "python" in name or "output" in name}


CORE_ROWS = {
    "multiple_choice": lambda text: {"query": text, "choices": [text, "b"], "gold": 0},
    "schema": lambda text: {"context_options": [text, "b"], "continuation": text, "gold": 0},
    "language_modeling": lambda text: {"context": text, "continuation": text},
}


def of_core(kind: str, text: str, tokenizer: Tokenizer, folder: Path) -> list[int]:
    entry = {"label": "t", "dataset_uri": "t.jsonl", "num_fewshot": [1], "icl_task_type": kind, "continuation_delimiter": " "}
    with zipfile.ZipFile(folder / "core.zip", "w") as bundle:
        bundle.writestr("core.yaml", yaml.safe_dump({"icl_tasks": [entry]}))
        bundle.writestr("eval_meta_data.csv", "Eval Task,Random baseline\nt,0\n")
        bundle.writestr("eval_data/t.jsonl", f"{json.dumps(CORE_ROWS[kind](text))}\n" * 2)
    (task,) = read_bundle(folder / "core.zip")
    return [token for ids in tokenizer.encode_batch(render_prompts(task, 0), bos=True) for token in ids.tolist()]


# -- said by a model -----------------------------------------------------------------------------------------------------------


def in_answers(count: int, seed: int, tokenizer: Tokenizer) -> Trials:
    """Random tokens, special ones among them, as an answer in a chat; and a model that says them in its text."""
    for number in range(count):
        rng = random.Random(f"{seed}/answers/{number}")
        tokens = [rng.randrange(tokenizer.vocab_size) for _ in range(rng.randint(1, 60))]
        tokens = [rng.randrange(tokenizer.bos_id, tokenizer.vocab_size) if rng.random() < 0.3 else token for token in tokens]
        yield check_answer(f"seed {seed}, answer {number}", tokens, tokenizer)
    model = GPT(GPTConfig.preset("nanochat", **{**SIZES, "vocab_size": tokenizer.vocab_size})).init_weights(seed).eval()
    engine = Engine(model, tokenizer)
    for number in range(max(1, count // 20)):
        settings = {"max_new_tokens": 60, "temperature": 2.0, "seed": number}
        (text,) = engine.complete(["Once"], **settings)
        (tokens,) = engine.generate_batch([tokenizer.encode("Once", bos=True)], **settings)
        ordinary = tokenizer.decode_bytes([token for token in tokens if token < tokenizer.bos_id]).decode(errors="replace")
        yield None if text == ordinary else f"seed {seed}, continued text {number}: {text!r} is not {ordinary!r}"


SIZES = {"n_layer": 1, "n_head": 2, "n_kv_head": 2, "n_embd": 16, "sequence_len": 128}


def check_answer(what: str, tokens: list[int], tokenizer: Tokenizer) -> str | None:
    parts = Parts(tokenizer)
    pieces = [part for token in tokens for part in parts.read(token)] + parts.flush()
    content = join_parts(pieces)
    shown = content if isinstance(content, str) else "".join(part["text"] for part in content)
    # a special token ends a character that was not whole
    ends = {token for token in tokens if token >= tokenizer.bos_id}
    spans, span = [], []
    for token in [*tokens, tokenizer.bos_id]:
        if token in ends or token == tokenizer.bos_id:
            spans.append(tokenizer.decode_bytes(span).decode(errors="replace"))
            span = []
        else:
            span.append(token)
    if len(re.sub(r"\W", "", shown)) != len(re.sub(r"\W", "", "".join(spans))):
        return f"{what}: shown is {shown!r}, and the ordinary tokens say {''.join(spans)!r}"
    for name in SPECIAL_TOKENS:
        if name in shown and name not in "".join(spans):
            return f"{what}: {name} is shown"
    return None


# -- controls ------------------------------------------------------------------------------------------------------------------


def without_the_cut(tokenizer: Tokenizer) -> Trials:
    with patch.object(tokenizer_module, "split_long_runs", lambda text: [text]), quiet():
        try:
            tokenizer.encode(" " * 1_000_000)
        except BaseException as error:  # a panic is no Exception
            yield f"{type(error).__name__}: {str(error)[:100]}"
        else:
            yield None


def with_specials_allowed(seed: int, tokenizer: Tokenizer) -> Trials:
    """The same check of one place, with an encoder that reads special tokens in text as special tokens."""
    encoding: tiktoken.Encoding = tokenizer._encoding
    for name in SPECIAL_TOKENS:
        text = ingredients.text(random.Random(f"{seed}/{name}"), longest=30) + name
        yield check(name, lambda text: (encoding.encode(text, allowed_special="all"), []), text, tokenizer)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what a library of another language writes to the standard error."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
