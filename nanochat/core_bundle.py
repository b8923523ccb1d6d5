"""The CORE tasks as text: read the evaluation bundle (a zip, never unpacked) and render its prompts.

The bundle of DCLM (arXiv 2406.11794) as nanochat distributes it:

    eval_bundle/core.yaml            icl_tasks: label, dataset_uri, num_fewshot, icl_task_type, continuation_delimiter
    eval_bundle/eval_meta_data.csv   columns "Eval Task" and "Random baseline" (in per cent)
    eval_bundle/eval_data/<dataset_uri>   one item a line, in JSON

Three kinds of task. All are seen here as a few options of (context, continuation), of which one is right:

    multiple_choice     one query, several choices: which choice is likeliest after it?
    schema              several contexts, one continuation: after which is it likeliest?
    language_modeling   one context, one continuation: are all its tokens the likeliest ones?

Seeds, separators and strip rules decide the scores, so they are nanochat's to the character: items are shuffled with
Random(1337), `max_per_task` keeps the first of them, and item i gets examples that Random(1234 + i) draws from the others kept.

Covered: a bundle that is broken, incomplete or hostile is refused with every place that is wrong; of many rows, the first.
    Parts are read from the zip by name and nothing is ever unpacked, so that no name leads anywhere; a part is read up to
    MAX_PART_BYTES, whatever size the zip tells.
Not covered: whether the questions are the right ones. The catalogue's sha256 says that.
"""

import csv
import io
import lzma
import random
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from nanochat import jsonl, strict_yaml
from nanochat.errors import UserError
from nanochat.text import listed, shown

SHUFFLE_SEED = 1337
FEWSHOT_SEED = 1234
KINDS = ("multiple_choice", "schema", "language_modeling")
MAX_PART_BYTES = 256 * 2**20  # unpacked; the largest parts of nanochat's bundle have some 20 MB
MAX_BUNDLE_BYTES = 2**30  # of all parts that are read
MAX_FEWSHOT, MAX_OPTIONS = 100, 1_000  # the tasks have 10, and 4 to 12
MAX_PROBLEMS, MAX_ROWS = 12, 3  # told of a bundle, and of the malformed rows of a file: the rest is counted


@dataclass(frozen=True)
class CoreItem:
    """One question: its options (context, continuation), the index of the right one, and its line in the file."""

    options: tuple[tuple[str, str], ...]
    gold: int
    line: int


@dataclass(frozen=True)
class CoreTask:
    """One task with the items that will be evaluated, in their shuffled order."""

    label: str
    kind: str
    num_fewshot: int
    delimiter: str
    baseline: float
    items: tuple[CoreItem, ...]
    num_available: int
    file: str  # of the bundle

    @property
    def num_examples(self) -> int:
        """Examples in front of each question: fewer than asked for when there are not enough other items."""
        return min(self.num_fewshot, len(self.items) - 1)


def read_bundle(path: Path, *, labels: Sequence[str] | None = None, max_per_task: int | None = None) -> list[CoreTask]:
    """The tasks of a bundle, in the order of its core.yaml; `labels` chooses some of them.

    UserError names all that is wrong with a bundle: files that are missing, entries and rows that are malformed, with the line.
    """
    if max_per_task is not None and max_per_task < 1:
        raise UserError(f"max_per_task {max_per_task} leaves no item to evaluate; it must be at least 1, or null for all")
    with open_bundle(path) as bundle:
        return bundle.tasks(labels, max_per_task)


def list_labels(path: Path) -> list[str]:
    """The names of all tasks in a bundle."""
    with open_bundle(path) as bundle:
        return list(bundle.listed_tasks())


def render_prompts(task: CoreTask, index: int) -> list[str]:
    """The texts of item `index`: the examples, then each option. Language modelling: the context alone, then the whole text.

    The context alone is stripped: its last space would be a token by itself, which in the whole text begins the next word.
    """
    item = task.items[index]
    examples = "".join(render_example(task.items[other], task.delimiter) for other in example_indices(task, index))
    texts = [f"{examples}{context}{task.delimiter}{continuation}" for context, continuation in item.options]
    if task.kind == "language_modeling":
        return [f"{examples}{item.options[0][0]}{task.delimiter}".strip(), *texts]
    return texts


def example_indices(task: CoreTask, index: int) -> list[int]:
    """The items shown as examples before item `index`, never the item itself."""
    drawn = random.Random(FEWSHOT_SEED + index).sample(range(len(task.items) - 1), task.num_examples)
    return [other + (other >= index) for other in drawn]


def render_example(item: CoreItem, delimiter: str) -> str:
    context, continuation = item.options[item.gold]
    return f"{context}{delimiter}{continuation}\n\n"


@contextmanager
def open_bundle(path: Path) -> Iterator["Bundle"]:
    if path.exists():
        jsonl.require_file(path, "the bundle")  # a pipe would keep us waiting
    try:
        file = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path}: cannot be read as a zip of CORE tasks ({error}). Download it again") from error
    with file:
        yield Bundle(path, file)


