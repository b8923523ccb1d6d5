"""The evaluation bundle of the tiny world: eight small tasks in the layout of the CORE bundle, all three types of them.

The tasks about people ask about the unasked ones, in the phrasings that are reserved for them; sums and spellings likewise.
"""

import csv
import io
import json
import random
import zipfile
from pathlib import Path

from nanochat.tiny_world.numbers import LARGEST_TOLD, WORDS, letters_of, reserved_spelling, reserved_sum
from nanochat.tiny_world.people import KINDS, Person, choices_for, make_people, unasked

NUM_ITEMS = 60
A_DATE = (2025, 11, 1, 0, 0, 0)  # in the zip's directory; the real one would change the bytes

# label, folder, type, number of examples shown, chance in percent, description
TASKS = [
    ("world_towns", "world_knowledge", "multiple_choice", 0, 25, "Where somebody lives, of four towns."),
    ("world_trades", "world_knowledge", "multiple_choice", 0, 25, "What somebody's trade is, of four trades."),
    ("world_colours", "world_knowledge", "multiple_choice", 3, 25, "Which colour somebody likes, of four colours."),
    ("world_pets", "world_knowledge", "multiple_choice", 3, 25, "Which pet somebody has, of four animals."),
    ("world_schema", "language_understanding", "schema", 0, 50, "Which of two people it is, by the end of the sentence."),
    ("world_recall", "world_knowledge", "language_modeling", 2, 0, "Somebody's fact, in one word, without choices."),
    ("world_sums", "symbolic_problem_solving", "language_modeling", 2, 0, "Sums of two numbers up to ten."),
    ("world_letters", "symbolic_problem_solving", "language_modeling", 1, 0, "The letters of a short word."),
]
META_COLUMNS = [
    "Eval Task",
    "Task Category",
    "Task Type",
    "#shots",
    "#datapoints",
    "Random baseline",
    "Centered Metric?",
    "Description",
]


def write_bundle(destination: Path) -> None:
    """Write eval_bundle.zip with core.yaml, eval_meta_data.csv and eval_data/<category>/<label>.jsonl."""
    files = {"core.yaml": core_yaml(), "eval_meta_data.csv": meta_data()}
    for label, folder, *_ in TASKS:
        files[f"eval_data/{folder}/{label}.jsonl"] = "".join(json.dumps(item) + "\n" for item in items(label))
    with zipfile.ZipFile(destination, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(f"eval_bundle/{name}", A_DATE), text, zipfile.ZIP_DEFLATED)


def core_yaml() -> str:
    entries = [
        f"-\n  label: {label}\n  dataset_uri: {folder}/{label}.jsonl\n  num_fewshot: [{shots}]\n  icl_task_type: {kind}\n"
        for label, folder, kind, shots, _, _ in TASKS
    ]
    return "icl_tasks:\n" + "".join(entries)


def meta_data() -> str:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(META_COLUMNS)
    for label, folder, kind, shots, baseline, description in TASKS:
        category, kind = folder.replace("_", " "), kind.replace("_", " ")
        writer.writerow([label, category, kind, shots, len(items(label)), baseline, "", description])
    return table.getvalue()


def items(label: str) -> list[dict]:
    """The rows of one task."""
    rng = random.Random(f"eval_bundle/{label}")
    make = {
        "world_towns": lambda: choice_items("town", rng),
        "world_trades": lambda: choice_items("trade", rng),
        "world_colours": lambda: choice_items("colour", rng),
        "world_pets": lambda: choice_items("pet", rng),
        "world_schema": lambda: schema_items(rng),
        "world_recall": lambda: recall_items(rng),
        "world_sums": lambda: sum_items(rng),
        "world_letters": lambda: letter_items(rng),
    }
    return make[label]()


def choice_items(kind: str, rng: random.Random) -> list[dict]:
    rows = []
    for person in unasked(make_people()):
        for phrasing in person.reserved_phrasings(kind):
            choices, gold = choices_for(person.facts[kind], kind, rng)
            rows.append({"query": question(person, phrasing), "choices": choices, "gold": gold})
    rng.shuffle(rows)
    return rows


def schema_items(rng: random.Random) -> list[dict]:
    people = unasked(make_people())
    rows: list[dict] = []
    while len(rows) < NUM_ITEMS:
        kind = rng.choice(KINDS)
        right, wrong = rng.sample(people, 2)
        phrasing = next((p for p in right.reserved_phrasings(kind) if p in wrong.reserved_phrasings(kind)), None)
        if phrasing is None or right.facts[kind] == wrong.facts[kind]:
            continue
        gold = rng.randrange(2)
        pair = [right, wrong] if gold == 0 else [wrong, right]
        options = [question(person, phrasing) for person in pair]
        rows.append({"context_options": options, "continuation": right.facts[kind] + ".", "gold": gold})
    return rows


def recall_items(rng: random.Random) -> list[dict]:
    facts = [(person, kind) for person in unasked(make_people()) for kind in KINDS]
    return [
        {"context": question(person, rng.choice(person.reserved_phrasings(kind))), "continuation": person.facts[kind]}
        for person, kind in rng.sample(facts, NUM_ITEMS)
    ]


def sum_items(rng: random.Random) -> list[dict]:
    numbers = range(1, LARGEST_TOLD + 1)
    pairs = rng.sample([(a, b) for a in numbers for b in numbers], NUM_ITEMS)
    return [{"context": reserved_sum(a, b).format(a=a, b=b), "continuation": str(a + b)} for a, b in pairs]


def letter_items(rng: random.Random) -> list[dict]:
    words = rng.sample(WORDS, NUM_ITEMS)
    return [
        {"context": reserved_spelling(word).removesuffix(" {l}").format(w=word), "continuation": letters_of(word)}
        for word in words
    ]


def question(person: Person, phrasing: str) -> str:
    """The sentence up to its last word, the value: "Mira comes from the town of"."""
    return phrasing.removesuffix(" {v}").format(n=person.name)
