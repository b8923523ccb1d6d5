"""A small CORE bundle: one task of each kind."""

import json
import zipfile
from pathlib import Path
from typing import Any

import yaml

CHOICES = [
    {"query": "Is it red?", "choices": ["yes", "no"], "gold": 0},
    {"query": "Is it blue?", "choices": ["yes", "no"], "gold": 1},
    {"query": "Is it green?\u2028Look!", "choices": ["yes", "no"], "gold": 1},
]
SCHEMAS = [
    {"context_options": ["The cat", "The hat"], "continuation": "purred.", "gold": 0},
    {"context_options": ["The tin", "The pin"], "continuation": "rusted.", "gold": 1},
]
TEXT_ROWS = [
    {"context": " One, two, ", "continuation": "three"},
    {"context": "Red, green,", "continuation": "blue "},
]


def jsonl(rows: list) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def entry(label: str, kind: str, *, shots: Any = 1, **more: Any) -> dict:
    return {"label": label, "dataset_uri": f"a/{label}.jsonl", "num_fewshot": [shots], "icl_task_type": kind, **more}


ENTRIES = [
    entry("choices", "multiple_choice", shots=2, continuation_delimiter="\nAnswer: "),
    entry("schemas", "schema"),
    entry("texts", "language_modeling"),
]
META = "Eval Task,Task Category,Random baseline\nchoices,x,50\nschemas,x,50\ntexts,x,0\n"
FILES = {
    "core.yaml": yaml.safe_dump({"icl_tasks": ENTRIES}),
    "eval_meta_data.csv": META,
    "eval_data/a/choices.jsonl": jsonl(CHOICES),
    "eval_data/a/schemas.jsonl": jsonl(SCHEMAS),
    "eval_data/a/texts.jsonl": jsonl(TEXT_ROWS),
}


def write_bundle(folder: Path, changes: dict | None = None, root: str = "eval_bundle/") -> Path:
    """`changes` replaces files, or leaves them out (None)."""
    path = folder / "bundle.zip"
    with zipfile.ZipFile(path, "w") as bundle:
        for name, content in {**FILES, **(changes or {})}.items():
            if content is not None:
                bundle.writestr(root + name, content)
    return path