def refuse(path: Path, problems: Sequence[str]) -> None:
    """UserError with all that is wrong with a bundle, in one screen; nothing if nothing is."""
    if len(problems) == 1:
        raise UserError(f"{path}: {problems[0]}")
    if problems:
        more = len(problems) - MAX_PROBLEMS
        lines = [*problems[:MAX_PROBLEMS], *([f"and {more:,} more"] if more > 0 else [])]
        raise UserError(f"{path}: {len(problems):,} problems:\n  " + "\n  ".join(lines))


class Bundle:
    """An open bundle: where its parts are, and in `problems` what is wrong with them; what could not be read is None."""

    def __init__(self, path: Path, bundle: zipfile.ZipFile):
        self.path = path
        self.bundle = bundle
        # nanochat's bundle has one folder around everything; a bundle without it is as good
        yamls = sorted((name for name in bundle.namelist() if name.split("/")[-1] == "core.yaml"), key=len)
        self.root = yamls[0].removesuffix("core.yaml") if yamls else ""
        self.times = Counter(bundle.namelist())
        self.bytes_left = MAX_BUNDLE_BYTES
        self.missing: list[str] = []
        self.problems: list[str] = []

    def tasks(self, labels: Sequence[str] | None, max_per_task: int | None) -> list[CoreTask]:
        known = self.listed_tasks()
        unknown = [label for label in labels or () if label not in known]
        if unknown:
            raise UserError(f"{self.path} has no CORE task {', '.join(unknown)}; it has: {listed(list(known))}")
        baselines = self.baselines()
        chosen = [label for label in known if labels is None or label in labels]
        tasks = [self.task(known[label], baselines, max_per_task) for label in chosen]
        self.refuse_problems()
        return [task for task in tasks if task is not None]

    def refuse_problems(self) -> None:
        verb = "is" if len(self.missing) == 1 else "are"
        missing = [f"{listed(self.missing)} {verb} missing from the bundle. Download it again"] if self.missing else []
        refuse(self.path, [*missing, *self.problems])

    def listed_tasks(self) -> dict[str, dict]:
        content = self.read("core.yaml")
        self.refuse_problems()
        where = f"{self.path}: {self.root}core.yaml"
        try:
            match strict_yaml.load((content or b"").decode("utf-8-sig")):
                case {"icl_tasks": list(entries)} if all(isinstance(entry, dict) and entry.get("label") for entry in entries):
                    labels = [str(entry["label"]) for entry in entries]
                case _:
                    raise ValueError("there is no such list")
        except (yaml.YAMLError, ValueError) as error:
            raise UserError(f"{where}: expected `icl_tasks:`, a list of tasks with a label each ({error})") from error
        if not labels:
            raise UserError(f"{where}: lists no task")
        if len(set(labels)) < len(labels):
            twice = next(label for label, times in Counter(labels).items() if times > 1)
            raise UserError(f"{where}: task {shown(twice)} is listed twice")
        return dict(zip(labels, entries, strict=True))

    def baselines(self) -> dict[str, float] | None:
        """Accuracy of guessing, by task, as a share."""
        content = self.read("eval_meta_data.csv")
        if content is None:
            return None
        found: dict[str, float] = {}
        wrong = Rows(
            f"{self.root}eval_meta_data.csv", "expected columns `Eval Task` and `Random baseline` (a number in per cent)"
        )
        line = 1
        try:
            rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
            for row in rows:
                line = rows.line_num
                try:
                    label, baseline = row["Eval Task"], float(row["Random baseline"]) / 100
                    if label in found and found[label] != baseline:
                        raise ValueError(f"another baseline for {shown(label)}")
                    found[label] = baseline
                except (KeyError, TypeError, ValueError) as error:
                    wrong.add(line, f"found {error}")
        except (ValueError, csv.Error) as error:  # no text, or nothing that goes on
            wrong.add(line, f"found {error}")
        self.problems += wrong.in_words()
        return None if wrong.number else found

    def task(self, entry: dict, baselines: dict[str, float] | None, max_per_task: int | None) -> CoreTask | None:
        label, kind, uri = str(entry["label"]), entry.get("icl_task_type"), entry.get("dataset_uri")
        delimiter, shots = entry.get("continuation_delimiter", " "), entry.get("num_fewshot", [0])
        num_fewshot = shots[0] if isinstance(shots, list) and shots else shots
        wrong = []
        if not is_index(num_fewshot, MAX_FEWSHOT + 1):
            wrong.append(f"num_fewshot is {shown(shots)}; expected a list with one number up to {MAX_FEWSHOT}, such as [10]")
        if kind not in KINDS:
            wrong.append(f"icl_task_type is {shown(kind)}; known are {', '.join(KINDS)}")
        if not isinstance(uri, str):
            wrong.append(f"dataset_uri is {shown(uri)}; expected a path under eval_data/")
        if not isinstance(delimiter, str):
            wrong.append(f"continuation_delimiter is {shown(delimiter)}; expected a text in quotes")
        if baselines is not None and not 0 <= baselines.get(label, -1) < 1:
            wrong.append("eval_meta_data.csv gives it no random baseline from 0 to below 100")
        self.problems += [f"{self.root}core.yaml, task {listed([label])}: {problem}" for problem in wrong]
        items = self.items(f"eval_data/{uri}", kind) if isinstance(uri, str) and kind in KINDS else None
        if items is None or wrong or baselines is None:
            return None
        num_available = len(items)
        random.Random(SHUFFLE_SEED).shuffle(items)
        return CoreTask(
            label=label,
            kind=str(kind),
            num_fewshot=num_fewshot,
            delimiter=delimiter,
            baseline=baselines[label],
            items=tuple(items[:max_per_task]),
            num_available=num_available,
            file=f"{self.root}eval_data/{uri}",
        )

    def items(self, name: str, kind: str) -> list[CoreItem] | None:
        content = self.read(name)
        if content is None:
            return None
        where = listed([self.root + name])
        items, wrong = [], Rows(where, f"malformed {kind} row")
        # split at \n alone: str.splitlines would cut a row at the rarer line ends inside its text
        for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
            if line.strip():
                try:
                    items.append(parse_item(jsonl.parse(line), kind, number))
                except ValueError as error:
                    wrong.add(number, str(error))
        self.problems += wrong.in_words()
        if not items and not wrong.number:
            self.problems.append(f"{where}: holds no item")
        return None if wrong.number or not items else items

    def read(self, name: str) -> bytes | None:
        where = listed([self.root + name])
        if not self.times[self.root + name]:
            self.missing.append(where)
            return None
        if self.times[self.root + name] > 1:
            self.problems.append(f"{where} is in the bundle more than once. Download it again")
            return None
        most = min(MAX_PART_BYTES, self.bytes_left)
        try:
            with self.bundle.open(self.root + name) as part:
                content = part.read(most + 1)  # in steps, and no further: the size that a zip tells may be a lie
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, RuntimeError, ValueError) as error:
            # RuntimeError: it is encrypted, or packed in a way that is not known
            self.problems.append(f"{where} cannot be read from the zip ({error}). Download it again")
            return None
        if len(content) > most:
            self.problems.append(f"{where} has more than {most:,} bytes, which no task has. Download it again")
            return None
        self.bytes_left -= len(content)
        return content


