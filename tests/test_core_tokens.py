"""CORE's prompts as tokens: they are what the plain way makes, come back to the bit, and what is wrong is refused in words."""

import hashlib
import json
import logging
import random

import numpy as np
import pytest
import yaml
from bundles import CHOICES, ENTRIES, META, SCHEMAS, entry, jsonl, write_bundle
from small_models import small_tokenizer

from nanochat.core_bundle import read_bundle, render_prompts
from nanochat.core_tokens import common_length, find_starts, load, prepare, save
from nanochat.errors import UserError
from nanochat.manifest import open_verified, publish


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


def published(core, folder):
    folder.mkdir()
    publish(folder / "manifest.json", specification={}, inputs={}, files=save(core, folder), results={}, record={})
    return open_verified(folder / "manifest.json")


def in_words(core):
    """All of it, as values that can be compared."""
    tasks = [(task.about(), [plain(task[index]) for index in range(len(task))]) for task in core.tasks]
    return tasks, core.num_listed, core.max_per_task


def plain(item):
    return (
        *(item.line, item.gold, item.prompt_sha256, item.starts, item.prefix.tolist()),
        *(suffix.tolist() for suffix in item.suffixes),
    )


# -- what is kept ------------------------------------------------------------------------------------------------------------


def require_as_rendered(core, bundle, tokenizer, **chosen):
    for task, text in zip(core.tasks, read_bundle(bundle, **chosen), strict=True):
        assert len(task) == len(text.items) > 0
        assert sum(map(tokens_of, task)) == task.num_tokens()
        for index, item in enumerate(text.items):
            prompts, found = render_prompts(text, index), task[index]
            sequences = tokenizer.encode_batch(prompts, bos=True)
            options = sequences[-len(item.options) :]
            assert [[*found.prefix, *suffix] for suffix in found.suffixes] == [list(option) for option in options]
            assert (found.line, found.gold) == (item.line, item.gold)
            assert found.prompt_sha256 == hashlib.sha256("\0".join(prompts).encode()).hexdigest()[:16]
            assert list(found.starts) == find_starts(text.kind, sequences)
            assert all(
                1 <= len(found.prefix) <= start < len(option) for start, option in zip(found.starts, options, strict=True)
            )
            assert len(found.prefix) == min(common_length(options), *found.starts), "no shorter than it could be"


def tokens_of(item):
    return len(item.prefix) + sum(map(len, item.suffixes))


def test_an_item_is_what_its_rendered_texts_encode_to(tokenizer, tmp_path):
    bundle = write_bundle(tmp_path)
    core = prepare(bundle, tokenizer)
    assert [task.label for task in core.tasks] == ["choices", "schemas", "texts"] and core.num_listed == 3
    require_as_rendered(core, bundle, tokenizer)
    assert core.tasks[0].tokens.dtype == np.uint16


def test_items_of_the_real_bundle_are_what_their_texts_encode_to(tokenizer, shared_data):
    bundle = shared_data / "eval_bundle.zip"
    require_as_rendered(prepare(bundle, tokenizer, max_per_task=6, num_threads=2), bundle, tokenizer, max_per_task=6)


def test_what_was_saved_comes_back_mapped_into_memory(tokenizer, tmp_path):
    core = prepare(write_bundle(tmp_path), tokenizer, tasks=["texts", "choices"], max_per_task=2)
    again = load(published(core, tmp_path / "core"))
    assert in_words(again) == in_words(core)
    assert [task.num_tokens() for task in again.tasks] == [task.num_tokens() for task in core.tasks]
    assert all(isinstance(task.tokens.base.base, np.memmap) for task in again.tasks), "not read in"


def test_the_bytes_are_the_same_for_any_number_of_threads(tokenizer, tmp_path):
    bundle, found = write_bundle(tmp_path), []
    for num_threads in (1, 3):
        folder = tmp_path / str(num_threads)
        folder.mkdir()
        names = save(prepare(bundle, tokenizer, num_threads=num_threads), folder)
        found.append({name: (folder / name).read_bytes() for name in names})
    assert found[0] == found[1]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_a_subset_is_the_first_items_of_the_shuffle_and_says_so(tokenizer, tmp_path):
    rows = [{"context": f"Number {n}", "continuation": "follows"} for n in range(50)]
    bundle = write_bundle(tmp_path, {"eval_data/a/texts.jsonl": jsonl(rows)})
    (task,) = prepare(bundle, tokenizer, tasks=["texts"], max_per_task=7).tasks
    order = list(range(50))
    random.Random(1337).shuffle(order)
    assert [task[index].line - 1 for index in range(len(task))] == order[:7]
    assert (len(task), task.num_available) == (7, 50)
    summary = prepare(bundle, tokenizer, tasks=["texts"], max_per_task=7).summary()["tasks"]["texts"]
    assert (summary["num_items"], summary["num_available"], summary["tokens"]) == (7, 50, task.num_tokens())


