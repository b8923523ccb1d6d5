"""Every task on the real files: prompts as nanochat writes them, answers judged well, and no test item trained on."""

import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from itertools import pairwise, product

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.calculator import calculate
from nanochat.conversations import build_mixture
from nanochat.errors import UserError
from nanochat.tasks import TASKS, build, multiple_choice_prompt
from nanochat.tasks.common import final_number, is_for_test
from nanochat.tasks.gsm8k import answer_parts
from nanochat.tasks.humaneval import find_code, make_program
from nanochat.tasks.open_questions import mentioned
from nanochat.tasks.spelling import read_words
from nanochat.tokenizer import Tokenizer

IDENTITY = {
    "name": "Bulldog",
    "makers": "the students of a course",
    "purpose": "answer questions",
    "facts": ["I have 4 layers.", "I {really} read one book."],
}
HUB = {
    "smoltalk": "HuggingFaceTB/smol-smoltalk/data",
    "mmlu": "cais/mmlu/all",
    "gsm8k": "openai/gsm8k/main",
    "arc_easy": "allenai/ai2_arc/ARC-Easy",
    "arc_challenge": "allenai/ai2_arc/ARC-Challenge",
    "humaneval": "openai/openai_humaneval/openai_humaneval",
}
SIDES = ("train", "test")
SPELLINGS = ("simple_spelling", "spelling_bee")
SPLITS = {"mmlu": ("auxiliary_train", "test"), "humaneval": ("test",)}


@pytest.fixture(scope="session")
def files(shared_data):
    """The real files by catalogue key."""
    found = {"words": shared_data / "words_alpha.txt", "identity_conversations": shared_data / "identity_conversations.jsonl"}
    for task, folder in HUB.items():
        for split in SPLITS.get(task, ("train", "test")):
            found[f"{task}/{split}"] = shared_data / "hub" / folder / f"{split}-00000-of-00001.parquet"
    return found


@pytest.fixture(scope="session")
def tokenizer():
    return Tokenizer.train(["a few words, letters and numbers: 12 + 30 = 42\n"] * 3, 280)


def write(path, rows, schema=None):
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return path


@pytest.fixture(scope="session")
def every_task(files):
    return [
        *(build(name, split=split, files=files) for name in HUB for split in SPLITS.get(name, ("train", "test"))),
        *(build(name, split=split, files=files, rows=2_000) for name in SPELLINGS for split in ("train", "test")),
        *(build("identity", split=split, files={}, identity=IDENTITY) for split in ("train", "test")),
        build("custom", split="train", files=files, source="identity_conversations"),
    ]


@pytest.fixture(scope="session")
def short_list(tmp_path_factory):
    """A list of 8,000 made words, with the line ends of the real one."""
    syllables = [a + b for a in "bdfklmnprstvwz" for b in "aeiou"]
    words = {"".join(some) for some in product(syllables[::7], syllables[::4], syllables[::5], syllables[::9])}
    path = tmp_path_factory.mktemp("words") / "words.txt"
    path.write_bytes(b"".join(word.encode() + b"\r\n" for word in sorted(words)))
    return {"words": path}


# -- all tasks ---------------------------------------------------------------------------------------------------------------


