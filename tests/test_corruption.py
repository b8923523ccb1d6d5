"""A damaged artefact is refused, made again or told, and never used: a trial of each type. `make torture` makes thousands.

What is tried, and what counts as harm, is in tests/torture/corruption.py.
"""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from project import Project
from torture.corruption import (
    READ_BY_PEOPLE,
    Consumer,
    World,
    attempt_all,
    control_trials,
    make_world,
    plan,
    without_consumers,
)
from torture.finished import Zygotes, digests
from torture.mutations import DELETED, MUTATIONS, SWAPPED, mutate

HALF_WAY = ("base_train", "base_eval", "chat_eval/sft")
QUICK = ("results/tiny/sft", "results/tiny/tokens/sft", "results/tiny/tokens/pretrain", "chat results/tiny/sft")


def is_quick(consumer: Consumer) -> bool:
    """Those that do little; together they open every type."""
    is_half_way = consumer.keeps == "state" and consumer.name.removesuffix(", half-way").endswith(HALF_WAY)
    return is_half_way or consumer.keeps == "files" or consumer.name in QUICK


@pytest.fixture(scope="module")
def world(quick_run, tmp_path_factory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("corruption")
    with Zygotes(folder) as zygotes:
        world = make_world(Project(quick_run), folder / "trees", zygotes, only=is_quick)
        before = digests(world.folder)
        yield world
        assert digests(world.folder) == before, "a trial changed what all trials share"


@pytest.mark.slow
def test_every_type_of_artefact_is_read_by_a_program_or_said_to_be_read_by_people(world):
    unread = set(without_consumers(world))
    assert unread == READ_BY_PEOPLE.keys() & world.types.keys(), (
        "a type that nobody reads: name it in READ_BY_PEOPLE of tests/torture/corruption.py, or a consumer in consumers_of"
    )


@pytest.mark.slow
def test_no_damaged_file_of_any_type_is_used_without_a_word(world):
    outcomes = attempt_all(plan(world, 1, seed=1), world, say=print)
    assert len(outcomes) >= 25  # most types: of some there is a single file, which nothing can be swapped with
    assert [outcome.wrong for outcome in outcomes if outcome.wrong] == []
    assert [outcome.seen_by_verify for outcome in outcomes if outcome.seen_by_verify not in (None, "not asked")] == []


@pytest.mark.slow
def test_without_sha256_the_same_check_finds_damage_that_is_used(world):
    outcomes = attempt_all(control_trials(world, 10, seed=1), world, say=print)
    assert any(outcome.word == "used silently" for outcome in outcomes), [outcome.word for outcome in outcomes]


# -- the mutations -----------------------------------------------------------------------------------------------------------


def table(rows: int) -> bytes:
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.table({"text": [f"row {n}" for n in range(rows)]}), sink)
    return sink.getvalue().to_pybytes()


CONTENTS = {
    "a.json": (b'{"format": 2, "x": [1, 2]}', b'{"format": 2, "x": [3]}'),
    "a.jsonl": (b'{"a": 1}\n{"a": 2}\n', b'{"a": 3}\n'),
    "a.parquet": (table(9), table(8)),
    "a.html": (b"<p>text</p>", b"<p>other</p>"),
    "a.png": (os.urandom(5000), os.urandom(4000)),
}


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mutation_changes_the_file_and_none_of_its_hard_links(tmp_path, name, mutation):
    content, other = CONTENTS[name]
    path, link, peer = tmp_path / name, tmp_path / "link", tmp_path / f"peer_{name}"
    path.write_bytes(content)
    peer.write_bytes(other)
    os.link(path, link)
    stamp = path.stat().st_mtime_ns
    changed = mutate(path, mutation, random.Random(1), peers=[peer])
    assert changed == ([path, peer] if mutation == SWAPPED else [path])
    assert link.read_bytes() == content
    if mutation == DELETED:
        assert not path.exists()
    else:
        assert path.read_bytes() != content and path.stat().st_mtime_ns == stamp


def test_there_is_nothing_to_swap_with_the_same_content(tmp_path):
    paths = [tmp_path / name for name in ("a", "b")]
    for path in paths:
        Path(path).write_text("same")
    assert mutate(paths[0], SWAPPED, random.Random(1), peers=paths[1:]) == []
