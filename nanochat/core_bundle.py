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

Covered: a bundle that is broken, incomplete or hostile is refused with the place in it. Parts are read from the zip by name and
    nothing is ever unpacked, so that no name leads anywhere; a part is read up to MAX_PART_BYTES, whatever size the zip tells.
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

    @property
    def num_examples(self) -> int:
        """Examples in front of each question: fewer than asked for when there are not enough other items."""
        return min(self.num_fewshot, len(self.items) - 1)


def read_bundle(path: Path, *, labels: Sequence[str] | None = None, max_per_task: int | None = None) -> list[CoreTask]:
    """The tasks of a bundle, in the order of its core.yaml; `labels` chooses some of them.

    Raises UserError, naming file and line, for a bundle that is broken or incomplete and for a row that is malformed.
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


class Bundle:
    """An open bundle: where its parts are, and what is wrong with them in words."""

    def __init__(self, path: Path, bundle: zipfile.ZipFile):
        self.path = path
        self.bundle = bundle
        # nanochat's bundle has one folder around everything; a bundle without it is as good
        yamls = sorted((name for name in bundle.namelist() if name.split("/")[-1] == "core.yaml"), key=len)
        self.root = yamls[0].removesuffix("core.yaml") if yamls else ""
        self.times = Counter(bundle.namelist())
        self.bytes_left = MAX_BUNDLE_BYTES

    def tasks(self, labels: Sequence[str] | None, max_per_task: int | None) -> list[CoreTask]:
        known = self.listed_tasks()
        unknown = [label for label in labels or () if label not in known]
        if unknown:
            raise UserError(f"{self.path} has no CORE task {', '.join(unknown)}; it has: {listed(list(known))}")
        baselines = self.baselines()
        chosen = [label for label in known if labels is None or label in labels]
        return [self.task(known[label], baselines, max_per_task) for label in chosen]

    def listed_tasks(self) -> dict[str, dict]:
        where = f"{self.path}: {self.root}core.yaml"
        try:
            match strict_yaml.load(self.read("core.yaml").decode("utf-8-sig")):
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

    def baselines(self) -> dict[str, float]:
        """Accuracy of guessing, by task, as a share."""
        line = 1
        try:
            rows = csv.DictReader(io.StringIO(self.read("eval_meta_data.csv").decode("utf-8-sig"), newline=""))
            found: dict[str, float] = {}
            for row in rows:
                line = rows.line_num
                label, baseline = row["Eval Task"], float(row["Random baseline"]) / 100
                if label in found and found[label] != baseline:
                    raise ValueError(f"another baseline for {shown(label)}")
                found[label] = baseline
            return found
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise UserError(
                f"{self.path}: {self.root}eval_meta_data.csv, line {line}: "
                f"expected columns `Eval Task` and `Random baseline` (a number in per cent), found {error}"
            ) from error

    def task(self, entry: dict, baselines: dict[str, float], max_per_task: int | None) -> CoreTask:
        label = str(entry["label"])
        where = f"{self.path}: {self.root}core.yaml, task {listed([label])}"
        shots = entry.get("num_fewshot", [0])
        num_fewshot = shots[0] if isinstance(shots, list) and shots else shots
        if not is_index(num_fewshot, MAX_FEWSHOT + 1):
            raise UserError(
                f"{where}: num_fewshot is {shown(shots)}; expected a list with one number up to {MAX_FEWSHOT}, such as [10]"
            )
        if entry.get("icl_task_type") not in KINDS:
            raise UserError(f"{where}: icl_task_type is {shown(entry.get('icl_task_type'))}; known are {', '.join(KINDS)}")
        if not isinstance(entry.get("dataset_uri"), str):
            raise UserError(f"{where}: dataset_uri is {shown(entry.get('dataset_uri'))}; expected a path under eval_data/")
        if not isinstance(entry.get("continuation_delimiter", " "), str):
            raise UserError(
                f"{where}: continuation_delimiter is {shown(entry['continuation_delimiter'])}; expected a text in quotes"
            )
        if not 0 <= baselines.get(label, -1) < 1:
            raise UserError(f"{where}: eval_meta_data.csv gives it no random baseline from 0 to below 100")
        items = self.items(f"eval_data/{entry['dataset_uri']}", entry["icl_task_type"])
        random.Random(SHUFFLE_SEED).shuffle(items)
        return CoreTask(
            label=label,
            kind=entry["icl_task_type"],
            num_fewshot=num_fewshot,
            delimiter=entry.get("continuation_delimiter", " "),
            baseline=baselines[label],
            items=tuple(items[:max_per_task]),
            num_available=len(items),
        )

    def items(self, name: str, kind: str) -> list[CoreItem]:
        items = []
        # split at \n alone: str.splitlines would cut a row at the rarer line ends inside its text
        where = f"{self.path}: {listed([self.root + name])}"
        for number, line in enumerate(self.read(name).removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
            if line.strip():
                try:
                    items.append(parse_item(jsonl.parse(line), kind, number))
                except ValueError as error:
                    raise UserError(f"{where}, line {number}: malformed {kind} row: {error}") from error
        if not items:
            raise UserError(f"{where}: holds no item")
        return items

    def read(self, name: str) -> bytes:
        where = f"{self.path}: {listed([self.root + name])}"
        if not self.times[self.root + name]:
            raise UserError(f"{where} is missing from the bundle. Download it again")
        if self.times[self.root + name] > 1:
            raise UserError(f"{where} is in the bundle more than once. Download it again")
        most = min(MAX_PART_BYTES, self.bytes_left)
        try:
            with self.bundle.open(self.root + name) as part:
                content = part.read(most + 1)  # in steps, and no further: the size that a zip tells may be a lie
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, RuntimeError, ValueError) as error:
            # RuntimeError: it is encrypted, or packed in a way that is not known
            raise UserError(f"{where} cannot be read from the zip ({error}). Download it again") from error
        if len(content) > most:
            raise UserError(f"{where} has more than {most:,} bytes, which no task has. Download it again")
        self.bytes_left -= len(content)
        return content


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
