"""CORE against a plain evaluation: one item at a time, every prompt rendered from the raw rows, every position scored."""

import json
import logging
import random
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from bundles import CHOICES, ENTRIES, META, SCHEMAS, TEXT_ROWS, entry, jsonl, write_bundle
from evaluating import StopsAt, on_ranks
from small_models import random_model, small_tokenizer

from nanochat import batching
from nanochat.core_bundle import read_bundle, render_prompts
from nanochat.core_eval import ask, evaluate_core
from nanochat.core_tokens import find_starts, prepare
from nanochat.distributed import Ranks
from nanochat.errors import UserError
from nanochat.jobs.attempt import Attempt
from nanochat.partial import Parts, Stopped

# -- the plain way: as the definitions say, and as slow as they are ----------------------------------------------------------


def plain_items(path, label, *, max_per_task):
    """The rows of a task in evaluation order, and its entry in core.yaml."""
    with zipfile.ZipFile(path) as bundle:
        entries = yaml.safe_load(bundle.read("eval_bundle/core.yaml"))["icl_tasks"]
        (entry,) = [entry for entry in entries if entry["label"] == label]
        lines = bundle.read(f"eval_bundle/eval_data/{entry['dataset_uri']}").decode().split("\n")
    rows = [json.loads(line) for line in lines if line]
    random.Random(1337).shuffle(rows)
    return rows[:max_per_task], entry


def plain_prompts(rows, entry, index):
    delimiter = entry.get("continuation_delimiter", " ")
    others = [number for number in range(len(rows)) if number != index]
    shown = random.Random(1234 + index).sample(others, min(entry["num_fewshot"][0], len(others)))
    kind, row, before = entry["icl_task_type"], rows[index], ""
    for example in (rows[number] for number in shown):
        if kind == "multiple_choice":
            before += example["query"] + delimiter + example["choices"][example["gold"]] + "\n\n"
        elif kind == "schema":
            before += example["context_options"][example["gold"]] + delimiter + example["continuation"] + "\n\n"
        else:
            before += example["context"].strip() + delimiter + example["continuation"] + "\n\n"
    if kind == "multiple_choice":
        return [before + row["query"] + delimiter + choice for choice in row["choices"]]
    if kind == "schema":
        return [before + context + delimiter + row["continuation"] for context in row["context_options"]]
    start = before + row["context"].strip() + delimiter
    return [start.strip(), start + row["continuation"]]


@torch.no_grad()
def plain_outcome(model, tokenizer, kind, prompts, gold):
    """(losses of the options, whether the answer is right)"""
    sequences = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in prompts]
    if kind == "language_modeling":
        start = len(sequences[0])
        assert sequences[1][:start] == sequences[0]
        logits = model(torch.tensor([sequences[1]]))[0]
        wanted = torch.tensor(sequences[1][start:])
        losses = F.cross_entropy(logits[start - 1 : -1], wanted)
        return [losses.item()], bool((logits[start - 1 : -1].argmax(dim=1) == wanted).all())
    shared = 0
    step = 1 if kind == "multiple_choice" else -1
    reading = [sequence[::step] for sequence in sequences]
    while all(len(s) > shared and s[shared] == reading[0][shared] for s in reading):
        shared += 1
    losses = []
    for sequence in sequences:
        start = shared if kind == "multiple_choice" else len(sequence) - shared
        logits = model(torch.tensor([sequence]))[0]
        losses.append(F.cross_entropy(logits[start - 1 : -1], torch.tensor(sequence[start:])).item())
    return losses, losses.index(min(losses)) == gold


def evaluate(model, tokenizer, bundle, *, tasks=None, max_per_task=None, **how):
    return evaluate_core(model, tokenizer, prepare(bundle, tokenizer, tasks=tasks, max_per_task=max_per_task), **how)


@pytest.fixture(scope="module")
def bundle(shared_data):
    return shared_data / "eval_bundle.zip"


@pytest.fixture(scope="module")
def tokenizer(bundle):
    texts = [text for label in ("squad", "arc_easy", "hellaswag", "boolq") for text in plain_texts(bundle, label)]
    return small_tokenizer(1_000, texts=texts)


def plain_texts(bundle, label):
    rows, _ = plain_items(bundle, label, max_per_task=100)
    return [" ".join(str(value) for value in row.values()) for row in rows]


@pytest.fixture(scope="module")
def model():
    return random_model(vocab_size=1_000, sequence_len=4_096, n_head=1, n_kv_head=1)