def test_every_conversation_of_every_task_is_one_that_the_tokenizer_renders(every_task, tokenizer):
    for task in every_task:
        some = range(0, len(task), max(1, len(task) // 200))
        for conversation in (task[i] for i in some):
            ids, mask = tokenizer.render_conversation(conversation)
            assert len(ids) == len(mask) and sum(mask) > 1, task
            assert conversation["messages"][-1]["role"] == "assistant"


def test_right_answers_are_right_and_others_wrong(every_task):
    for task in every_task:
        for conversation in (task[i] for i in range(0, min(len(task), 200), 40)):
            answer = conversation["messages"][-1]["content"]
            if isinstance(answer, list):
                answer = "".join(part["text"] for part in answer)
            if task.kind is None:
                with pytest.raises(UserError, match="no right answers"):
                    task.evaluate(conversation, answer)
            else:
                assert task.evaluate(conversation, answer), (task, answer)
                assert not task.evaluate(conversation, "no #### 123456.5"), task
                assert not task.evaluate(conversation, ""), task


def test_the_whole_of_every_data_set_is_there_in_the_number_of_the_manifest(every_task):
    lengths = {(task.name, task.split): len(task) for task in every_task}
    assert (lengths["smoltalk", "train"], lengths["smoltalk", "test"]) == (10_221, 537)
    assert (lengths["mmlu", "auxiliary_train"], lengths["mmlu", "test"]) == (4_755, 7_018)
    assert (lengths["gsm8k", "train"], lengths["gsm8k", "test"]) == (3_737, 660)
    assert (lengths["arc_easy", "test"], lengths["arc_challenge", "train"]) == (1_192, 560)
    assert (lengths["humaneval", "test"], lengths["custom", "train"]) == (82, 996)


def test_kinds_and_baselines(every_task):
    kinds = {task.name: (task.kind, task.baseline) for task in every_task}
    assert kinds.keys() | {"open_questions"} == TASKS.keys()
    assert kinds["mmlu"] == kinds["arc_easy"] == kinds["arc_challenge"] == ("choice", 0.25)
    assert kinds["gsm8k"] == kinds["humaneval"] == kinds["spelling_bee"] == ("generative", 0.0)
    assert kinds["smoltalk"] == kinds["identity"] == kinds["custom"] == (None, 0.0)


def test_a_task_is_a_sequence(files):
    task = build("arc_easy", split="train", files=files, rows=3)
    assert len(task) == len(list(task)) == 3
    assert task[-1] == task[np.int64(2)] == list(task)[2]
    for index in (3, -4):
        with pytest.raises(IndexError):
            task[index]


def test_rows_takes_the_first_of_nanochats_shuffled_order(files):
    """nanochat shuffles with default_rng(42).permutation (the one of Hugging Face's data sets) and takes the first N."""
    questions = pq.read_table(files["gsm8k/train"])["question"].to_pylist()
    expected = [questions[i] for i in np.random.default_rng(42).permutation(len(questions))[:5]]
    task = build("gsm8k", split="train", files=files, rows=5)
    assert [conversation["messages"][0]["content"] for conversation in task] == expected


def test_asking_for_more_rows_than_there_are_takes_all_and_says_so(files, caplog):
    assert len(build("humaneval", split="test", files=files, rows=1000)) == 82
    assert "humaneval/test: 1,000 rows wanted, all 82" in caplog.text


def test_two_builds_are_equal(files, short_list):
    options = {"identity": {"identity": IDENTITY}, "custom": {"source": "identity_conversations"}}
    for name in ("gsm8k", "arc_easy", *SPELLINGS, "identity", "custom"):
        first, second = (build(name, split="train", files=files | short_list, **options.get(name, {})) for _ in range(2))
        assert [first[i] for i in range(100)] == [second[i] for i in range(100)]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gsm8", {"split": "train"}, "There is no task gsm8. Did you mean gsm8k?"),
        (
            "mmlu",
            {"split": "train"},
            "Task mmlu, split train: it needs mmlu/train .* Given were: mmlu/auxiliary_train, mmlu/test",
        ),
        ("open_questions", {"split": "test"}, "needs open_questions/test .* No file of this data set was given"),
        ("gsm8k", {"split": "train", "rows": 0}, "gsm8k/train: rows must be at least 1"),
        ("spelling_bee", {"split": "validation"}, "splits are train and test, found 'validation'"),
        ("identity", {"split": "train"}, "who the model is must be given"),
        ("identity", {"split": "dev", "identity": IDENTITY}, "splits are train and test"),
        ("custom", {"split": "train"}, "either file .* or source"),
        ("custom", {"split": "train", "file": "a", "source": "b"}, "either file .* or source"),
        ("custom", {"split": "train", "source": "b"}, "needs b of the catalogue"),
        ("custom", {"split": "train", "file": "absent.jsonl"}, "absent.jsonl: cannot read"),
    ],
)
def test_wrong_requests_are_told_in_words(files, name, options, message):
    with pytest.raises(UserError, match=message):
        build(name, files=files, **options)


# -- tables ------------------------------------------------------------------------------------------------------------------


def test_a_family_of_files_is_read_as_one(tmp_path):
    rows = [{"question": f"q{i}", "answer": f"#### {i}"} for i in range(7)]
    whole = {"gsm8k/train": write(tmp_path / "whole.parquet", rows)}
    pieces = [write(tmp_path / f"{i}.parquet", rows[start:stop]) for i, (start, stop) in enumerate([(0, 2), (2, 3), (3, 7)])]
    family = {f"gsm8k/train_{i:05d}": path for i, path in enumerate(pieces)}
    for count in (None, 4):
        one, many = (list(build("gsm8k", split="train", files=files, rows=count)) for files in (whole, family))
        assert one == many


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("gsm8k", {"question": "q"}, "no column answer; its columns are question"),
        ("gsm8k", {"question": "q", "answer": None}, "row 0 .gsm8k/test.: answer must be a text, found NoneType"),
        ("gsm8k", {"question": 3, "answer": "#### 1"}, "row 0 .*question must be a text, found int"),
        ("mmlu", {"question": "q", "choices": ["a", "b"], "answer": 2, "subject": ""}, "row 0 .*answer must be the index"),
        ("mmlu", {"question": "q", "choices": ["a", None], "answer": 0, "subject": ""}, "row 0 .*a choice must be a text"),
        ("arc_easy", {"question": "q", "choices": {"text": ["a"], "label": ["A", "B"]}, "answerKey": "A"}, "as many texts"),
        ("arc_easy", {"question": "q", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "B"}, "'B' is none of A"),
        ("smoltalk", {"messages": [{"role": "user", "content": "hi"}]}, "a question and an answer, found 1"),
        ("smoltalk", {"messages": [{"role": "assistant", "content": "hi"}]}, "message 0 has the role 'assistant'"),
        ("smoltalk", {"messages": []}, "at least one message"),
        ("open_questions", {"question": "q", "answer": " ", "candidates": []}, "the answer has no words"),
    ],
)
def test_a_bad_row_is_told_with_file_and_row(tmp_path, name, row, message):
    files = {f"{name}/test": write(tmp_path / "bad.parquet", [row])}
    with pytest.raises(UserError, match=f"bad.parquet.*{message}"):
        build(name, split="test", files=files)[0]