class Rows:
    """Malformed rows of a file: all are counted, the first are told."""

    def __init__(self, file: str, what: str):
        self.file, self.what = file, what
        self.number = 0
        self.first: list[tuple[int, str]] = []

    def add(self, line: int, problem: str) -> None:
        self.number += 1
        if self.number <= MAX_ROWS:
            self.first.append((line, problem))

    def in_words(self) -> list[str]:
        if self.number < 2:
            return [f"{self.file}, line {line}: {self.what}: {problem}" for line, problem in self.first]
        told = "; ".join(f"line {line}: {problem}" for line, problem in self.first)
        more = f"; and {self.number - MAX_ROWS:,} more" if self.number > MAX_ROWS else ""
        return [f"{self.file}: {self.number:,} times: {self.what}: {told}{more}"]


def parse_item(row: dict, kind: str, line: int) -> CoreItem:
    """One row of a data file -> an item. Raises ValueError with what is wrong."""
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, found {type(row).__name__}")
    if kind == "language_modeling":
        # stored with stray white space around it; the continuation's own is kept
        options = [(text(row, "context").strip(), text(row, "continuation"))]
        return CoreItem(tuple(options), 0, line)
    if kind == "schema":
        options = [(context, text(row, "continuation")) for context in texts(row, "context_options")]
    else:
        options = [(text(row, "query"), choice) for choice in texts(row, "choices")]
    if not is_index(row.get("gold"), len(options)):
        raise ValueError(f"`gold` is {shown(row.get('gold'))}; expected an index of its {len(options)} options")
    return CoreItem(tuple(options), row["gold"], line)


def is_index(value: object, length: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < length


def text(row: dict, key: str) -> str:
    if not isinstance(row.get(key), str):
        raise ValueError(f"`{key}` is {'missing' if key not in row else 'not a text'}")
    return whole(row[key], key)


def whole(value: str, key: str) -> str:
    """The text. ValueError if there are half characters in it: no prompt can be made of them."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"`{key}` has half a character (a lone surrogate) at character {error.start + 1}") from None
    return value


def texts(row: dict, key: str) -> list[str]:
    value = row.get(key)
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(part, str) for part in value):
        raise ValueError(f"`{key}` is {'missing' if key not in row else 'not a list of two or more texts'}")
    if len(value) > MAX_OPTIONS:
        raise ValueError(f"`{key}` has {len(value):,} texts; at most {MAX_OPTIONS:,} are read")
    return [whole(part, key) for part in value]