LABELS = [
    *("hellaswag_zeroshot", "jeopardy", "bigbench_qa_wikidata", "arc_easy", "arc_challenge", "copa", "commonsense_qa", "piqa"),
    *("openbook_qa", "lambada_openai", "hellaswag", "winograd", "winogrande", "bigbench_dyck_languages", "agi_eval_lsat_ar"),
    *("bigbench_cs_algorithms", "bigbench_operators", "bigbench_repeat_copy_logic", "squad", "coqa", "boolq"),
    "bigbench_language_identification",
]


@pytest.mark.parametrize("label", LABELS)
def test_outcomes_equal_a_plain_evaluation_of_the_real_tasks(bundle, model, tokenizer, label):
    num_items = 12  # more than the ten examples
    results, examples = evaluate(model, tokenizer, bundle, tasks=[label], max_per_task=num_items, batch_tokens=4_000)
    rows, entry = plain_items(bundle, label, max_per_task=num_items)
    for index in (0, 1, 5, 11):
        prompts = plain_prompts(rows, entry, index)
        losses, is_correct = plain_outcome(model, tokenizer, entry["icl_task_type"], prompts, rows[index].get("gold"))
        assert examples[index]["losses"] == pytest.approx(losses, abs=1e-4)
        if len(losses) == 1 or sorted(losses)[1] - min(losses) > 1e-5:
            assert examples[index]["correct"] == is_correct
    assert [example["index"] for example in examples] == list(range(num_items))
    assert results["tasks"][label]["accuracy"] == sum(example["correct"] for example in examples) / num_items
    assert results["tasks"][label]["num_available"] > num_items


def test_all_prompts_of_the_real_bundle_are_those_of_the_plain_way(bundle):
    tasks = read_bundle(bundle)
    assert [task.label for task in tasks] == LABELS
    for task in tasks:
        rows, entry = plain_items(bundle, task.label, max_per_task=None)
        assert len(task.items) == len(rows) == task.num_available
        for index in range(0, len(rows), 101):
            assert render_prompts(task, index) == plain_prompts(rows, entry, index)


