"""Chat scores against one prompt at a time, on real rows, with a model that knows nothing."""

import threading

import pytest
import torch
from evaluating import StopsAt, on_ranks
from small_models import random_model, small_tokenizer

from nanochat import tasks
from nanochat.accuracy import wilson_interval
from nanochat.chat_eval import Sampling, chatcore, evaluate_chat
from nanochat.distributed import Ranks
from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.jobs.attempt import Attempt
from nanochat.partial import Parts, Stopped

HUB = {
    "arc_easy": "allenai/ai2_arc/ARC-Easy",
    "arc_challenge": "allenai/ai2_arc/ARC-Challenge",
    "mmlu": "cais/mmlu/all",
    "gsm8k": "openai/gsm8k/main",
    "humaneval": "openai/openai_humaneval/openai_humaneval",
}
TOKENIZER = small_tokenizer()


def real_task(shared_data, name):
    path = shared_data / "hub" / HUB[name] / "test-00000-of-00001.parquet"
    return tasks.build(name, split="test", files={f"{name}/test": path})


def evaluate(model, tokenizer, tasks, *, max_per_task=None, batch_tokens=None, num_workers=None, parts=None, **sampling):
    how = {"max_per_task": max_per_task, "batch_tokens": batch_tokens, "num_workers": num_workers, "parts": parts}
    return evaluate_chat(model, tokenizer, tasks, sampling=Sampling(**sampling), **how)


@pytest.fixture(scope="module")
def model():
    return random_model(sequence_len=1_024)


class Questions:
    """A task of made-up questions; an answer is right if `is_right` says so."""

    def __init__(self, kind, questions, *, letters=("A", "B"), is_right=lambda conversation, answer: True):
        self.kind, self.questions, self.letters, self.evaluate = kind, questions, letters, is_right
        self.baseline = 0.5 if kind == "choice" else 0.0

    def __len__(self):
        return len(self.questions)

    def __getitem__(self, index):
        messages = [{"role": "user", "content": self.questions[index]}, {"role": "assistant", "content": self.letters[0]}]
        return {"messages": messages, "letters": list(self.letters)}


@pytest.mark.parametrize("name", ["arc_easy", "arc_challenge", "mmlu"])
@torch.inference_mode()
def test_choices_equal_one_prompt_at_a_time(shared_data, model, name):
    task = real_task(shared_data, name)
    results, rows = evaluate(model, TOKENIZER, {name: task}, max_per_task=40, batch_tokens=2_000)
    for index, row in enumerate(rows):
        conversation = task[index]
        prompt = TOKENIZER.render_prompt(conversation)
        letters = conversation["letters"]
        logits = model(torch.tensor([prompt]))[0, -1, [TOKENIZER.encode(letter)[0] for letter in letters]]
        assert row["logprobs"] == pytest.approx(logits.log_softmax(dim=0).tolist(), abs=1e-4)
        if logits.topk(2).values.diff().abs() > 1e-5:
            assert row["prediction"] == letters[int(logits.argmax())]
        assert row["gold"] == conversation["messages"][-1]["content"]
        assert row["correct"] == (row["prediction"] == row["gold"])
    num_correct = sum(row["correct"] for row in rows)
    assert 0 < num_correct < 40
    assert results["tasks"][name] == {
        "kind": "choice",
        "num_items": 40,
        "num_available": len(task),
        "accuracy": num_correct / 40,
        "baseline": 0.25,
        "interval": list(wilson_interval(num_correct, 40)),
        "num_cropped": 0,
    }


@torch.inference_mode()
def test_open_answers_equal_one_prompt_at_a_time(shared_data, model):
    task = real_task(shared_data, "gsm8k")
    results, rows = evaluate(model, TOKENIZER, {"gsm8k": task}, max_per_task=6, max_new_tokens=12)
    for index, row in enumerate(rows):
        sequence = TOKENIZER.render_prompt(task[index])
        num_prompt = len(sequence)
        while len(sequence) < num_prompt + 12:
            sequence.append(int(model(torch.tensor([sequence]))[0, -1].argmax()))
        assert row["answer"] == TOKENIZER.decode(sequence[num_prompt:])
        assert (row["num_tokens"], row["is_complete"], row["correct"]) == (12, False, False)
    assert results["tasks"]["gsm8k"]["accuracy"] == 0
    assert results["tasks"]["gsm8k"]["num_available"] == len(task)


def test_generated_programs_are_run(shared_data, model, monkeypatch):
    """Whatever wrote them: here, the task's own solutions, one of them cut short."""
    task = real_task(shared_data, "humaneval")
    solutions = [TOKENIZER.encode(task[index]["messages"][-1]["content"]) for index in range(3)]
    solutions[1] = solutions[1][:-10]
    monkeypatch.setattr(Engine, "generate_batch", lambda self, prompts, keys, **sampling: [solutions[key] for key in keys])
    results, rows = evaluate(model, TOKENIZER, {"humaneval": task}, max_per_task=3)
    assert [row["correct"] for row in rows] == [True, False, True]
    assert results["tasks"]["humaneval"]["accuracy"] == pytest.approx(2 / 3)


