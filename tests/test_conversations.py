"""A mixture holds what its parts say, in an order given by the seed, and reads a conversation when it is asked for it."""

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat import tasks
from nanochat.conversations import build_mixture, choose, share_out
from nanochat.errors import UserError
from nanochat.tokenizer import Tokenizer

IDENTITY = {"name": "Bulldog", "makers": "students", "purpose": "answer questions", "facts": []}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Small files of several tasks: 40 word problems, 60 choices, 10 chats, 27 words."""
    folder = tmp_path_factory.mktemp("files")
    rows = {
        "gsm8k/train": [{"question": f"sum {i}", "answer": f"#### {i}"} for i in range(40)],
        "mmlu/auxiliary_train": [
            {"question": f"choice {i}", "choices": ["w", "x", "y", "z"], "answer": i % 4, "subject": ""} for i in range(60)
        ],
        "smoltalk/test": [
            {"messages": [{"role": "user", "content": f"chat {i}"}, {"role": "assistant", "content": "yes"}]} for i in range(10)
        ],
    }
    for number, content in enumerate(rows.values()):
        pq.write_table(pa.Table.from_pylist(content), folder / f"{number}.parquet")
    (folder / "words").write_text("\n".join(a + b + c for a in "bcd" for b in "aei" for c in "lmn"))
    (folder / "own.jsonl").write_text(
        json.dumps([{"role": "user", "content": "own"}, {"role": "assistant", "content": "mine"}])
    )
    return {
        **{key: folder / f"{number}.parquet" for number, key in enumerate(rows)},
        "words": folder / "words",
        "own": folder / "own.jsonl",
    }


GSM8K, MMLU = {"task": "gsm8k", "split": "train"}, {"task": "mmlu", "split": "auxiliary_train"}
CHAT, OWN = {"task": "smoltalk", "split": "test"}, {"task": "custom", "split": "train", "source": "own"}


def questions(mixture):
    return [conversation["messages"][0]["content"] for conversation in mixture]


def counts(mixture, kind):
    """How many of the questions of this kind occur so often: {times: questions}."""
    return Counter(
        Counter(text for text in questions(mixture) if text.split("\n")[0].split(": ")[-1].startswith(kind)).values()
    )


def test_a_mixture_holds_every_conversation_of_its_parts_once_without_further_words(files):
    mixture = build_mixture([GSM8K, MMLU, OWN], files=files, seed=0)
    assert len(mixture) == len(list(mixture)) == 101
    assert (counts(mixture, "sum"), counts(mixture, "choice"), counts(mixture, "own")) == ({1: 40}, {1: 60}, {1: 1})


def test_the_order_is_shuffled_by_the_seed_and_nothing_else(files):
    def order(seed, *parts):
        return questions(build_mixture(parts, files=files, seed=seed))

    first = order(1, GSM8K, MMLU)
    assert first == order(1, GSM8K, MMLU) == order(1, dict(reversed(GSM8K.items())), {**MMLU, "rows": None, "epochs": None})
    assert first != order(2, GSM8K, MMLU)
    assert sorted(first) == sorted(order(2, GSM8K, MMLU))
    assert len({text.startswith("sum") for text in first[:20]}) == 2  # mixed, not one part after the other


@pytest.mark.parametrize(
    ("epochs", "expected"), [(1.0, {1: 40}), (2, {2: 40}), (0.5, {1: 20}), (2.25, {2: 30, 3: 10}), (0.001, {})]
)
def test_epochs_repeat_and_sample(files, epochs, expected):
    mixture = build_mixture([{**GSM8K, "epochs": epochs}, CHAT], files=files, seed=0)
    assert counts(mixture, "sum") == expected
    assert counts(mixture, "chat") == {1: 10}


def test_a_fraction_is_a_sample_that_depends_on_the_seed(files):
    samples = [set(questions(build_mixture([{**GSM8K, "epochs": 0.5}], files=files, seed=seed))) for seed in (0, 0, 1)]
    assert samples[0] == samples[1] != samples[2]


def test_rows_come_before_epochs(files):
    mixture = build_mixture([{**GSM8K, "rows": 7, "epochs": 3.0}], files=files, seed=0)
    assert counts(mixture, "sum") == {3: 7}
    task = tasks.build("gsm8k", split="train", files=files, rows=7)
    assert set(questions(mixture)) == {conversation["messages"][0]["content"] for conversation in task}


def test_weights_share_out_mixture_rows(files):
    parts = [{**GSM8K, "weight": 3.0}, {**MMLU, "weight": 1.0}]
    mixture = build_mixture(parts, files=files, seed=0, mixture_rows=100)
    assert (counts(mixture, "sum"), counts(mixture, "choice")) == ({1: 5, 2: 35}, {1: 25})


def test_statistics_say_what_each_part_gave(files):
    parts = [{**GSM8K, "epochs": 1.5}, {**MMLU, "rows": 20}, OWN, {"task": "identity", "split": "train", "rows": 30}]
    mixture = build_mixture(parts, files=files, identity=IDENTITY, seed=0)
    assert mixture.statistics == [
        {"task": "gsm8k", "split": "train", "available": 40, "rows": 60, "epochs": 1.5},
        {"task": "mmlu", "split": "auxiliary_train", "available": 20, "rows": 20, "epochs": 1.0},
        {"task": "custom", "split": "train", "source": "own", "available": 1, "rows": 1, "epochs": 1.0},
        {"task": "identity", "split": "train", "available": 30, "rows": 30, "epochs": 1.0},
    ]
    assert sum(part["rows"] for part in mixture.statistics) == len(mixture)
    json.dumps(mixture.statistics)


def test_nothing_is_read_before_it_is_asked_for(files, monkeypatch):
    """The reference mixture has 848,000 conversations: as Python objects they need several GB."""
    made = []
    monkeypatch.setattr(tasks.gsm8k.GSM8K, "from_row", lambda self, row: made.append(row) or {"messages": []})
    mixture = build_mixture([{**GSM8K, "epochs": 1000}], files=files, seed=0)
    assert (len(mixture), len(made)) == (40_000, 0)
    mixture[17], mixture[-1]
    assert len(made) == 2


def test_a_mixture_takes_six_bytes_a_conversation(files):
    mixture = build_mixture([{**GSM8K, "epochs": 1000}, MMLU], files=files, seed=0)
    assert mixture.task_of.nbytes + mixture.item_of.nbytes == 6 * len(mixture)


def test_a_file_that_two_parts_name_is_read_once(files):
    mixture = build_mixture([GSM8K, {**GSM8K, "epochs": 2.0}, {**GSM8K, "rows": 5}], files=files, seed=0)
    assert mixture.tasks[0] is mixture.tasks[1] is not mixture.tasks[2]
    assert counts(mixture, "sum") == {3: 35, 4: 5}


def test_an_empty_mixture_is_empty(files):
    assert list(build_mixture([], files=files, seed=0)) == []


@pytest.mark.parametrize(
    ("part", "mixture_rows", "message"),
    [
        ({"split": "train"}, None, "a mixture has a task"),
        ({**GSM8K, "epoch": 2}, None, "found .*epoch"),
        ({**GSM8K, "weight": 1.0}, None, "gsm8k: a weight needs mixture_rows"),
        (GSM8K, 10, "gsm8k: with mixture_rows every part needs a weight"),
        ({**GSM8K, "weight": 1.0, "epochs": 1.0}, 10, "none has epochs"),
        ({**GSM8K, "epochs": 0}, None, "gsm8k: epochs must be above 0"),
        ({**GSM8K, "weight": -1.0}, 10, "gsm8k: weight must be above 0"),
        ({"task": "gsm9k", "split": "train"}, None, "no task gsm9k"),
        ({"task": "identity", "split": "train"}, None, "who the model is must be given"),
        ({"task": "arc_easy", "split": "train"}, None, "needs arc_easy/train"),
    ],
)
def test_wrong_parts_are_told_in_words(files, part, mixture_rows, message):
    with pytest.raises(UserError, match=message):
        build_mixture([part], files=files, seed=0, mixture_rows=mixture_rows)


@given(st.integers(0, 10_000), st.lists(st.floats(0.01, 100), min_size=1, max_size=9))
def test_shares_add_up_and_are_within_one_of_the_exact_ones(total, weights):
    shares = share_out(total, weights)
    assert sum(shares) == total
    assert all(abs(share - total * weight / sum(weights)) < 1 for share, weight in zip(shares, weights, strict=True))


@given(st.integers(1, 30), st.integers(0, 100), st.integers(0, 5))
def test_everything_is_chosen_equally_often_give_or_take_one(available, count, seed):
    chosen = choose(available, count, np.random.default_rng(seed))
    times = np.bincount(chosen, minlength=available)
    assert times.sum() == count
    assert times.max() - times.min() <= 1


def test_the_mixtures_of_the_reference_run_on_the_real_data(shared_data):
    hub = shared_data / "hub"

    def parquet(folder, split):
        return hub / folder / f"{split}-00000-of-00001.parquet"

    files = {
        "smoltalk/train": parquet("HuggingFaceTB/smol-smoltalk/data", "train"),
        "mmlu/auxiliary_train": parquet("cais/mmlu/all", "auxiliary_train"),
        "gsm8k/train": parquet("openai/gsm8k/main", "train"),
        "arc_easy/train": parquet("allenai/ai2_arc/ARC-Easy", "train"),
        "arc_challenge/train": parquet("allenai/ai2_arc/ARC-Challenge", "train"),
        "identity_conversations": shared_data / "identity_conversations.jsonl",
        "words": shared_data / "words_alpha.txt",
    }
    middle = [
        {"task": "smoltalk", "split": "train"},
        MMLU,
        GSM8K,
        {"task": "custom", "split": "train", "source": "identity_conversations", "epochs": 2.0},
        {"task": "simple_spelling", "split": "train", "rows": 200_000},
        {"task": "spelling_bee", "split": "train", "rows": 80_000},
    ]
    fine = [
        {"task": "arc_easy", "split": "train"},
        {"task": "arc_challenge", "split": "train"},
        GSM8K,
        {"task": "smoltalk", "split": "train", "rows": 10_000},
        {"task": "identity", "split": "train"},
        {"task": "simple_spelling", "split": "train", "rows": 300},
        {"task": "spelling_bee", "split": "train", "rows": 300},
    ]
    tokenizer = Tokenizer.train(["a few words, letters and numbers: 12 + 30 = 42\n"] * 3, 280)
    for parts, length in ((middle, 300_705), (fine, 16_423)):
        mixture = build_mixture(parts, files=files, identity=IDENTITY, seed=42)
        assert len(mixture) == length == sum(part["rows"] for part in mixture.statistics)
        for index in range(0, length, length // 300):
            ids, mask = tokenizer.render_conversation(mixture[index])
            assert len(ids) == len(mask) and sum(mask) > 0