def test_stray_blanks_of_the_real_rows_are_kept_in_choices_and_taken_off_contexts(bundle):
    """piqa's queries, squad's and coqa's contexts, 8 of jeopardy's continuations end in blanks; one of lambada's begins so."""
    tasks = {task.label: task for task in read_bundle(bundle, labels=["piqa", "jeopardy", "squad", "coqa", "lambada_openai"])}
    found = {}
    for label, task in tasks.items():
        rows, entry = plain_items(bundle, label, max_per_task=None)
        texts = [(row.get("query", row.get("context")), row.get("continuation", "x")) for row in rows]
        found[label] = sum(a != a.strip() for a, _ in texts), sum(b != b.strip() for _, b in texts)
        odd = [index for index, pair in enumerate(texts) if any(text != text.strip() for text in pair)]
        for index in odd[:: max(1, len(odd) // 20)]:
            assert render_prompts(task, index) == plain_prompts(rows, entry, index)
    assert found == {"piqa": (919, 0), "jeopardy": (0, 8), "squad": (1_049, 0), "coqa": (4_011, 0), "lambada_openai": (0, 1)}


def test_real_items_with_a_choice_twice_or_inside_another_are_there(bundle):
    tasks = read_bundle(bundle, labels=["arc_easy", "arc_challenge", "piqa"])
    choices = [[choice for _, choice in item.options] for task in tasks for item in task.items]
    assert sum(len(set(some)) < len(some) for some in choices) == 4
    assert sum(any(a != b and b.startswith(a) for a in some for b in some) for some in choices) == 10


def test_the_real_task_with_fewest_items_shows_all_its_examples(bundle):
    (task,) = read_bundle(bundle, labels=["bigbench_repeat_copy_logic"])
    assert (len(task.items), task.num_examples) == (16, 10)
    (few,) = read_bundle(bundle, labels=["bigbench_repeat_copy_logic"], max_per_task=4)
    assert (len(few.items), few.num_examples) == (4, 3)
    rows, entry = plain_items(bundle, "bigbench_repeat_copy_logic", max_per_task=4)
    assert [render_prompts(few, i) for i in range(4)] == [plain_prompts(rows, entry, i) for i in range(4)]


# -- a bundle made here ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    """(model, tokenizer, bundle) that need no real data."""
    return random_model(), small_tokenizer(), write_bundle(tmp_path)


def test_prompts_of_each_kind_read_as_written_out_here(tmp_path):
    choices, schemas, texts = read_bundle(write_bundle(tmp_path))
    by_query = {
        task.items[index].options[0][0]: index for task in (choices, schemas, texts) for index in range(len(task.items))
    }
    assert render_prompts(schemas, by_query["The tin"]) == [
        "The cat purred.\n\nThe tin rusted.",
        "The cat purred.\n\nThe pin rusted.",
    ]
    assert render_prompts(texts, by_query["One, two,"]) == [
        "Red, green, blue \n\nOne, two,",
        "Red, green, blue \n\nOne, two, three",
    ]
    red = render_prompts(choices, by_query["Is it red?"])
    examples = ["Is it blue?\nAnswer: no\n\n", "Is it green?\u2028Look!\nAnswer: no\n\n"]
    assert red[0] in ("".join(order) + "Is it red?\nAnswer: yes" for order in (examples, examples[::-1]))
    assert red[1] == red[0].removesuffix("yes") + "no"


def test_results_and_examples_say_what_was_measured(small):
    results, examples = evaluate(*small)
    assert list(results["tasks"]) == ["choices", "schemas", "texts"]
    choices = results["tasks"]["choices"]
    assert (choices["type"], choices["num_fewshot"], choices["num_items"], choices["num_available"]) == (
        "multiple_choice",
        2,
        3,
        3,
    )
    assert choices["centered"] == pytest.approx((choices["accuracy"] - 0.5) / 0.5)
    assert results["core"] == pytest.approx(sum(task["centered"] for task in results["tasks"].values()) / 3)
    assert results["interval"][0] < results["core"] < results["interval"][1]
    assert choices["centered_interval"] == pytest.approx([(end - 0.5) / 0.5 for end in choices["interval"]])
    assert len(examples) == 7
    assert sorted(example["line"] for example in examples[:3]) == [1, 2, 3]
    assert examples[-1]["gold"] in (" three", " blue ")


def test_the_mean_of_some_tasks_is_not_called_core(small):
    results, _ = evaluate(*small, tasks=["texts", "choices"])
    assert list(results["tasks"]) == ["choices", "texts"]
    assert results["core"] is None
    results, _ = evaluate(*small, tasks=["texts", "choices", "schemas"])
    assert results["core"] is not None


def test_what_options_share_is_read_once(bundle, tokenizer):
    """hellaswag's ten examples and its question; the endings' last tokens are scored and never read."""
    core = prepare(bundle, tokenizer, tasks=["hellaswag", "boolq", "squad"], max_per_task=12)
    for task in core.tasks:
        for item in map(task.__getitem__, range(len(task))):
            question = ask(item, max_tokens=10_000)
            assert len(question) == len(item.prefix) + sum(len(suffix) - 1 for suffix in item.suffixes)
            tree = np.concatenate([question.trees[0].trunk, *question.trees[0].branches])
            for before, scored, suffix in zip(question.before, question.scored, item.suffixes, strict=True):
                following = np.concatenate([item.prefix, suffix])[-len(scored) - 1 : -1]
                assert tree[before].tolist() == following.tolist()


def test_options_that_saw_one_another_would_be_noticed(bundle, model, tokenizer, monkeypatch):
    core = prepare(bundle, tokenizer, tasks=["hellaswag"], max_per_task=4)
    _, apart = evaluate_core(model, tokenizer, core)
    seen = batching.branches_visible
    monkeypatch.setattr(batching, "branches_visible", lambda tree: torch.ones_like(seen(tree)).tril(len(tree.trunk)))
    _, together = evaluate_core(model, tokenizer, core)
    distances = [max(np.abs(np.subtract(a["losses"], b["losses"]))) for a, b in zip(apart, together, strict=True)]
    assert min(distances) > 1e-3


def test_batches_change_nothing(small):
    _, together = evaluate(*small)
    _, alone = evaluate(*small, batch_tokens=1)
    assert [row.pop("losses") for row in together] == [pytest.approx(row.pop("losses"), abs=2e-6) for row in alone]
    assert together == alone


def test_processes_that_split_the_items_agree_with_one(small):
    expected = evaluate(*small, batch_tokens=1)
    found = on_ranks(3, lambda ranks: evaluate(*small, batch_tokens=1, parts=Parts(ranks)))  # some have no item at all
    assert found == [expected] * 3


@pytest.mark.parametrize("batch_tokens", [1, 200])
def test_an_evaluation_stopped_before_any_batch_goes_on_to_the_same_rows(small, tmp_path, batch_tokens):
    expected = evaluate(*small, batch_tokens=batch_tokens)
    for question in range(1, 20):
        attempt = StopsAt(tmp_path / str(question), question)
        try:
            found = evaluate(*small, batch_tokens=batch_tokens, parts=Parts(Ranks(), attempt=attempt))
        except Stopped:
            assert attempt.questions_left == 0
            found = evaluate(*small, batch_tokens=batch_tokens, parts=Parts(Ranks(), attempt=Attempt(attempt.state)))
        assert found == expected
    assert attempt.questions_left > 0  # all places were tried


def test_a_stop_in_the_middle_of_a_task_keeps_those_before_it(small, tmp_path):
    with pytest.raises(Stopped):
        evaluate(*small, batch_tokens=1, parts=Parts(Ranks(), attempt=StopsAt(tmp_path, 4)))  # of 3 + 2 + 2 items
    assert [path.name for path in tmp_path.glob("part_*")] == ["part_choices.json"]


def test_a_stop_that_one_rank_alone_has_seen_stops_all(small, tmp_path):
    def on_rank(ranks):
        attempt = StopsAt(tmp_path, 2 if ranks.rank == 1 else 0)
        return evaluate(*small, batch_tokens=1, parts=Parts(ranks, attempt=attempt))

    assert [type(found) for found in on_ranks(2, on_rank)] == [Stopped, Stopped]
    assert [path.name for path in tmp_path.glob("part_*")] == ["part_choices.json"]


def test_fewer_items_than_examples_are_evaluated_with_what_there_is(tmp_path, caplog):
    many = {"core.yaml": yaml.safe_dump({"icl_tasks": [{**entry, "num_fewshot": [10]} for entry in ENTRIES]})}
    path = write_bundle(tmp_path, many)
    with caplog.at_level(logging.WARNING, logger="nanochat"):
        results, _ = evaluate(random_model(), small_tokenizer(), path)
    assert [task["num_fewshot"] for task in results["tasks"].values()] == [2, 1, 1]
    assert "CORE choices: 2 examples in front of each item, not 10" in caplog.text
    results, _ = evaluate(random_model(), small_tokenizer(), path, max_per_task=1)
    assert [(task["num_fewshot"], task["num_items"]) for task in results["tasks"].values()] == [(0, 1)] * 3


def test_a_choice_that_begins_another_and_equal_choices_are_scored(tmp_path):
    rows = [
        {"query": "Which?", "choices": ["the", "the sun", "the sun and the moon"], "gold": 0},
        {"query": "Which?", "choices": ["same", "same"], "gold": 0},
    ]
    path = write_bundle(tmp_path, {"eval_data/a/choices.jsonl": jsonl(rows)})
    _, examples = evaluate(random_model(), small_tokenizer(), path, tasks=["choices"])
    equal, nested = sorted(examples, key=lambda row: len(row["losses"]))
    assert nested["prediction"] == nested["losses"].index(min(nested["losses"]))
    assert equal["losses"][0] == equal["losses"][1]
    assert equal["prediction"] == 0  # of equals the first


def test_nested_choices_are_scored_from_the_same_token_on():
    tokenizer = small_tokenizer()
    sequences = tokenizer.encode_batch(["Which? the sun", "Which? the sun, 2", "Which? the sun, 35"], bos=True)
    assert set(find_starts("multiple_choice", sequences)) == {len(sequences[0]) - 1}


def test_a_continuation_that_melts_into_its_context_is_scored_from_the_first_new_token():
    tokenizer = small_tokenizer()
    merge = next(token.decode() for token in tokenizer.tokens[256:] if len(token) == 2 and token.isalpha())
    alone, whole = tokenizer.encode_batch([merge[0], merge], bos=True)
    assert len(alone) == len(whole) == 2
    assert alone[1] != whole[1]
    assert find_starts("language_modeling", [alone, whole]) == [1]


def test_prompts_too_long_for_the_model_lose_their_beginning(tmp_path):
    rows = [{"context": "word " * length, "continuation": "end of it"} for length in (2, 300, 3)]
    path = write_bundle(
        tmp_path,
        {
            "eval_data/a/texts.jsonl": jsonl(rows),
            "core.yaml": yaml.safe_dump({"icl_tasks": [{**ENTRIES[2], "num_fewshot": [0]}]}),
        },
    )
    model, tokenizer = random_model("textbook"), small_tokenizer()
    results, examples = evaluate(model, tokenizer, path)
    assert results["tasks"]["texts"]["num_cropped"] == 1
    (cropped,) = [example for example in examples if example.get("cropped")]
    tokens = torch.tensor([tokenizer.encode("word " * 300 + "end of it", bos=True)[-64:]])
    num_scored = len(tokenizer.encode(" end of it"))
    with torch.no_grad():
        loss = F.cross_entropy(model(tokens)[0, -num_scored - 1 : -1], tokens[0, -num_scored:])
    assert cropped["losses"] == pytest.approx([loss.item()], abs=1e-4)


def test_the_folder_around_a_bundle_may_be_missing(tmp_path):
    bare, wrapped = read_bundle(write_bundle(tmp_path, root="")), read_bundle(write_bundle(tmp_path))
    assert [replace(task, file="") for task in bare] == [replace(task, file="") for task in wrapped]


def test_a_model_with_broken_weights_is_an_error(small):
    model, tokenizer, path = small
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(UserError, match=r"CORE choices, item \d: the model's losses are"):
        evaluate(model, tokenizer, path)


BROKEN = {
    "core.yaml missing": ({"core.yaml": None}, "core.yaml is missing from the bundle"),
    "core.yaml is no list": ({"core.yaml": "icl_tasks: 3"}, "core.yaml: expected `icl_tasks:`"),
    "core.yaml lists nothing": ({"core.yaml": "icl_tasks: []"}, "core.yaml: lists no task"),
    "core.yaml is no YAML": ({"core.yaml": "icl_tasks: ["}, "core.yaml: expected `icl_tasks:`"),
    "unknown kind": (
        {"core.yaml": yaml.safe_dump({"icl_tasks": [entry("texts", "essay")]})},
        "task texts: icl_task_type is 'essay'",
    ),
    "shots are a text": ({"core.yaml": yaml.safe_dump({"icl_tasks": [entry("texts", "schema", shots="x")]})}, "num_fewshot is"),
    "meta data missing": ({"eval_meta_data.csv": None}, "eval_meta_data.csv is missing"),
    "baseline missing": (
        {"eval_meta_data.csv": "Eval Task,Random baseline\nchoices,50\n"},
        "task schemas: .* no random baseline",
    ),
    "baseline is a text": ({"eval_meta_data.csv": META.replace("texts,x,0", "texts,x,none")}, "eval_meta_data.csv, line 4"),
    "baseline is 100": ({"eval_meta_data.csv": META.replace("texts,x,0", "texts,x,100")}, "task texts: .* no random baseline"),
    "data missing": ({"eval_data/a/texts.jsonl": None}, "eval_data/a/texts.jsonl is missing from the bundle"),
    "data empty": ({"eval_data/a/texts.jsonl": "\n"}, "texts.jsonl: holds no item"),
    "no JSON": ({"eval_data/a/texts.jsonl": jsonl(TEXT_ROWS) + "{"}, "texts.jsonl, line 3: malformed language_modeling row"),
    "no UTF-8": ({"eval_data/a/texts.jsonl": b'{"context": "\xff\xfe"}'}, "texts.jsonl, line 1: malformed"),
    "no object": ({"eval_data/a/texts.jsonl": "[1]\n"}, "line 1: .* expected an object, found list"),
    "key missing": ({"eval_data/a/texts.jsonl": '{"context": "x"}\n'}, "line 1: .* `continuation` is missing"),
    "no text": ({"eval_data/a/texts.jsonl": '{"context": 3, "continuation": "x"}\n'}, "`context` is not a text"),
    "one choice": ({"eval_data/a/choices.jsonl": jsonl([{**CHOICES[0], "choices": ["x"]}])}, "`choices` is not a list of two"),
    "gold too high": ({"eval_data/a/choices.jsonl": jsonl([*CHOICES, {**CHOICES[0], "gold": 2}])}, "line 4: .* `gold` is 2"),
    "gold missing": (
        {"eval_data/a/schemas.jsonl": jsonl([{**SCHEMAS[0], "gold": None}])},
        "schemas.jsonl, line 1: .* `gold` is None",
    ),
}


@pytest.mark.parametrize(("changes", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_bundle_is_an_error_that_names_the_place(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        read_bundle(write_bundle(tmp_path, changes))
    assert "bundle.zip" in str(caught.value)


def test_what_is_asked_for_and_not_there_is_an_error(tmp_path):
    path = write_bundle(tmp_path)
    with pytest.raises(UserError, match="has no CORE task piqa; it has: choices, schemas, texts"):
        read_bundle(path, labels=["texts", "piqa"])
    with pytest.raises(UserError, match="max_per_task 0"):
        read_bundle(path, max_per_task=0)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="cannot be read as a zip"):
        read_bundle(path)
    with pytest.raises(UserError, match="cannot be read as a zip"):
        read_bundle(tmp_path / "missing.zip")