def test_every_answer_exists_before_the_first_is_judged_and_several_are_judged_at_a_time(model):
    together = threading.Barrier(3)  # three answers have to be in judgement at the same time, or this waits in vain

    def is_right(conversation, answer):
        together.wait(timeout=20)
        return conversation["messages"][0]["content"] == "b"

    task = Questions("generative", ["a", "b", "c"], is_right=is_right)
    results, rows = evaluate(model, TOKENIZER, {"x": task}, max_new_tokens=2, num_workers=3)
    assert [row["correct"] for row in rows] == [False, True, False]
    assert results["tasks"]["x"]["accuracy"] == pytest.approx(1 / 3)


def test_sampled_answers_follow_from_the_seed_the_task_and_the_index(model):
    task = Questions("generative", ["a", "b", "a", "a"])
    sampling = {"max_new_tokens": 10, "temperature": 1.0}

    def answers(name="x", **more):
        return [row["answer"] for row in evaluate(model, TOKENIZER, {name: task}, **sampling, **more)[1]]

    first = answers(seed=1)
    assert answers(seed=1) == first
    assert answers(seed=1, max_per_task=2) == first[:2]
    assert answers(seed=2) != first
    assert answers("y", seed=1) != first
    assert first[0] != first[2]


def test_processes_that_split_the_items_agree_with_one(model):
    chosen = {"x": Questions("generative", list("abcde")), "y": Questions("choice", list("abcde"))}
    sampling = {"max_new_tokens": 5, "temperature": 1.0, "batch_tokens": 1}
    shared = on_ranks(2, lambda ranks: evaluate(model, TOKENIZER, chosen, parts=Parts(ranks), **sampling))
    assert shared == [evaluate(model, TOKENIZER, chosen, **sampling)] * 2


def test_answers_are_the_same_however_few_are_written_together(model, monkeypatch):
    task = Questions("generative", ["a", "longer " * 9, "longer still " * 12, "b", "c"])
    sampling = {"max_new_tokens": 6, "temperature": 1.0}
    together = evaluate(model, TOKENIZER, {"x": task}, **sampling)
    monkeypatch.setattr(Engine.__init__, "__kwdefaults__", {"max_rows": 2, "cache_bytes": None})
    shares = []
    monkeypatch.setattr(Parts, "poll", lambda self, share: shares.append(share))
    assert evaluate(model, TOKENIZER, {"x": task}, **sampling) == together
    writing, checking = shares[:-5], shares[-5:]
    assert writing == sorted(writing)
    assert set(writing) >= {0, 2 / 5, 4 / 5}
    assert len(writing) > 10  # asked before every token
    assert checking == [0, 1 / 5, 2 / 5, 3 / 5, 4 / 5]


def test_several_answers_to_a_question_are_counted_as_one_item(model):
    task = Questions("generative", ["a", "b"], is_right=lambda conversation, answer: len(answer) % 2 == 0)
    results, rows = evaluate(model, TOKENIZER, {"x": task}, max_new_tokens=8, temperature=2.0, num_samples=4)
    assert [(row["index"], row["sample"]) for row in rows] == [(index, sample) for index in (0, 1) for sample in range(4)]
    assert len({row["answer"] for row in rows}) > 4
    right = [sum(row["correct"] for row in rows if row["index"] == index) for index in (0, 1)]
    assert 0 < sum(right) < 8
    result = results["tasks"]["x"]
    assert (result["num_items"], result["num_samples"]) == (2, 4)
    assert result["accuracy"] == result["pass_at"]["1"] == sum(right) / 8
    assert result["pass_at"]["4"] == sum(count > 0 for count in right) / 2
    assert result["interval"] == list(wilson_interval(sum(right) / 4, 2))
    _, (alone, _) = evaluate(model, TOKENIZER, {"x": task}, max_new_tokens=8, temperature=2.0)
    assert alone["answer"] == rows[0]["answer"]  # the first of several is the one of one


def test_answers_are_kept_before_they_are_checked(model, tmp_path):
    def breaks(conversation, answer):
        raise UserError("the sandbox is gone")

    chosen = {"x": Questions("generative", list("abc"), is_right=breaks)}
    with pytest.raises(UserError, match="sandbox is gone"):
        evaluate(model, TOKENIZER, chosen, max_new_tokens=5, parts=Parts(Ranks(), attempt=Attempt(tmp_path)))
    assert [path.name for path in tmp_path.glob("part_*")] == ["part_x__answers.json"]
    chosen = {"x": Questions("generative", list("abc"))}
    broken = random_model(seed=1, sequence_len=1_024)  # it would answer otherwise
    _, rows = evaluate(broken, TOKENIZER, chosen, max_new_tokens=5, parts=Parts(Ranks(), attempt=Attempt(tmp_path)))
    _, expected = evaluate(model, TOKENIZER, chosen, max_new_tokens=5)
    assert rows == expected


class Unreadable(Questions):
    def __getitem__(self, index):
        if index % 2:
            raise UserError(f"row {index}: `answer` is missing")
        return super().__getitem__(index)