def test_broken_files_are_told(tmp_path):
    empty = write(tmp_path / "empty.parquet", [], pa.schema({"question": pa.string(), "answer": pa.string()}))
    (tmp_path / "text.parquet").write_text("question,answer\n")
    for path, message in [
        (empty, "no rows"),
        (tmp_path / "text.parquet", "not a parquet file"),
        (tmp_path / "absent.parquet", "there is no such file"),
    ]:
        with pytest.raises(UserError, match=f"{path.name}: .*{message}"):
            build("gsm8k", split="test", files={"gsm8k/test": path})


# -- choices -----------------------------------------------------------------------------------------------------------------


def test_the_multiple_choice_prompt_is_nanochats():
    prompt = multiple_choice_prompt("What falls?", ["rain", "light"], ["A", "B"])
    assert prompt == (
        "Multiple Choice question: What falls?\n- rain=A\n- light=B\n\nRespond only with the letter of the correct answer."
    )


def test_a_choice_is_judged_by_its_letter(files):
    for name, split in [("arc_challenge", "train"), ("mmlu", "test")]:
        for conversation in build(name, split=split, files=files, rows=20):
            task, right = build(name, split=split, files=files, rows=1), conversation["messages"][-1]["content"]
            assert [letter for letter in conversation["letters"] if task.evaluate(conversation, letter)] == [right]
            shown = re.findall(r"=(\w)\n", conversation["messages"][0]["content"])
            assert shown[-len(conversation["letters"]) :] == conversation["letters"]


def test_arc_keeps_the_labels_of_the_file(files):
    labels = Counter("".join(conversation["letters"]) for conversation in build("arc_easy", split="train", files=files))
    assert labels == {"ABCD": 1073, "1234": 50, "ABCDE": 3}


def test_wrapped_rows_of_the_original_mmlu_training_part_are_unwrapped(tmp_path):
    rows = [{"question": f"q{i}", "choices": ["w", "x", "y", "z"], "answer": i % 4, "subject": ""} for i in range(9)]
    table = pa.Table.from_pylist([{"train": row} for row in rows])
    pq.write_table(table, tmp_path / "wrapped.parquet", row_group_size=4)
    flat = {"mmlu/auxiliary_train": write(tmp_path / "flat.parquet", rows)}
    wrapped = {"mmlu/auxiliary_train": tmp_path / "wrapped.parquet"}
    expected, found = (list(build("mmlu", split="auxiliary_train", files=files)) for files in (flat, wrapped))
    assert found == expected


# -- GSM8K -------------------------------------------------------------------------------------------------------------------


def test_calculator_calls_of_gsm8k_become_parts():
    assert answer_parts("He ate 2*3=<<2*3=6>>6 eggs.\n#### 6") == [
        {"type": "text", "text": "He ate 2*3="},
        {"type": "python", "text": "2*3"},
        {"type": "python_output", "text": "6"},
        {"type": "text", "text": "6 eggs.\n#### 6"},
    ]
    assert [part["type"] for part in answer_parts("<<1+1=2>><<2+2=4>>")] == ["python", "python_output"] * 2
    assert answer_parts("<<7>>") == [{"type": "python", "text": "7"}, {"type": "python_output", "text": ""}]


def test_the_parts_of_every_answer_make_the_answer_again(files):
    answers = pq.read_table(files["gsm8k/train"])["answer"].to_pylist()
    for answer in answers:
        form = {"text": "{}", "python": "<<{}=", "python_output": "{}>>"}
        assert "".join(form[part["type"]].format(part["text"]) for part in answer_parts(answer)) == answer