def test_a_tokenizer_may_give_lists_and_one_of_too_many_tokens_is_refused(tokenizer, tmp_path):
    class Lists:
        def __init__(self, added):
            self.added = added

        def encode_batch(self, texts, num_threads=1, bos=False):
            return [[int(i) + self.added for i in ids] for ids in tokenizer.encode_batch(texts, num_threads, bos)]

    bundle = write_bundle(tmp_path)
    assert in_words(prepare(bundle, Lists(0))) == in_words(prepare(bundle, tokenizer))
    with pytest.raises(ValueError, match="does not fit into 16 bits"):
        prepare(bundle, Lists(65_500))


# -- what is scored ----------------------------------------------------------------------------------------------------------


def starts(kind, *sequences):
    return find_starts(kind, [np.array(sequence, dtype=np.uint16) for sequence in sequences])


@pytest.mark.parametrize(
    ("kind", "sequences", "expected"),
    [
        ("multiple_choice", ([9, 1, 2, 3], [9, 1, 2, 4, 5]), [3, 3]),
        ("multiple_choice", ([9, 1, 2], [9, 1, 2, 4]), [2, 2]),  # a choice begins another
        ("multiple_choice", ([9, 1, 2], [9, 1, 2]), [2, 2]),  # equal choices
        ("schema", ([9, 1, 3, 4], [9, 2, 2, 3, 4]), [2, 3]),
        ("schema", ([9, 1, 3], [9, 1, 4]), [2, 2]),  # no end in common
        ("schema", ([9, 1, 3], [9, 1, 3]), [1, 1]),  # equal contexts
        ("language_modeling", ([9, 1], [9, 1, 2, 3]), [2]),
        ("language_modeling", ([9], [9, 2, 3]), [1]),  # no context
        ("language_modeling", ([9, 1], [9, 7, 3]), [1]),  # the continuation melts into its context
        ("language_modeling", ([9, 1, 2], [9, 1, 2]), [2]),  # and adds nothing
    ],
)
def test_scored_tokens_begin_where_options_part_and_never_at_the_first_token(kind, sequences, expected):
    assert starts(kind, *sequences) == expected


def test_equal_options_and_empty_contexts_are_items_like_others(tokenizer, tmp_path):
    changes = {
        "eval_data/a/schemas.jsonl": jsonl([{**SCHEMAS[0], "context_options": ["The cat", "The cat"]}, *SCHEMAS]),
        "eval_data/a/choices.jsonl": jsonl([{**CHOICES[0], "choices": ["yes", "yes"]}, *CHOICES]),
        "eval_data/a/texts.jsonl": jsonl([{"context": "", "continuation": "x"}]),
    }
    bundle = write_bundle(tmp_path, changes)
    core = prepare(bundle, tokenizer)
    require_as_rendered(core, bundle, tokenizer)
    schemas = core.tasks[1]
    (equal,) = [item for item in schemas if item.line == 1]
    assert equal.starts == (1, 1) and len(equal.prefix) == 1 and len(schemas) == 3


# -- bad input ---------------------------------------------------------------------------------------------------------------


def refusal(bundle, tokenizer=None, **chosen):
    with pytest.raises(UserError) as caught:
        prepare(bundle, tokenizer or small_tokenizer(), **chosen)
    message = str(caught.value)
    assert str(bundle) in message and len(message.splitlines()) < 20
    return message


def test_all_missing_files_are_named_in_one_message(tmp_path):
    gone = dict.fromkeys(["eval_meta_data.csv", "eval_data/a/choices.jsonl", "eval_data/a/texts.jsonl"])
    message = refusal(write_bundle(tmp_path, gone))
    named = ", ".join(f"eval_bundle/{name}" for name in gone)
    assert f"{named} are missing from the bundle. Download it again" in message
    assert "schemas" not in message, "what is there is not complained of"


def test_files_of_tasks_that_were_not_asked_for_may_be_missing(tokenizer, tmp_path):
    bundle = write_bundle(tmp_path, {"eval_data/a/choices.jsonl": None})
    assert len(prepare(bundle, tokenizer, tasks=["texts"]).tasks) == 1


def test_malformed_rows_are_all_counted_and_the_first_are_told_with_their_lines(tmp_path):
    wrong = [{**CHOICES[0], "gold": 7}, {"query": "?"}, [1], "x", None]
    message = refusal(write_bundle(tmp_path, {"eval_data/a/choices.jsonl": jsonl([CHOICES[0], *wrong])}))
    assert "eval_bundle/eval_data/a/choices.jsonl: 5 times: malformed multiple_choice row: line 2: `gold` is 7" in message
    assert "line 3: `choices` is missing" in message and "line 4: expected an object" in message
    assert "and 2 more" in message and "line 5" not in message


