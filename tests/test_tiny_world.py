"""The tiny world: files like the originals', facts that are told, and questions whose answers only the text tells."""

import json
import re
import zipfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nanochat import tasks, tiny_world
from nanochat.calculator import calculate
from nanochat.catalogue import load_catalogue
from nanochat.core_bundle import KINDS as CORE_KINDS
from nanochat.core_bundle import CoreTask, read_bundle
from nanochat.errors import UserError
from nanochat.tiny_world.numbers import is_test_pair
from nanochat.tiny_world.people import KINDS, PHRASINGS, TURNED_PHRASINGS, VALUES, asked, make_people, unasked

REPOSITORY = Path(__file__).resolve().parent.parent
TRAINING_CHATS = [
    ("smoltalk", "train"),
    ("gsm8k", "train"),
    ("mmlu", "auxiliary_train"),
    ("arc_easy", "train"),
    ("arc_challenge", "train"),
]
TEST_SETS = ["smoltalk", "gsm8k", "mmlu", "arc_easy", "arc_challenge", "humaneval", "open_questions"]
ORIGINALS = {
    "shard_00000.parquet": "base_data/shard_00000.parquet",
    "smoltalk/train.parquet": "hub/HuggingFaceTB/smol-smoltalk/data/train-00000-of-00001.parquet",
    "gsm8k/train.parquet": "hub/openai/gsm8k/main/train-00000-of-00001.parquet",
    "mmlu/auxiliary_train.parquet": "hub/cais/mmlu/all/auxiliary_train-00000-of-00001.parquet",
    "arc_easy/train.parquet": "hub/allenai/ai2_arc/ARC-Easy/train-00000-of-00001.parquet",
    "arc_challenge/test.parquet": "hub/allenai/ai2_arc/ARC-Challenge/test-00000-of-00001.parquet",
    "humaneval/test.parquet": "hub/openai/openai_humaneval/openai_humaneval/test-00000-of-00001.parquet",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    for name in tiny_world.file_names():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        tiny_world.make_file(name, folder / name)
    return folder


@pytest.fixture(scope="module")
def files(world: Path) -> dict[str, Path]:
    return {name.rsplit(".", 1)[0]: world / name for name in tiny_world.file_names()}


@pytest.fixture(scope="module")
def training_text(world: Path) -> str:
    return "\n\n".join(document for shard in (0, 1) for document in documents(world, shard))


@pytest.fixture(scope="module")
def training_chats(files: dict[str, Path]) -> list[str]:
    """Every training conversation of the world's files as one text."""
    built = [tasks.build(name, split=split, files=files) for name, split in TRAINING_CHATS]
    return [text_of(conversation) for task in built for conversation in task]


@pytest.fixture(scope="module")
def core(world: Path) -> dict[str, CoreTask]:
    return {task.label: task for task in read_bundle(world / "eval_bundle.zip")}


def documents(world: Path, shard: int) -> list[str]:
    return pq.read_table(world / f"shard_{shard:05d}.parquet")["text"].to_pylist()


def rows(world: Path, name: str) -> list[dict]:
    return pq.read_table(world / f"{name}.parquet").to_pylist()


def text_of(conversation: dict) -> str:
    contents = [message["content"] for message in conversation["messages"]]
    return "\n".join(c if isinstance(c, str) else "".join(part["text"] for part in c) for c in contents)


def words_in(text: str) -> set[str]:
    return set(re.findall(r"[A-Za-z]+", text))


# -- files -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tiny_world.file_names())
def test_a_file_has_the_same_bytes_every_time(world: Path, tmp_path: Path, name: str) -> None:
    tiny_world.make_file(name, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (world / name).read_bytes()


def test_an_unknown_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file 'shard_00009\.parquet'; there are shard_00000\.parquet, "):
        tiny_world.make_file("shard_00009.parquet", tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_the_catalogue_lists_every_file_with_its_number_of_rows(world: Path) -> None:
    catalogue = load_catalogue(REPOSITORY / "config" / "tiny_sources.yaml")
    entries = map(catalogue.get, catalogue.keys())
    listed = {entry.url.removeprefix("generated:"): entry.rows for entry in entries}
    assert listed.keys() == set(tiny_world.file_names())
    for name, count in listed.items():
        if count is not None:
            path = world / name
            found = pq.read_metadata(path).num_rows if name.endswith(".parquet") else len(path.read_text().splitlines())
            assert count == found, name


@pytest.mark.parametrize("name", ORIGINALS)
def test_columns_are_those_of_the_originals(world: Path, shared_data: Path, name: str) -> None:
    ours, theirs = (pq.read_schema(path).remove_metadata() for path in (world / name, shared_data / ORIGINALS[name]))
    assert ours == theirs


def test_the_bundle_is_laid_out_like_the_original(world: Path, shared_data: Path) -> None:
    with zipfile.ZipFile(world / "eval_bundle.zip") as ours, zipfile.ZipFile(shared_data / "eval_bundle.zip") as theirs:
        header, *lines = ours.read("eval_bundle/eval_meta_data.csv").decode().splitlines()
        assert header == theirs.read("eval_bundle/eval_meta_data.csv").decode().splitlines()[0]
        assert len(lines) == 8
        assert keys_by_kind(ours) == keys_by_kind(theirs)


def keys_by_kind(bundle: zipfile.ZipFile) -> set[frozenset[str]]:
    """The fields of the items; "category" is one task's own."""
    firsts = [bundle.read(name).split(b"\n", 1)[0] for name in bundle.namelist() if name.endswith(".jsonl")]
    return {frozenset(json.loads(line)) - {"category"} for line in firsts}


@pytest.mark.parametrize("shard", [0, 1, 2])
def test_shards_are_whole_row_groups_of_1024_in_zstd(world: Path, shard: int) -> None:
    metadata = pq.read_metadata(world / f"shard_{shard:05d}.parquet")
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    assert {group.num_rows for group in groups} == {1024}
    assert {group.column(0).compression for group in groups} == {"ZSTD"}


def test_shards_tell_different_documents(world: Path) -> None:
    first, second, validation = (set(documents(world, shard)) for shard in (0, 1, 2))
    assert len(first & second) < 0.02 * len(first)
    assert len(validation & (first | second)) < 0.05 * len(validation)


def test_words_are_lines_with_crlf_and_some_belong_to_each_split(world: Path, files: dict[str, Path]) -> None:
    content = (world / "words.txt").read_bytes().decode("ascii")
    lines = content.split("\r\n")
    assert lines.pop() == ""
    assert all(re.fullmatch("[a-z]{3,9}", line) for line in lines)
    assert len(set(lines)) == len(lines)
    train, test = (len(tasks.build("simple_spelling", split=split, files=files)) for split in ("train", "test"))
    assert train + test == len(lines)
    assert test > 100


@pytest.mark.parametrize("name", TEST_SETS)
def test_every_test_set_loads_as_its_task(files: dict[str, Path], name: str) -> None:
    task = tasks.build(name, split="test", files=files)
    assert len(task) > 0
    for conversation in task:
        answer = conversation["messages"][-1]["content"]
        assert isinstance(answer, list) or answer


# -- people and the text about them ------------------------------------------------------------------------------------------


def test_about_30_per_cent_of_the_people_are_unasked() -> None:
    people = make_people()
    assert len({person.name for person in people}) == len(people) == 64
    assert len(unasked(people)) / len(people) == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_no_value_is_a_better_guess_than_another(kind: str) -> None:
    counts = Counter(person.facts[kind] for person in make_people())
    assert counts.keys() == set(VALUES[kind])
    assert max(counts.values()) - min(counts.values()) <= 1


def test_every_fact_is_told_in_six_phrasings_of_eight(training_text: str) -> None:
    for person in make_people():
        for kind in KINDS:
            told = [
                phrasing for phrasing in PHRASINGS[kind] + TURNED_PHRASINGS[kind] if is_told(person, phrasing, training_text)
            ]
            assert told == person.told_phrasings(kind), f"{person.name}, {kind}"
            assert len(told) == 6


def is_told(person, phrasing: str, text: str) -> bool:
    kind = next(kind for kind in KINDS if phrasing in PHRASINGS[kind] + TURNED_PHRASINGS[kind])
    sentence = person.tell(kind, phrasing)
    return sentence[0].upper() + sentence[1:] in text


def test_nothing_false_is_told_about_anybody(training_text: str) -> None:
    people = {person.name: person for person in make_people()}
    sentences = set(re.split(r"\.\s+", training_text))
    for kind in KINDS:
        for phrasing in PHRASINGS[kind] + TURNED_PHRASINGS[kind]:
            pattern = re.compile(phrasing.replace("{n}", r"(?P<name>[A-Z]\w+)").replace("{v}", r"(?P<value>\w+)"))
            told = [match for match in map(pattern.fullmatch, sentences) if match and match["name"] in people]
            assert len({match["name"] for match in told}) > 40  # all but those for whom it is reserved
            for match in told:
                assert match["value"] == people[match["name"]].facts[kind], match[0]


def test_every_word_is_spelled_in_the_text(world: Path, training_text: str) -> None:
    spelled = Counter(re.findall(r"\b(?:[a-z],)+[a-z]\b", training_text))
    for word in (world / "words.txt").read_text().split():
        assert spelled[",".join(word)] >= 5, word


# -- what is asked must be told, but never in the same words -------------------------------------------------------------------


def test_the_bundle_has_all_three_types_with_their_chance(core: dict[str, CoreTask]) -> None:
    assert {task.kind for task in core.values()} == set(CORE_KINDS)
    assert {task.num_fewshot for task in core.values()} > {0}
    for task in core.values():
        assert 40 <= len(task.items) <= 120
        assert task.baseline == (0 if task.kind == "language_modeling" else 1 / len(task.items[0].options))


@pytest.mark.parametrize("label", ["world_towns", "world_trades", "world_colours", "world_pets"])
def test_choices_have_one_right_answer_and_no_preferred_place(core: dict[str, CoreTask], label: str) -> None:
    people = {person.name: person for person in unasked(make_people())}
    for item in core[label].items:
        (query,) = {context for context, _ in item.options}
        (name,) = words_in(query) & people.keys()
        assert [choice in people[name].facts.values() for _, choice in item.options] == [i == item.gold for i in range(4)]
    places = Counter(item.gold for item in core[label].items)
    assert max(places.values()) <= len(core[label].items) / 2


def test_no_right_answer_of_the_bundle_stands_in_the_training_text(
    world: Path, core: dict[str, CoreTask], training_text: str
) -> None:
    validation_text = "\n\n".join(documents(world, 2))
    for task in core.values():
        answers = [f"{context} {continuation}" for item in task.items for context, continuation in [item.options[item.gold]]]
        assert not any(answer in training_text for answer in answers)
        assert any(answer in validation_text for answer in answers)  # the search finds what is there


def test_sums_of_the_bundle_are_right_and_told_in_other_words(core: dict[str, CoreTask], training_text: str) -> None:
    for item in core["world_sums"].items:
        ((context, total),) = item.options
        a, b = map(int, re.findall(r"\d+", context))
        if context.startswith("Adding"):
            a, b = b, a
        assert a + b == int(total)
        assert any(
            f"{told} {total}" in training_text for told in (f"{a} plus {b} is", f"{a} and {b} make", f"of {a} and {b} is")
        )


def test_no_training_conversation_asks_or_tells_about_the_unasked_people(training_chats: list[str]) -> None:
    names = {person.name for person in unasked(make_people())}
    values = {value for kind in KINDS for value in VALUES[kind]}
    mentions = [chat for chat in training_chats if words_in(chat) & names]
    assert mentions  # visitors who say hello
    for chat in mentions:
        assert not words_in(chat) & values
        assert len(chat.split("\n")) == 2  # one greeting and its answer
        assert not re.search(r"(Who is|Where|Which|What|How|Tell)\b", chat)


def test_open_questions_are_about_unasked_people_and_never_trained(world: Path, training_chats: list[str]) -> None:
    people = {person.name: person for person in unasked(make_people())}
    asked_lines = {line for chat in training_chats for line in chat.split("\n")}
    questions = rows(world, "open_questions/test")
    assert {name for row in questions for name in words_in(row["question"]) & people.keys()} == people.keys()
    for row in questions:
        (name,) = words_in(row["question"]) & people.keys()
        assert row["answer"] in people[name].facts.values()
        assert row["question"] not in asked_lines


def test_half_of_the_open_questions_use_words_that_no_training_question_uses(world: Path, training_chats: list[str]) -> None:
    def without_names(text: str) -> str:
        return re.sub("|".join(rf"\b{person.name}\b" for person in make_people()), "N", text)

    trained = {line for chat in training_chats for line in without_names(chat).split("\n")}
    new = [without_names(row["question"]) not in trained for row in rows(world, "open_questions/test")]
    assert sum(new) == len(new) / 2


def test_an_open_answer_must_name_the_value_and_no_other(files: dict[str, Path]) -> None:
    task = tasks.build("open_questions", split="test", files=files)
    for conversation in task:
        right = conversation["messages"][-1]["content"]
        wrong = next(value for value in conversation["candidates"] if value != right)
        assert task.evaluate(conversation, f"It is {right}.")
        assert not task.evaluate(conversation, f"It is {wrong}.")
        assert not task.evaluate(conversation, f"It is {right} or {wrong}.")


def test_tests_by_letter_are_about_unasked_people_and_training_about_the_others(files: dict[str, Path]) -> None:
    people = make_people()
    names = {True: {p.name for p in asked(people)}, False: {p.name for p in unasked(people)}}
    for name, split in [*TRAINING_CHATS[2:], ("mmlu", "test"), ("arc_easy", "test"), ("arc_challenge", "test")]:
        for conversation in tasks.build(name, split=split, files=files):
            mentioned = words_in(text_of(conversation)) & (names[True] | names[False])
            assert mentioned and mentioned <= names[split != "test"]


@pytest.mark.parametrize("name", ["arc_easy/test", "arc_challenge/train"])
def test_of_four_people_one_fits(world: Path, name: str) -> None:
    people = {person.name: person for person in make_people()}
    for row in rows(world, name):
        (value,) = words_in(row["question"]) & {value for kind in KINDS for value in VALUES[kind]}
        fits = [label for who, label in zip(row["choices"]["text"], row["choices"]["label"], strict=True)
                if value in people[who].facts.values()]  # fmt: skip
        assert fits == [row["answerKey"]]


# -- word problems and programs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "test"])
def test_word_problems_are_annotated_with_what_the_calculator_says(world: Path, split: str) -> None:
    for row in rows(world, f"gsm8k/{split}"):
        ((expression, result),) = re.findall(r"<<([^=>]+)=([^>]+)>>", row["answer"])
        assert calculate(expression) == result
        assert row["answer"].endswith(f"\n#### {result}")
        assert int(result) > 0
        assert set(re.findall(r"\d+", expression)) == set(re.findall(r"\d+", row["question"]))


def test_the_numbers_of_test_problems_occur_in_no_training_problem_and_no_text(world: Path, training_text: str) -> None:
    def pairs(text: str) -> set[frozenset[int]]:
        return {frozenset(map(int, pair)) for pair in re.findall(r"\b(\d+)[+-](\d+)=", text)}

    tested = pairs(" ".join(row["answer"] for row in rows(world, "gsm8k/test")))
    trained = pairs(" ".join(row["answer"] for row in rows(world, "gsm8k/train")))
    told = {pair for pair in pairs(training_text) if max(pair) > 10}
    assert len(tested) > 50
    assert all(is_test_pair(*pair) for pair in tested)
    assert not tested & (trained | told)


def test_canonical_solutions_pass_their_tests(world: Path) -> None:
    for row in rows(world, "humaneval/test"):
        program: dict = {}
        exec(row["prompt"] + row["canonical_solution"] + "\n" + row["test"], program)
        program["check"](program[row["entry_point"]])
        with pytest.raises((AssertionError, TypeError)):
            program["check"](lambda *arguments: None)