def test_our_calculator_agrees_with_the_annotations_of_gsm8k(files):
    """What the model learns to expect is what the tool will answer it: the same number, but for roundings in the data."""
    agree = total = 0
    for conversation in build("gsm8k", split="train", files=files):
        parts = conversation["messages"][1]["content"]
        for call, output in pairwise(parts):
            if call["type"] == "python":
                result = calculate(call["text"])
                assert result is not None, call
                total += 1
                agree += abs(Decimal(result) - Decimal(output["text"])) < Decimal("0.01")
    assert total == 11_842
    assert agree / total > 0.98


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        ("#### 1000", True),
        ("so\n#### 1,000", True),
        ("#### 1000.0", True),
        ("#### 1000.", True),
        ("#### 1000\n#### 5", True),
        ("#### 5\n#### 1000", False),
        ("#### -1000", False),
        ("#### 1.000.0", False),
        ("#### .", False),
        ("####1000", False),
        ("1000", False),
        ("", False),
    ],
)
def test_gsm8k_compares_numbers(tmp_path, answer, is_right):
    path = write(tmp_path / "one.parquet", [{"question": "q", "answer": "#### 1,000"}])
    task = build("gsm8k", split="test", files={"gsm8k/test": path})
    assert task.evaluate(task[0], answer) is is_right


@given(st.text("#-0123456789., \n", max_size=40))
def test_no_text_breaks_the_reading_of_the_final_number(text):
    assert final_number("#### " + text) is None or isinstance(final_number("#### " + text), Decimal)


# -- HumanEval ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def humaneval(files):
    """Whatever the machine offers: these tests are about verdicts."""
    return build("humaneval", split="test", files=files, sandbox="limited")


RETURN = re.compile(r"(?m)^(\s+)return (.*)$")


def evaluate_all(task, answers):
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(task.evaluate, task, answers))


def test_all_canonical_solutions_pass_in_the_sandbox(humaneval):
    answers = [conversation["messages"][1]["content"] for conversation in humaneval]
    assert evaluate_all(humaneval, answers) == [True] * 82
    fenced = [f"Here it is:\n```python\n{answer}\n```\nDone." for answer in answers[:10]]
    assert evaluate_all(humaneval, fenced) == [True] * 10


def test_no_wrong_solution_passes(humaneval):
    """What is returned in another type; another problem's solution under the right name."""
    answers = [conversation["messages"][1]["content"] for conversation in humaneval]
    assert not any(evaluate_all(humaneval, [RETURN.sub(r"\1return (\2,)", answer) for answer in answers]))
    names = [conversation["entry_point"] for conversation in humaneval]
    others = [re.sub(rf"\b{names[i - 1]}\b", name, answers[i - 1]) for i, name in enumerate(names)]
    assert not any(evaluate_all(humaneval, others))


def test_no_unfinished_solution_passes(humaneval):
    """The prompt alone, a body that returns nothing, and one that leaves early, which passes by exit code."""
    prompts = [conversation["messages"][0]["content"] for conversation in humaneval]
    for ending in ("", "    return None\n", "    import os; os._exit(0)\n"):
        assert not any(evaluate_all(humaneval, [prompt + ending for prompt in prompts[:12]]))


def test_code_is_found_in_a_block_or_taken_whole():
    assert find_code("Sure:\n```python\nx = 1\n```\nand\n```\ny = 2\n```") == "x = 1"
    assert find_code("```\nx = 1\n\ny = 2\n```") == "x = 1\n\ny = 2"
    assert find_code("  x = 1\n") == "x = 1"
    assert find_code("```python\nx = 1") == "```python\nx = 1"  # cut off: nanochat fails it too


def test_imports_of_the_prompt_come_before_the_answer():
    prompt = "# types\nfrom typing import List\nimport math\n\ndef f(): pass\nimport os\n"
    assert make_program(prompt, "def f(): return 1") == "from typing import List\nimport math\n\ndef f(): return 1"


# -- spelling ----------------------------------------------------------------------------------------------------------------


def words_of(task):
    """The word of each item, read from the answer."""
    for conversation in task:
        content = conversation["messages"][1]["content"]
        text = content if isinstance(content, str) else content[0]["text"].split("\n\n")[1]
        word, _, letters = text.partition(":")
        assert letters == ",".join(word)
        yield word


def test_no_word_of_the_spelling_tests_occurs_in_their_training(files, every_task):
    words = {
        split: {word for t in every_task if t.split == split and t.name in SPELLINGS for word in t.words} for split in SIDES
    }
    assert not words["train"] & words["test"]
    assert words["train"] | words["test"] == set(read_words(files["words"])[0])
    assert 0.095 < len(words["test"]) / 370_099 < 0.105
    for task in every_task:
        if task.name in SPELLINGS:
            assert set(words_of(task)) <= words[task.split]


def test_items_of_test_and_train_share_no_question_whatever_the_seed(short_list):
    """In nanochat, test item i was training item i + 1: random.Random(-5) is random.Random(5)."""
    questions = {
        split: {
            conversation["messages"][0]["content"]
            for seed in range(3)
            for conversation in build("spelling_bee", split=split, files=short_list, rows=3_000, seed=seed)
        }
        for split in ("train", "test")
    }
    assert not questions["train"] & questions["test"]
    assert len(questions["test"]) > 5_000