def test_everything_that_is_wrong_with_a_bundle_is_told_at_once(tmp_path):
    entries = [entry("choices", "essay", shots=1000), *ENTRIES[1:], entry("more", "schema")]
    changes = {
        "core.yaml": yaml.safe_dump({"icl_tasks": entries}),
        "eval_meta_data.csv": META + "more,x,100\n",
        "eval_data/a/schemas.jsonl": jsonl([*SCHEMAS, {}]),
        "eval_data/a/texts.jsonl": "\n",
    }
    lines = refusal(write_bundle(tmp_path, changes)).splitlines()
    assert lines[0].endswith("6 problems:")
    for words in (
        "eval_data/a/more.jsonl is missing from the bundle",
        "task choices: num_fewshot is [1000]",
        "task choices: icl_task_type is 'essay'",
        "schemas.jsonl, line 3: malformed schema row",
        "texts.jsonl: holds no item",
        "task more: eval_meta_data.csv gives it no random baseline",
    ):
        assert sum(words in line for line in lines) == 1, words


def test_of_very_many_problems_the_first_are_told_and_the_rest_is_counted(tmp_path):
    entries = [entry(f"task{n}", "essay") for n in range(500)]
    message = refusal(write_bundle(tmp_path, {"core.yaml": yaml.safe_dump({"icl_tasks": entries})}))
    assert "1,000 problems" in message and "and 988 more" in message


def test_an_option_without_any_text_is_refused_by_its_line(tmp_path):
    entries = [entry("choices", "multiple_choice", shots=0, continuation_delimiter="")]
    empty = {"query": "", "choices": ["", "x"], "gold": 0}
    changes = {
        "core.yaml": yaml.safe_dump({"icl_tasks": entries}),
        "eval_data/a/choices.jsonl": jsonl([empty, *CHOICES, empty]),
    }
    message = refusal(write_bundle(tmp_path, changes))
    assert "choices.jsonl: 2 items have an option without any text" in message and "line 1, 5" in message


def test_fewer_items_than_examples_are_kept_with_what_there_is_and_it_is_said(tokenizer, tmp_path, caplog):
    many = {"core.yaml": yaml.safe_dump({"icl_tasks": [{**entry, "num_fewshot": [10]} for entry in ENTRIES]})}
    bundle = write_bundle(tmp_path, many)
    with caplog.at_level(logging.WARNING, logger="nanochat"):
        core = prepare(bundle, tokenizer)
    assert [(task.num_fewshot, task.num_examples) for task in core.tasks] == [(10, 2), (10, 1), (10, 1)]
    assert "CORE choices: 2 examples in front of each item, not 10" in caplog.text
    summary = core.summary()["tasks"]["choices"]
    assert (summary["num_fewshot"], summary["num_fewshot_asked"]) == (2, 10)
    require_as_rendered(core, bundle, tokenizer)
    alone = prepare(bundle, tokenizer, max_per_task=1)
    assert [(task.num_examples, len(task)) for task in alone.tasks] == [(0, 1)] * 3


# -- files that are not as they were -------------------------------------------------------------------------------------------


def test_a_file_that_is_not_as_it_was_is_refused(tokenizer, tmp_path):
    artefact = published(prepare(write_bundle(tmp_path), tokenizer), tmp_path / "core")
    for name in artefact.files:
        path = artefact.folder / name
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(UserError, match="sha256 differs from its manifest"):
            load(artefact)
        path.write_bytes(good)
    load(artefact)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokens.npy", np.zeros(3, np.uint16)),
        ("tokens.npy", np.zeros(3, np.int64)),
        ("items.npy", np.zeros((2, 2), np.int32)),
        ("options.npy", b"not an array"),
        ("tasks.json", b"[]"),
        ("tasks.json", json.dumps({"tasks": [{"label": "x"}], "num_listed": 1, "max_per_task": None}).encode()),
    ],
)
def test_files_that_do_not_fit_together_are_refused_in_words(tokenizer, tmp_path, name, content):
    folder = tmp_path / "core"
    artefact = published(prepare(write_bundle(tmp_path), tokenizer), folder)
    if isinstance(content, bytes):
        (folder / name).write_bytes(content)
    else:
        np.save(folder / name, content)
    publish(folder / "manifest.json", specification={}, inputs={}, files=list(artefact.files), results={}, record={})
    with pytest.raises(UserError, match="cannot be read as the prompts of CORE"):
        load(open_verified(folder / "manifest.json"))
