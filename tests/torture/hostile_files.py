"""Files that are not what they say: no file at all, another format, bombs, rows of the wrong types.

Every reader of files that people bring must say in words what is wrong, naming the file: a UserError, and soon.
"""

import json
import os
import random
import signal
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from nanochat import strict_yaml
from nanochat.core_bundle import read_bundle, render_prompts
from nanochat.dataset import read_documents
from nanochat.errors import UserError
from nanochat.tasks import build
from nanochat.tokenizer import Tokenizer
from torture.ingredients import TASK_ROWS

Trials = Iterator[str | None]
LONGEST_WAIT_S = 120  # for what takes milliseconds


def refused(what: str, function: Callable[[], Any], *names: str) -> str | None:
    """None if the function raises a UserError that has these names in it."""
    try:
        function()
    except UserError as error:
        missing = [name for name in names if name not in str(error)]
        return f"{what}: the message does not name {missing}: {error}" if missing else None
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        return f"{what}: {type(error).__name__}: {str(error)[:200]}"
    return f"{what}: was not refused"


# -- no files ----------------------------------------------------------------------------------------------------------------


READERS: dict[str, Callable[[Path], Any]] = {
    "documents": lambda path: list(read_documents(path)),
    "a table": lambda path: build("mmlu", split="test", files={"mmlu/test": path}),
    "conversations": lambda path: build("custom", split="train", files={}, file=path),
    "words": lambda path: build("simple_spelling", split="train", files={"words": path}),
    "a bundle": read_bundle,
    "a tokenizer": Tokenizer.load,
}


def no_files(folder: Path) -> Trials:
    folder = folder / "no_files"
    folder.mkdir()
    for name, make in NO_FILES.items():
        path = folder / name.replace(" ", "_")
        make(path)
        for what, read in READERS.items():
            with alarm(LONGEST_WAIT_S):  # a reader that opens the pipe would wait for ever
                yield refused(f"{what}: {name}", lambda path=path, read=read: read(path), path.name)  # type: ignore[misc]