def test_a_word_stays_on_its_side_in_every_list(tmp_path):
    words = [f"{a}{b}{c}" for a in "abcdef" for b in "aeiou" for c in "lmnrst"]
    for name, listed in [("one", words), ("two", words[::-1][:90])]:
        (tmp_path / name).write_bytes("\r\n".join(listed).encode())
        task = build("simple_spelling", split="test", files={"words": tmp_path / name})
        assert set(words_of(task)) == {word for word in listed if is_for_test(word)}


def test_counts_are_right_in_every_line(short_list):
    for conversation in build("spelling_bee", split="train", files=short_list, rows=500):
        text = "".join(part["text"] for part in conversation["messages"][1]["content"] if part["type"] == "text")
        call, output = conversation["messages"][1]["content"][2:4]
        word, letter = re.fullmatch(r'"(\w+)"\.count\("(\w)"\)', call["text"]).groups()
        assert calculate(call["text"]) == output["text"] == str(word.count(letter)) == text.rsplit("#### ", 1)[1]
        marked = re.findall(r"^\d+:(\w) count=(\d+)$", text, re.MULTILINE)
        assert marked == [(letter, str(i + 1)) for i in range(word.count(letter))]
        question = conversation["messages"][0]["content"]
        assert word in question and letter in question


def test_questions_are_asked_in_many_words(tmp_path):
    """Of one word and one letter."""
    word = next(a + b for a in "aeiou" for b in "aeiou" if not is_for_test(a + b))
    (tmp_path / "words").write_text(word)
    for name, at_least in (("simple_spelling", 100), ("spelling_bee", 600)):
        task = build(name, split="train", files={"words": tmp_path / "words"}, rows=2_000)
        assert len({conversation["messages"][0]["content"] for conversation in task}) > at_least


def test_word_lists_with_any_line_ends_are_read(tmp_path):
    (tmp_path / "words").write_bytes(b"apple\r\nbear\ncat\r\n\r\nDog\ndon't\ncat\nx1\n")
    assert read_words(tmp_path / "words") == (["apple", "bear", "cat"], 4)


def test_more_items_than_words_ask_again_in_other_words(tmp_path):
    (tmp_path / "words").write_text("\n".join(["strawberry", "blueberry", "raspberry"]))
    split = "test" if is_for_test("strawberry") else "train"
    task = build("spelling_bee", split=split, files={"words": tmp_path / "words"}, rows=300)
    assert len(task) == 300
    assert len({conversation["messages"][0]["content"] for conversation in task}) > 150


def test_a_list_without_words_is_told(tmp_path):
    (tmp_path / "words").write_text("123\n")
    with pytest.raises(UserError, match="no word of this list belongs to spelling_bee/test"):
        build("spelling_bee", split="test", files={"words": tmp_path / "words"})


# -- identity ----------------------------------------------------------------------------------------------------------------


def turns(task):
    return [(a["content"], b["content"]) for c in task for a, b in zip(c["messages"][::2], c["messages"][1::2], strict=True)]


def test_identity_conversations_are_many_and_different():
    task = build("identity", split="train", files={}, identity=IDENTITY)
    assert len({json.dumps(conversation) for conversation in task}) == len(task) == 400
    assert len({question for question, _ in turns(task)}) > 250
    assert Counter(len(conversation["messages"]) > 2 for conversation in task)[True] > 100


def test_identity_conversations_tell_everything_that_is_configured():
    said = " ".join(answer for _, answer in turns(build("identity", split="train", files={}, identity=IDENTITY)))
    for text in ("I am Bulldog", "made by the students of a course", "to answer questions", *IDENTITY["facts"]):
        assert said.count(text) > 5
    assert "None" not in said and "{name}" not in said and " the students of a course made me" not in said.replace(". the", "")


def test_identity_works_with_a_name_alone():
    for identity in ({"name": "X"}, {"name": "X", "makers": None, "purpose": "", "facts": []}):
        said = " ".join(answer for _, answer in turns(build("identity", split="train", files={}, identity=identity)))
        assert "made by" not in said and "purpose" not in said and "  " not in said


def test_a_purpose_may_begin_with_to():
    one, two = (
        list(build("identity", split="train", files={}, identity={**IDENTITY, "purpose": purpose}))
        for purpose in ("answer questions", "to answer questions.")
    )
    assert one == two


def test_identity_test_conversations_are_no_training_conversations():
    train = build("identity", split="train", files={}, identity=IDENTITY, rows=2_000, seed=1)
    test = build("identity", split="test", files={}, identity=IDENTITY, rows=200, seed=2)
    assert not {json.dumps(c) for c in train} & {json.dumps(c) for c in test}


# -- custom ------------------------------------------------------------------------------------------------------------------

HELLO = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
CALL = [{"type": "text", "text": "It is "}, {"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"}]