def test_items_that_cannot_be_read_are_named_and_counted_before_any_is_answered(model, monkeypatch):
    monkeypatch.setattr(Parts, "rows", lambda *_: pytest.fail("something was evaluated"))
    chosen = {"good": Questions("choice", ["?"]), "bad": Unreadable("choice", list("abcdefghijklmnop"))}
    with pytest.raises(UserError) as caught:
        evaluate(model, TOKENIZER, chosen)
    message = str(caught.value)
    assert "bad, item 1: row 1: `answer` is missing" in message
    assert "bad: 8 of 16 items in all cannot be read" in message
    assert "good" not in message


def test_an_evaluation_stopped_anywhere_goes_on_to_the_same_answers(model, tmp_path):
    chosen = {"x": Questions("generative", list("abc")), "y": Questions("choice", list("abc")), "z": Questions("choice", ["d"])}
    options = {"max_new_tokens": 5, "temperature": 1.0, "batch_tokens": 1}
    expected = evaluate(model, TOKENIZER, chosen, **options)
    for question in range(1, 15):
        attempt = StopsAt(tmp_path / str(question), question)
        try:
            found = evaluate(model, TOKENIZER, chosen, parts=Parts(Ranks(), attempt=attempt), **options)
        except Stopped:
            assert attempt.questions_left == 0
            found = evaluate(model, TOKENIZER, chosen, parts=Parts(Ranks(), attempt=Attempt(attempt.state)), **options)
        assert found == expected
    assert attempt.questions_left > 0  # all places were tried


def test_a_prompt_too_long_for_the_model_keeps_its_start_token_and_its_end():
    model = random_model("textbook")  # reads 64 tokens
    task = Questions("choice", ["short", "long " * 100])
    results, (_, row) = evaluate(model, TOKENIZER, {"x": task})
    assert results["tasks"]["x"]["num_cropped"] == 1
    prompt = TOKENIZER.render_prompt(task[1])
    with torch.no_grad():
        logits = model(torch.tensor([[prompt[0], *prompt[-63:]]]))[0, -1, [TOKENIZER.encode(letter)[0] for letter in "AB"]]
    assert row["logprobs"] == pytest.approx(logits.log_softmax(dim=0).tolist(), abs=1e-4)


@pytest.mark.parametrize(("max_new_tokens", "num_tokens"), [(20, 20), (500, 33)])
def test_a_long_prompt_leaves_room_for_its_answer(max_new_tokens, num_tokens):
    model = random_model("textbook")
    with torch.no_grad():
        model.wte.weight[TOKENIZER.special_id("<|assistant_end|>")] = 0  # tied to the head: it is never the likeliest
        model.wte.weight[TOKENIZER.bos_id] = 0
    _, (row,) = evaluate(model, TOKENIZER, {"x": Questions("generative", ["long " * 100])}, max_new_tokens=max_new_tokens)
    assert (row["num_tokens"], row["cropped"], row["is_complete"]) == (num_tokens, True, False)


def test_chatcore_of_the_published_d20_card():
    """0.0730 after midtraining and 0.0884 after SFT: the means of five tasks."""
    names = ["arc_easy", "arc_challenge", "mmlu", "gsm8k", "humaneval"]
    baselines = [0.25, 0.25, 0.25, 0, 0]

    def card(*accuracies):
        return {
            n: {"accuracy": a, "baseline": b, "interval": [a - 0.01, a + 0.01]}
            for n, a, b in zip(names, accuracies, baselines, strict=True)
        }

    mid = card(0.3561, 0.2875, 0.3111, 0.0250, 0.0671)
    five = pytest.approx([0.0730 - 0.0054, 0.0730 + 0.0054], abs=1e-4)  # 0.01 sqrt(3 / 0.75^2 + 2) / 5
    assert chatcore(mid) == {"five": pytest.approx(0.0730, abs=5e-5), "five_interval": five, "six": None, "six_interval": None}
    sft = card(0.3876, 0.2807, 0.3151, 0.0455, 0.0854)
    assert chatcore(sft)["five"] == pytest.approx(0.0884, abs=5e-5)
    sft["spelling_bee"] = {"accuracy": 1.0, "baseline": 0, "interval": [0.99, 1.0]}
    assert chatcore(sft)["six"] == pytest.approx((5 * 0.0884 + 1) / 6, abs=5e-5)
    del sft["mmlu"]
    assert set(chatcore(sft).values()) == {None}


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Questions("choice", ["?"], letters=("A", "Answer B")), "'Answer B' is . tokens"),
        (Questions(None, ["?"]), "task x has nothing to evaluate"),
        (Questions("choice", []), "task x: no item to evaluate"),
    ],
)
def test_what_cannot_be_scored_is_an_error_in_words(model, task, message):
    with pytest.raises(UserError, match=message):
        evaluate(model, TOKENIZER, {"x": task})


def test_a_model_with_broken_weights_is_an_error():
    model = random_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="weights are broken"):
        evaluate(model, TOKENIZER, {"x": Questions("choice", ["?"])})