@contextmanager
def alarm(seconds: int) -> Iterator[None]:
    """TimeoutError in this thread after so long."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"it took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def parquet_of(columns: dict[str, Any]) -> bytes:
    buffer = BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def zip_of(parts: dict[str, bytes]) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in parts.items():
            file.writestr(name, content)
    return buffer.getvalue()


NO_FILES: dict[str, Callable[[Path], Any]] = {
    "a folder": Path.mkdir,
    "nothing": lambda path: None,
    "a link in a circle": lambda path: path.symlink_to(path),
    "a link to nothing": lambda path: path.symlink_to("absent"),
    "a pipe": os.mkfifo,
    "a device without end": lambda path: path.symlink_to("/dev/zero"),
    "an empty file": Path.touch,
    "a web page": lambda path: path.write_text("<!DOCTYPE html><title>Sign in</title>"),
    "NUL bytes": lambda path: path.write_bytes(bytes(5_000)),
    "random bytes": lambda path: path.write_bytes(random.Random(0).randbytes(5_000)),
    "UTF-16": lambda path: path.write_bytes('[{"role": "user", "content": "x"}]'.encode("utf-16")),
    "parquet of nothing": lambda path: path.write_bytes(parquet_of({})),
    "parquet without rows": lambda path: path.write_bytes(parquet_of({"text": pa.array([], pa.string())})),
    "parquet of numbers": lambda path: path.write_bytes(parquet_of({"text": [1, 2], "question": [1, 2]})),
    "parquet of nulls": lambda path: path.write_bytes(parquet_of({"text": pa.nulls(3)})),
    "half a parquet": lambda path: path.write_bytes(parquet_of({"text": ["x" * 50] * 50})[:-200]),
    "a magic number": lambda path: path.write_bytes(b"PAR1PAR1"),
    "an empty zip": lambda path: path.write_bytes(zip_of({})),
    "a zip of something": lambda path: path.write_bytes(zip_of({"a.txt": b"x"})),
    "deep brackets": lambda path: path.write_text("[" * 200_000),
}


# -- rows of tables ----------------------------------------------------------------------------------------------------------

STRANGE: tuple[Any, ...] = (
    None, True, 3, -1, 2**62, 1.5, float("nan"), b"x", "", "x", [], ["a"], [None], [["a"]], [1], {"text": ["a"]}, {"a": None},
)  # fmt: skip


def table_rows(count: int, seed: int, folder: Path) -> Trials:
    """A row of each task with a strange value in a column, or in a list of one: told with the file, or a conversation."""
    tokenizer = Tokenizer([])
    for number in range(count):
        rng = random.Random(f"{seed}/tables/{number}")
        name = rng.choice(list(TASK_ROWS))
        row = json.loads(json.dumps(TASK_ROWS[name]))
        place = rng.choice(list(row))
        if isinstance(row[place], dict) and rng.random() < 0.7:
            row[place][rng.choice(list(row[place]))] = rng.choice(STRANGE)
        elif isinstance(row[place], list) and isinstance(row[place][0], str) and rng.random() < 0.5:
            row[place] = rng.choice([[None, "b"], ["a"], ["", ""], ["a"] * 27, ["a"] * 26])
        else:
            row[place] = rng.choice(STRANGE)
        if rng.random() < 0.1:
            del row[place]
        yield strange_row(
            f"seed {seed}, row {number}: {name}, {place} {str(row.get(place))[:60]}", name, row, folder, tokenizer
        )


def strange_row(what: str, name: str, row: dict, folder: Path, tokenizer: Tokenizer) -> str | None:
    path = folder / "strange.parquet"
    try:
        pq.write_table(pa.Table.from_pylist([row]), path)
    except (pa.ArrowException, OverflowError):
        return None  # no such file can be written
    try:
        (conversation,) = build(name, split="test", files={f"{name}/test": path})
        tokenizer.render_conversation(conversation)
        if conversation["messages"][-1]["content"] not in conversation.get(
            "letters", [conversation["messages"][-1]["content"]]
        ):
            return f"{what}: an answer that is none of the letters"
    except UserError as error:
        told = "strange.parquet" in str(error) and ("row 0" in str(error) or "column" in str(error) or "no rows" in str(error))
        return None if told else f"{what}: the message names no place: {error}"
    except Exception as error:
        return f"{what}: {type(error).__name__}: {error}"
    return None


# -- bundles -----------------------------------------------------------------------------------------------------------------

ENTRY = {"label": "t", "dataset_uri": "t.jsonl", "num_fewshot": [1], "icl_task_type": "multiple_choice"}
ITEM = {"query": "q", "choices": ["a", "b"], "gold": 1}
GOOD_PARTS = {
    "eval_bundle/core.yaml": yaml.safe_dump({"icl_tasks": [ENTRY]}).encode(),
    "eval_bundle/eval_meta_data.csv": b"Eval Task,Random baseline\nt,25\n",
    "eval_bundle/eval_data/t.jsonl": (json.dumps(ITEM) + "\n").encode() * 5,
}
DATA, YAML, CSV = "eval_bundle/eval_data/t.jsonl", "eval_bundle/core.yaml", "eval_bundle/eval_meta_data.csv"


def changed(**item: Any) -> dict[str, bytes]:
    return GOOD_PARTS | {DATA: json.dumps(ITEM | item).encode()}


def listed(**entry: Any) -> dict[str, bytes]:
    return GOOD_PARTS | {YAML: yaml.safe_dump({"icl_tasks": [ENTRY | entry]}).encode()}


BAD_BUNDLES: dict[str, dict[str, bytes]] = {
    "half a character": changed(query="\ud800"),
    "half a character in a choice": changed(choices=["a", "\udfff"]),
    "gold true": changed(gold=True),
    "gold a number with a point": changed(gold=1.0),
    "gold huge": changed(gold=10**400),
    "gold below 0": changed(gold=-1),
    "a thousand and one choices": changed(choices=["a"] * 1_001),
    "a key twice": GOOD_PARTS | {DATA: b'{"query": "q", "query": "r", "choices": ["a", "b"], "gold": 0}'},
    "deep brackets": GOOD_PARTS | {DATA: b'{"query": ' + b"[" * 100_000},
    "a number of 5,000 digits": GOOD_PARTS | {DATA: b'{"query": ' + b"9" * 5_000 + b"}"},
    "a delimiter of nothing": listed(continuation_delimiter=None),
    "a delimiter of lists": listed(continuation_delimiter=[["x"]]),
    "examples without end": listed(num_fewshot=[10**9]),
    "examples true": listed(num_fewshot=[True]),
    "a path that is none": listed(dataset_uri={"a": 1}),
    "a path to the machine": listed(dataset_uri="../../../../../etc/passwd"),
    "an absolute path": listed(dataset_uri="/etc/passwd"),
    "a label of control characters": listed(label="\x1b[31m", dataset_uri="absent"),
    "a task twice": GOOD_PARTS | {YAML: yaml.safe_dump({"icl_tasks": [ENTRY, ENTRY]}).encode()},
    "an alias in itself": GOOD_PARTS | {YAML: b"icl_tasks: &a [*a]"},
    "a bomb of aliases": GOOD_PARTS
    | {YAML: "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40))]).encode()},
    "an object of Python": GOOD_PARTS | {YAML: b"icl_tasks: !!python/object/apply:os.getcwd []"},
    "YAML in deep brackets": GOOD_PARTS | {YAML: b"[" * 200_000},
    "YAML in another encoding": GOOD_PARTS | {YAML: "icl_tasks: []".encode("utf-16")},
    "a table in another encoding": GOOD_PARTS | {CSV: "Eval Task,Random baseline\nt,25\n".encode("utf-16")},
    "a table with a field without end": GOOD_PARTS | {CSV: b'Eval Task,Random baseline\nt,"' + b"x" * 200_000},
    "a table with two answers": GOOD_PARTS | {CSV: b"Eval Task,Random baseline\nt,25\nt,50\n"},
    "a baseline that is no number": GOOD_PARTS | {CSV: b"Eval Task,Random baseline\nt,nan\n"},
}


def bundles(count: int, seed: int, folder: Path) -> Trials:
    path = folder / "bundle.zip"
    path.write_bytes(zip_of(GOOD_PARTS))
    yield None if len(read_bundle(path)[0].items) == 5 else "the good bundle is not read"
    for what, parts in BAD_BUNDLES.items():
        path.write_bytes(zip_of(parts))
        yield refused(what, lambda: read_bundle(path), "bundle.zip")
    for what, content in {"a part twice": part_twice(), "a part that says it is encrypted": encrypted(), "a bomb": bomb(folder),
                          "a bomb that lies about its size": bomb(folder, lies=True)}.items():  # fmt: skip
        path.write_bytes(content)
        yield refused(what, lambda: read_bundle(path), "bundle.zip")
    good = zip_of(GOOD_PARTS)
    for number in range(count):
        path.write_bytes(damaged(good, random.Random(f"{seed}/bundles/{number}")))
        yield refused_or_read(f"seed {seed}, damaged bundle {number}", path)


def part_twice() -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, content in [*GOOD_PARTS.items(), (DATA, b"{}")]:
            file.writestr(name, content)
    return buffer.getvalue()


def encrypted() -> bytes:
    content = bytearray(zip_of(GOOD_PARTS))
    for mark, place in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        start = content.find(mark)
        while start >= 0:
            content[start + place] |= 1
            start = content.find(mark, start + 1)
    return bytes(content)


def bomb(folder: Path, *, lies: bool = False) -> bytes:
    """A part of 300 MB in 300 kB, which may say that it has 100 bytes."""
    path = folder / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in (YAML, CSV):
            file.writestr(name, GOOD_PARTS[name])
        with file.open(DATA, "w") as part:
            for _ in range(300):
                part.write(b" " * 1_000_000)
    content = path.read_bytes()
    return content.replace((300_000_000).to_bytes(4, "little"), (100).to_bytes(4, "little")) if lies else content


def damaged(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        if not changed:
            break
        place = rng.randrange(len(changed))
        match rng.randrange(4):
            case 0:
                changed[place] ^= 1 << rng.randrange(8)
            case 1:
                del changed[place : place + rng.randint(1, 30)]
            case 2:
                changed[place:place] = rng.randbytes(rng.randint(1, 9))
            case 3 if place > 10:
                del changed[place:]
    return bytes(changed)


def refused_or_read(what: str, path: Path) -> str | None:
    try:
        for task in read_bundle(path):
            render_prompts(task, 0)
    except UserError as error:
        return None if path.name in str(error) else f"{what}: the message does not name the file: {error}"
    except Exception as error:
        return f"{what}: {type(error).__name__}: {error}"
    return None


# -- YAML --------------------------------------------------------------------------------------------------------------------

YAML_BOMBS = {
    "brackets": "a: " + "[" * 100_000,
    "indentation": "\n".join(" " * i + "-" for i in range(2_000)),
    "aliases": BAD_BUNDLES["a bomb of aliases"][YAML].decode(),
    "an alias in itself": "a: &a [*a]",
    "an alias in its mapping": "&a {b: *a}",
    "many values": "a: [" + "x," * 200_000 + "]",
    "levels through aliases": "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 90))]),
    "a date that is none": "a: 2026-02-31",
    "a number of 5,000 digits": "a: " + "9" * 5_000,
    "half a character": 'a: "\\ud800"',
    "NUL": "a: \0",
    "an object of Python": "a: !!python/object/apply:os.getcwd []",
}

YAML_PROGRAM = """
import json, sys, yaml
from nanochat import strict_yaml
for name, text in json.load(sys.stdin).items():
    try:
        strict_yaml.load(text)
    except yaml.YAMLError:
        print(name, flush=True)
"""


def yaml_bombs() -> Trials:
    """In a process of their own, which a parser that runs out of stack would end."""
    done = subprocess.run([sys.executable, "-c", YAML_PROGRAM], input=json.dumps(YAML_BOMBS), capture_output=True, text=True)
    told = done.stdout.splitlines()
    for name in YAML_BOMBS:
        yield None if name in told else f"{name}: exit code {done.returncode}, {done.stderr[-200:]}"
    for text in ("a: &a {b: 1}\nc: *a\nd: {<<: *a, e: [*a, *a]}\n", "a: [1, [2, [3]]]"):
        yield None if strict_yaml.load(text) == yaml.safe_load(text) else f"{text} is not read"