def test_custom_reads_lists_and_dicts_of_messages(tmp_path, tokenizer):
    system = [{"role": "system", "content": "Be brief."}, *HELLO]
    tool = [HELLO[0], {"role": "assistant", "content": CALL}]
    lines = [json.dumps(HELLO), "", json.dumps({"messages": system}), "  ", json.dumps(tool)]
    for ends, start in (("\n", b""), ("\r\n", b""), ("\n", b"\xef\xbb\xbf")):
        path = tmp_path / "own.jsonl"
        path.write_bytes(start + ends.join(lines).encode())
        task = build("custom", split="train", files={}, file=str(path))
        found = sorted((conversation["messages"] for conversation in task), key=str)
        assert found == sorted([HELLO, system, tool], key=str)
        assert all(sum(tokenizer.render_conversation(conversation)[1]) for conversation in task)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON: Expecting property name.* at column 2"),
        ("hello", "not JSON"),
        ("[", "not JSON"),
        ("\udcff", "not UTF-8: byte 0xff"),
        ("[" * 100_000, "line 3: "),
        ("3", "must be a list"),
        ('{"message": []}', "must be a list"),
        ("[1, 2]", "expected .user."),
        ("[]", "at least one message"),
        ('[{"role": "system", "content": "x"}]', "no user message follows"),
        ('[{"role": "user", "content": "x"}]', "found 1"),
        (
            '[{"role": "user", "content": "x"}, {"role": "user", "content": "x"}]',
            "message 1 has the role 'user', expected .assistant.",
        ),
        ('[{"role": "User", "content": "x"}, {"role": "assistant", "content": "x"}]', "message 0 has the role 'User'"),
        ('[{"role": "user", "content": "x"}, {"role": "system", "content": "x"}]', "message 1 has the role 'system'"),
        ('[{"content": "x"}, {"role": "assistant", "content": "x"}]', "message 0 has the role None"),
        ('[{"role": "user"}, {"role": "assistant", "content": "x"}]', "content of message 0 must be a text, found NoneType"),
        ('[{"role": "user", "content": []}, {"role": "assistant", "content": "x"}]', "content of message 0 must be a text"),
        (
            '[{"role": "user", "content": "x"}, {"role": "assistant", "content": 3}]',
            "content of message 1 must be a text, found int",
        ),
        (
            '[{"role": "user", "content": "x"}, {"role": "assistant", "content": [{"type": "image"}]}]',
            "part 0 of message 1",
        ),
    ],
)
def test_a_bad_line_is_told_with_file_and_line(tmp_path, line, message):
    path = tmp_path / "own.jsonl"
    path.write_bytes(f"{json.dumps(HELLO)}\n\n{line}\n".encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=f"own.jsonl, line 3: .*{message.removeprefix('line 3: ')}"):
        build("custom", split="train", files={}, file=path)


def test_an_empty_file_is_told(tmp_path):
    (tmp_path / "own.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match=r"own\.jsonl: no conversations"):
        build("custom", split="train", files={}, file=tmp_path / "own.jsonl")


# -- open questions ----------------------------------------------------------------------------------------------------------

TOWNS = ["York", "New York", "Oslo", "Saint-Denis", "C++"]


@pytest.fixture
def open_question(tmp_path):
    def make(answer, candidates=TOWNS):
        row = {"question": "Where?", "answer": answer, "candidates": candidates}
        path = write(tmp_path / "q.parquet", [row], pa.schema(
            {"question": pa.string(), "answer": pa.string(), "candidates": pa.list_(pa.string())}
        ))  # fmt: skip
        task = build("open_questions", split="test", files={"open_questions/test": path})
        return lambda reply: task.evaluate(task[0], reply)

    return make


@pytest.mark.parametrize(
    ("answer", "reply", "is_right"),
    [
        ("Oslo", "Oslo", True),
        ("Oslo", "Anna lives in oslo.", True),
        ("Oslo", "Oslo, yes: OSLO!", True),
        ("Oslo", "Anna lives in Oslos.", False),
        ("Oslo", "Oslo or York", False),
        ("Oslo", "I do not know.", False),
        ("Oslo", "", False),
        ("York", "York", True),
        ("York", "New York", False),
        ("New York", "New  York", True),
        ("New York", "York", False),
        ("New York", "New York, not York", False),
        ("Saint-Denis", "in Saint-Denis", True),
        ("Saint-Denis", "in Saint", False),
        ("C++", "It is C++", True),
        ("C++", "It is C", False),
        ("Paris", "Paris", True),
        ("Paris", "Paris, not Oslo", False),
    ],
)
def test_an_open_answer_names_the_answer_and_no_other_candidate(open_question, answer, reply, is_right):
    assert open_question(answer)(reply) is is_right


def test_open_questions_without_candidates_want_the_answer_alone(open_question):
    for candidates in ([], None):
        assert open_question("Oslo", candidates)("I think Oslo or York")
        assert not open_question("Oslo", candidates)("York")


@given(st.text(max_size=30), st.lists(st.text(max_size=8), max_size=4))
def test_mentions_are_found_in_any_text(reply, candidates):
    assert mentioned(reply, candidates) <= {" ".join(candidate.casefold().split()) for candidate in candidates}


# -- oddities of the originals, on their own rows (docs/formats.md) ------------------------------------------------------------


def rows_of(files, key):
    return pq.read_table(files[key]).to_pylist()


def test_rows_of_the_real_training_part_of_mmlu_are_read_wrapped_and_unwrapped(files, tmp_path):
    rows = rows_of(files, "mmlu/auxiliary_train")[:2_500]
    table = pa.Table.from_pylist([{"train": row} for row in rows])
    pq.write_table(table, tmp_path / "wrapped.parquet", row_group_size=1024)
    wrapped = build("mmlu", split="auxiliary_train", files={"mmlu/auxiliary_train": tmp_path / "wrapped.parquet"})
    plain = {"mmlu/auxiliary_train": write(tmp_path / "plain.parquet", rows)}
    assert list(wrapped) == list(build("mmlu", split="auxiliary_train", files=plain))
    assert {conversation["subject"] for conversation in wrapped} == {""}


def test_questions_with_the_same_choice_twice_are_asked_as_they_are(files):
    rows = rows_of(files, "mmlu/test")
    twice = [row for row in rows if len(set(row["choices"])) < 4]
    assert len(twice) == 5 and len(rows) - len({row["question"] for row in rows}) == 47
    asked = {conversation["messages"][0]["content"]: conversation for conversation in build("mmlu", split="test", files=files)}
    for row in twice:
        found = asked[multiple_choice_prompt(row["question"], row["choices"], "ABCD")]
        assert found["messages"][1]["content"] == "ABCD"[row["answer"]] and found["letters"] == list("ABCD")


def test_control_characters_marks_and_stray_blanks_of_mmlu_stay_in_the_prompt(files, tokenizer):
    asked = {conversation["messages"][0]["content"] for conversation in build("mmlu", split="test", files=files)}
    odd = [
        row for row in rows_of(files, "mmlu/test") if re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u00a0\ufeff]", row["question"])
    ]
    assert len(odd) > 40
    for row in odd:
        prompt = multiple_choice_prompt(row["question"], row["choices"], "ABCD")
        assert prompt in asked and tokenizer.decode(tokenizer.encode(prompt)) == prompt


