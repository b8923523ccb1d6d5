"""Hostile text through the real path, the trials of tests/torture/hostile_text.py in smaller numbers; and what a cut costs."""

import json
import random
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torture import hostile_documents, hostile_files, hostile_sizes, hostile_talk, hostile_text, ingredients, special_tokens
from torture.board import row

from nanochat.core_bundle import KINDS as CORE_KINDS
from nanochat.core_bundle import parse_item
from nanochat.dataset import read_documents
from nanochat.tasks import build
from nanochat.tokenizer import MAX_RUN, SPECIAL_TOKENS, split_long_runs

SEED = 7


@pytest.fixture(scope="module")
def tokenizer():
    return hostile_text.a_tokenizer(SEED)


def all_hold(trials, *, at_least: int) -> None:
    found = row("", "", trials)
    assert found.failures == 0, "\n".join(found.examples)
    assert found.trials >= at_least


def test_hostile_documents_become_tokens_that_say_the_same_text(tokenizer, tmp_path):
    all_hold(hostile_documents.documents(25, SEED, tokenizer, tmp_path), at_least=5_000)


def test_hostile_conversations_become_tokens_and_masks_that_say_the_same(tokenizer, tmp_path):
    all_hold(hostile_talk.conversations(20, SEED, tokenizer, tmp_path), at_least=5_000)


def test_a_malformed_conversation_is_refused_with_its_file_and_line(tmp_path):
    all_hold(hostile_talk.malformed_lines(400, SEED, tmp_path), at_least=400)


def test_a_malformed_conversation_in_parquet_is_refused_with_its_file_and_row(tmp_path):
    all_hold(hostile_talk.malformed_rows(60, SEED, tmp_path), at_least=60)


def test_each_way_of_being_wrong_is_wrong_and_the_good_ones_are_good(tmp_path):
    """So that a refusal is of what was made wrong, and a good one is never refused."""
    rng = random.Random(SEED)
    path = tmp_path / "own.jsonl"
    for name, make in ingredients.WRONG.items():
        talk = ingredients.conversation(rng)
        hostile_talk.write_lines([talk], path, rng)
        hostile_talk.read_all("custom", path)
        path.write_text(json.dumps(make(talk, rng)))
        assert hostile_talk.refused(lambda: hostile_talk.read_all("custom", path), path, "line 1") is None, name


def test_special_tokens_in_text_never_become_special_ids(tokenizer, tmp_path):
    all_hold(special_tokens.in_text(3, SEED, tokenizer, tmp_path), at_least=9 * 38 * 3)


def test_special_tokens_that_a_model_says_are_never_shown_as_text(tokenizer):
    all_hold(special_tokens.in_answers(200, SEED, tokenizer), at_least=210)


@pytest.mark.parametrize("number", range(3))
def test_what_is_no_file_or_another_is_refused_by_name(tmp_path, number):
    if number == 0:
        all_hold(hostile_files.no_files(tmp_path), at_least=120)
    elif number == 1:
        all_hold(hostile_files.table_rows(400, SEED, tmp_path), at_least=400)
    else:
        all_hold(hostile_files.yaml_bombs(), at_least=14)


def test_a_damaged_or_hostile_bundle_is_refused_by_name(tmp_path):
    all_hold(hostile_files.bundles(300, SEED, tmp_path), at_least=330)


def test_long_texts_are_tokenized_in_bounded_memory_and_processor_time(tmp_path):
    all_hold(hostile_sizes.huge(2_000_000, tmp_path), at_least=7)


def test_the_vocabulary_is_the_same_for_threads_hash_seeds_and_orders():
    all_hold(hostile_sizes.vocabularies(SEED, runs=3), at_least=3)


# -- controls: with the protection taken away, the same trials fail ----------------------------------------------------------


def test_control_without_the_cut_of_long_runs_the_tokenizer_panics(tokenizer):
    found = row("", "", special_tokens.without_the_cut(tokenizer), is_control=True)
    assert found.holds and "StackOverflow" in found.examples[0]


def test_control_with_special_tokens_allowed_text_makes_special_ids(tokenizer):
    found = row("", "", special_tokens.with_specials_allowed(SEED, tokenizer), is_control=True)
    assert found.failures == found.trials == len(SPECIAL_TOKENS)


def test_control_a_lost_document_is_noticed(tokenizer, tmp_path, monkeypatch):
    read = hostile_documents.read_documents
    monkeypatch.setattr(hostile_documents, "read_documents", lambda path, **more: list(read(path, **more))[1:])
    assert row("", "", hostile_documents.documents(1, SEED, tokenizer, tmp_path)).failures == 1


# -- the cut of long runs ----------------------------------------------------------------------------------------------------


def plain_cut(text: str) -> list[str]:
    """Each run of blanks or of non-blanks in pieces of MAX_RUN, as the definition says; its rest joins what follows."""
    pieces, current = [], ""
    for run in re.findall(r"[^\S\x1c-\x1f]+|[\S\x1c-\x1f]+", text):
        while len(run) >= MAX_RUN:
            pieces.append(current + run[:MAX_RUN])
            current, run = "", run[MAX_RUN:]
        current += run
    return [*pieces, current] if current else pieces


def test_long_runs_are_cut_as_the_definition_says():
    rng = random.Random(SEED)
    lengths = [1, 5, MAX_RUN - 1, MAX_RUN, MAX_RUN + 1, 2 * MAX_RUN, 2 * MAX_RUN + 3]
    for _ in range(300):
        runs = [
            rng.choice([" ", "\n", "x", ".", "\x1c", "\u3000", "面"]) * rng.choice(lengths) for _ in range(rng.randint(1, 6))
        ]
        text = "".join(runs)
        assert split_long_runs(text) == (plain_cut(text) if len(text) > MAX_RUN else [text])


# -- docs/formats.md ---------------------------------------------------------------------------------------------------------

FORMATS = (Path(__file__).parents[1] / "docs" / "formats.md").read_text()


def test_the_examples_of_the_formats_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (python,) = re.findall(r"^```python\n(.*?)^```", FORMATS, re.MULTILINE | re.DOTALL)
    exec(python, {})
    assert len(list(read_documents("shard_00000.parquet"))) == 2
    lines = [
        line for block in re.findall(r"^```json\n(.*?)^```", FORMATS, re.MULTILINE | re.DOTALL) for line in block.splitlines()
    ]
    Path("own.jsonl").write_text("\n".join(line for line in lines if "role" in line))
    assert len(build("custom", split="train", files={}, file="own.jsonl")) == 3
    items = [json.loads(line) for line in lines if "role" not in line]
    assert [len(parse_item(row, kind, 1).options) for row, kind in zip(items, CORE_KINDS, strict=True)] == [2, 2, 1]
    rows = re.findall(r"^\| `(\w+)`.*\| `(\{.*\})` \|$", FORMATS, re.MULTILINE)
    assert [name for name, _ in rows] == ["mmlu", "arc_easy", "gsm8k", "open_questions"]
    for name, example in rows:
        pq.write_table(pa.Table.from_pylist([json.loads(example)]), "row.parquet")
        assert build(name, split="test", files={f"{name}/test": Path("row.parquet")})[0]["messages"]


def test_the_tests_that_the_formats_name_exist():
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", FORMATS))
    assert len(named) > 15
    assert not [name for name in named if f"def {name}(" not in tests]