def test_arc_has_rows_of_three_four_and_five_choices_and_of_figures(files):
    labels = Counter()
    for key in ("arc_easy/train", "arc_easy/test", "arc_challenge/train", "arc_challenge/test"):
        name, split = key.split("/")
        rows = {row["question"] + str(row["choices"]["text"]): row for row in rows_of(files, key)}
        for conversation in build(name, split=split, files=files):
            letters = conversation["letters"]
            labels["".join(letters)] += 1
            assert conversation["messages"][1]["content"] in letters
        assert len(rows) == len(build(name, split=split, files=files))
    assert labels == {"ABCD": 3_330, "1234": 121, "ABCDE": 9, "ABC": 5}


def test_final_numbers_of_gsm8k_have_commas_and_signs_and_all_are_read(files):
    answers = [row["answer"] for split in SIDES for row in rows_of(files, f"gsm8k/{split}")]
    assert all(final_number(answer) is not None for answer in answers)
    assert sum("," in answer.split("#### ")[1] for answer in answers) == 47
    assert sum(final_number(answer) < 0 for answer in answers) == 5
    assert sum("<<" not in answer for answer in answers) == 55
    assert final_number("#### 1,234,567") == 1_234_567


def test_humaneval_prompts_begin_with_line_ends_and_keep_them(files, humaneval):
    prompts = [conversation["messages"][0]["content"] for conversation in humaneval]
    assert sorted(prompts) == sorted(row["prompt"] for row in rows_of(files, "humaneval/test"))
    assert sum(prompt.startswith("\n") for prompt in prompts) == 72 and all(prompt.endswith("\n") for prompt in prompts)


def test_system_messages_of_real_chats_stand_before_the_first_question(files):
    rows = [row["messages"] for row in rows_of(files, "smoltalk/train") if row["messages"][0]["role"] == "system"]
    assert len(rows) == 43
    tokenizer = Tokenizer.train([message["content"] for messages in rows for message in messages], 400)
    for messages in rows:
        text = tokenizer.decode(tokenizer.render_conversation({"messages": messages})[0])
        assert text.startswith(f"<|bos|><|user_start|>{messages[0]['content']}\n\n{messages[1]['content']}<|user_end|>")


def test_the_real_conversations_without_a_last_answer_are_kept_and_the_question_is_no_target(files, tokenizer):
    task = build("custom", split="train", files=files, source="identity_conversations")
    unanswered = [conversation for conversation in task if conversation["messages"][-1]["role"] == "user"]
    assert len(unanswered) == 4
    for conversation in unanswered:
        _, mask = tokenizer.render_conversation(conversation)
        last = tokenizer.encode(conversation["messages"][-1]["content"])
        assert sum(mask) > 0 and not any(mask[-len(last) - 2 :])


def test_the_real_word_list_has_no_line_end_at_its_end_and_loses_no_word(files):
    content = files["words"].read_bytes()
    assert content.count(b"\r\n") == content.count(b"\n") == 370_098 and not content.endswith(b"\n")
    words, num_passed_over = read_words(files["words"])
    assert (len(words), num_passed_over, words[0], words[-1]) == (370_099, 0, "a", "zwitterionic")
    assert not build("simple_spelling", split="train", files=files, rows=10).oddities


# -- what was replaced or passed over is counted -------------------------------------------------------------------------------


def test_half_characters_are_replaced_counted_and_in_the_statistics_of_a_mixture(tmp_path, caplog):
    talk = [
        {"role": "user", "content": "a \ud83d b", "name": "extra"},
        {"role": "assistant", "content": [{"type": "text", "text": "\udc00\udc00 \ud83d\ude42", "id": 7}]},
    ]
    (tmp_path / "own.jsonl").write_text("\n".join(json.dumps(messages) for messages in (talk, HELLO)))
    part = {"task": "custom", "split": "train", "file": str(tmp_path / "own.jsonl")}
    mixture = build_mixture([part], files={}, seed=0)
    assert mixture.statistics[0]["replaced_characters"] == 3
    assert "own.jsonl: 3 half characters" in caplog.text
    (found,) = [conversation["messages"] for conversation in mixture if conversation["messages"] != HELLO]
    assert found == [
        {"role": "user", "content": "a \ufffd b"},
        {"role": "assistant", "content": [{"type": "text", "text": "\ufffd\ufffd 🙂"}]},
    ]


def test_words_passed_over_are_counted(tmp_path, caplog):
    words = "\n".join(a + b for a in "bcdfg" for b in "aeiou")
    (tmp_path / "words").write_bytes(b"\xef\xbb\xbf" + f"{words}\r\nBig\nx1\nba\n{'y' * 65}\n".encode())
    mixture = build_mixture([{"task": "simple_spelling", "split": "train"}], files={"words": tmp_path / "words"}, seed=0)
    assert mixture.statistics[0]["words_passed_over"] == 4
    assert "4 entries were passed over" in caplog.text
    assert "ba" in read_words(tmp_path / "words")[0]


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        (
            "arc_easy",
            {"question": "q", "choices": {"text": ["a", "b"], "label": [1, 2]}, "answerKey": "1"},
            "a label must be a text",
        ),
        (
            "arc_easy",
            {"question": "q", "choices": {"text": ["a", "b"], "label": ["A", None]}, "answerKey": None},
            "a label must be",
        ),
        (
            "arc_easy",
            {"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "A"]}, "answerKey": "A"},
            "there twice: A, A",
        ),
        ("arc_easy", {"question": "q", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "A"}, "there is one choice"),
        (
            "mmlu",
            {"question": "q", "choices": ["a", "b"], "answer": True, "subject": ""},
            "the index of one of the choices, found True",
        ),
        (
            "open_questions",
            {"question": "q", "answer": "x", "candidates": "xyz"},
            "candidates must be a list of texts, found str",
        ),
        ("open_questions", {"question": "q", "answer": "x", "candidates": 3}, "candidates must be a list of texts, found int"),
    ],
)
def test_a_row_of_other_types_is_told_with_file_and_row(tmp_path, name, row, message):
    files = {f"{name}/test": write(tmp_path / "odd.parquet", [row])}
    with pytest.raises(UserError, match=f"odd.parquet, row 0 .*{message}"):
        build(name, split="test", files=files)[0]


def test_a_row_that_is_not_utf8_a_column_twice_and_a_folder_are_told(tmp_path):
    raw = pa.array([b"bro\xffken"])
    text = pa.Array.from_buffers(pa.string(), 1, raw.buffers())
    tables = {
        "bytes": pa.table({"question": text, "answer": ["#### 1"]}),
        "twice": pa.Table.from_arrays([pa.array(["q"])] * 3, names=["question", "answer", "answer"]),
    }
    for name, message in (
        ("bytes", "row 0 .*a text in it is not UTF-8"),
        ("twice", "two columns answer"),
        ("folder", "this is a folder"),
    ):
        path = tmp_path / name
        pq.write_table(tables[name], path) if name in tables else path.mkdir()
        with pytest.raises(UserError, match=f"{name}.*{message}"):
            build("gsm8k", split="test", files={"gsm8k/test": path})[0]


def test_texts_that_would_take_their_length_squared_take_their_length():
    """A second or so each, where the regexes of old took hours."""
    assert answer_parts("<<" * 500_000) == [{"type": "text", "text": "<<" * 500_000}]
    assert find_code("```" + "\n" * 1_000_000) == "```"
    assert find_code("```\n```") == "```\n```" and find_code("```\n\n```") == ""
