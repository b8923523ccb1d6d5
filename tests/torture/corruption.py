"""Damage one artefact of a finished run, run what reads it, and see that nobody used the damage without a word.

The types of artefacts come from the run: every file that is there but for logs. So do their consumers: each program of the
rules (doing its work; finding it done; going on from half-way), the chat, the server, the traces, the comparison. Each is run
once undisturbed and watched for what it opens: a file's consumers are those that open it. What a consumer then makes of damage
is compared with what it makes without, to the byte. Allowed are

    refused         exit code 1, nothing published, the file and the way out are named; repaired as told, all is as before
    made again      the same result: the damaged file was made or evaluated anew, or is of no consequence
    told            a report of the rest, which names the file and the way out
    as if not there a record, of which nothing but the story is lost

Not covered: a file that changes between its check and its use.
"""

import itertools
import json
import random
import re
import shutil
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from project import Project

from nanochat.manifest import MANIFEST
from torture.board import Row, row
from torture.consume import OPENED, SIZES_ONLY, STOP_AT
from torture.finished import Program, Zygotes, digests, files_of, generator, link_tree, make_finished, programs
from torture.mutations import DELETED, MUTATIONS, mutate
from torture.zygote import Ended, Job

PART = "corruption"
WORKERS = 2
REMEDY = re.compile(
    r"nanochat\.verify --repair|has not finished|make demo|begin anew, delete the folder|[Rr]un the same command"
)
REPAIR = re.compile(r"python -m nanochat\.verify --repair(?: (\S+?)[,.]?)?(?:\s|$)")
LAST_WORDS = 300
NOT_ASKED = "not asked"

# types that no program reads, and who does
READ_BY_PEOPLE = {
    "report.html": "by people",
    "report.md": "by people",
    "loss.png": "in report.md",
    "core.png": "in report.md",
    "chat.png": "in report.md",
    "comparison.html": "by people",
}


# -- consumers ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Consumer:
    """A program that reads artefacts. `results` are the files that it makes; without any, what it says is its result."""

    name: str
    path: str
    arguments: tuple[str, ...]
    results: tuple[str, ...] = ()
    made_by: Program | None = None  # whose earlier work is to be cleared away first
    keeps: str = ""  # "files": only the manifest is cleared; "state": all but the commits and parts
    page: str = ""  # where it tells of damage, if not on the screen

    def prepare(self, tree: Path) -> None:
        if self.made_by and self.keeps == "files":
            (tree / self.made_by.manifest).unlink()
        elif self.made_by:
            self.made_by.clear(tree, keep_state=self.keeps == "state")

    def job(self, tree: Path, **environment: str) -> Job:
        if self.made_by and self.made_by.state:
            environment |= {"NANOCHAT_STATE": str(tree / self.made_by.state), "NANOCHAT_CLAIM": "99"}
        return Job("torture.consume:run", [self.path, *self.arguments], environment)


def consumers_of(found: Sequence[Program], folder: Path) -> list[Consumer]:
    consumers = []
    for program in found:
        page = str(program.folder / "report.md") if program.path.endswith("report.py") else ""
        page = str(program.folder / "comparison.html") if program.path.endswith("compare.py") else page
        both = (program.path, program.arguments, (str(program.manifest),), program)
        consumers.append(Consumer(program.name, *both, page=page))
        if not page:
            consumers.append(Consumer(f"{program.name}, done", *both, keeps="files"))
        if program.state and any((folder / program.state).glob("[sp]*_*")):
            consumers.append(Consumer(f"{program.name}, half-way", *both, keeps="state"))
    return consumers + commands(folder)


def commands(folder: Path) -> list[Consumer]:
    """What people run: the programs that open a model, or several runs."""
    models = sorted(str(path.parent.relative_to(folder)) for path in folder.glob("results/*/*/model.safetensors"))
    runs = sorted(str(path.parent.parent.relative_to(folder)) for path in folder.glob("results/*/report/report.html"))
    chat = ("-p", "Where does Otto live?", "--temperature", "0", "--max-tokens", "8", "--seed", "1")
    trace = ("-p", "The home of Otto is in", "--beside", "none", "-o", "out")
    found = [
        *(Consumer(f"chat {model}", "nanochat.chat", (model, *chat)) for model in models),
        *(Consumer(f"trace {model}", "nanochat.trace", (model, *trace), ("out/trace.json",)) for model in models),
        *(Consumer(f"serve {model}", "nanochat.serve", (model, "--port", "0", "--key", "none")) for model in models[-1:]),
    ]
    if len(runs) > 1:
        page = "out.html"
        found.append(Consumer("compare", "nanochat.compare", (*runs, "-o", page), (page,), page=page))
    return found


# -- the world ---------------------------------------------------------------------------------------------------------------


@dataclass
class World:
    """A finished project, with a training and evaluations stopped half-way, and what everything in it is read by."""

    folder: Path
    scratch: Path
    zygotes: Zygotes
    programs: list[Program]
    consumers: list[Consumer] = field(default_factory=list)
    undisturbed: dict[str, str] = field(default_factory=dict)  # consumer -> its result
    seconds: dict[str, float] = field(default_factory=dict)  # consumer -> how long that took
    readers: dict[str, list[Consumer]] = field(default_factory=lambda: defaultdict(list))  # file -> who opens it
    without: dict[tuple[str, str], str] = field(default_factory=dict)  # (consumer, file) -> result where the file is not there
    counter: Iterable[int] = field(default_factory=itertools.count)

    def tree(self) -> Path:
        return link_tree(self.folder, self.scratch / f"tree_{next(self.counter)}")

    def run(self, consumer: Consumer, tree: Path, **environment: str) -> Ended:
        return self.zygotes.run(consumer.job(tree, **environment), tree)

    def made_anew(self, consumer: Consumer) -> str | None:
        """What a program makes that found its own work damaged: with other threads than the run's, other last digits."""
        if consumer.keeps != "files":
            return None
        work = replace(consumer, name=consumer.made_by.name, keeps="")
        if work.name not in self.undisturbed:
            observe(work, self)
        return self.undisturbed[work.name]

    @property
    def is_exact(self) -> bool:
        """Whether what is made again here is to the bit what the run had made."""
        work = [consumer for consumer in self.consumers if consumer.made_by and not consumer.keeps and not consumer.page]
        # of the trainings: everything that is made without floating-point sums is the same with any number of threads
        return any(c.path.endswith("train.py") for c in work) and all(
            self.undisturbed[c.name] == (self.folder / c.results[0]).read_text() for c in work
        )

    @property
    def types(self) -> dict[str, list[str]]:
        """Type -> the files of it."""
        found: dict[str, list[str]] = defaultdict(list)
        for path in files_of(self.folder):
            found[type_of(path)].append(str(path))
        return dict(sorted(found.items()))


def type_of(path: Path) -> str:
    """results/tiny/resume/sft/step_00000002/state.json -> commit: state.json"""
    name = re.sub(r"\d+", "#", path.name)
    if path.parent.name.startswith("step_"):
        return f"commit: {name}"
    if path.name.startswith("part_"):
        return "part_*.json"
    for pair in ("manifest.json", "record.json"):
        if name.endswith(f".{pair}"):
            return f"*.{pair}"
    return name


def make_world(
    project: Project, scratch: Path, zygotes: Zygotes, *, only: Callable[[Consumer], bool] = lambda _: True
) -> World:
    """Stop a training and the evaluations half-way, run every consumer once, and remember what it read and made."""
    found = programs(project)
    copy = link_tree(project.folder, scratch / "world")
    world = World(copy, scratch, zygotes, found)
    for program in found:
        if program.name.endswith(("/base_train", "/base_eval", "/chat_eval/sft")):
            stop_half_way(program, world)
    world.consumers = [consumer for consumer in consumers_of(found, copy) if only(consumer)]
    with ThreadPoolExecutor(WORKERS) as pool:
        watched = pool.map(lambda consumer: observe(consumer, world), world.consumers)
        for consumer, opened in zip(world.consumers, watched, strict=True):
            for path in opened:
                world.readers[path].append(consumer)
    return world


def stop_half_way(program: Program, world: World) -> None:
    """Leave in the world what a stage keeps that was stopped: the last commits, or the finished tasks."""
    tree, question = world.tree(), 5 if program.path.endswith("train.py") else 12
    program.clear(tree)
    consumer = Consumer(program.name, program.path, program.arguments, made_by=program)
    ended = world.run(consumer, tree, **{STOP_AT: str(question)})
    kept = [path for path in (tree / program.state).glob("[sp]*_*") if path.name.startswith(("step_", "part_"))]
    if ended.code or len(kept) < 2 or (tree / program.manifest).exists():
        raise RuntimeError(f"{program.name} did not stop half-way: {ended.said[-LAST_WORDS:]}")
    shutil.rmtree(world.folder / program.state)
    shutil.copytree(tree / program.state, world.folder / program.state)
    shutil.rmtree(tree)


def observe(consumer: Consumer, world: World) -> set[str]:
    """Run it undisturbed, note its result and its time, and return which artefacts it opened."""
    tree, began = world.tree(), time.monotonic()
    consumer.prepare(tree)
    before = set(map(str, files_of(tree)))
    log = tree / "opened"
    ended = world.run(consumer, tree, **{OPENED: str(log)})
    if ended.code:
        raise RuntimeError(f"{consumer.name}, undisturbed: {ended.said[-LAST_WORDS:]}")
    opened = {
        str(Path(name).relative_to(tree) if name.startswith(str(tree)) else name) for name in log.read_text().splitlines()
    }
    world.undisturbed[consumer.name] = result_of(consumer, tree, ended)
    world.seconds[consumer.name] = time.monotonic() - began
    shutil.rmtree(tree)
    return opened & before


def result_of(consumer: Consumer, tree: Path, ended: Ended) -> str:
    if not consumer.results:
        return re.sub(r":\d{4,5}", ":PORT", ended.said)
    return "\n".join((tree / name).read_text() if (tree / name).exists() else f"{name}: not there" for name in consumer.results)


# -- trials ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    number: int
    kind: str  # type of the artefact
    file: str
    mutation: str
    consumer: Consumer
    seed: str
    tries_remedy: bool = False
    asks_verify: bool = False
    checks: bool = True  # False: the negative control

    def __str__(self) -> str:
        return f"{self.file} {self.mutation} (seed {self.seed!r}), read by {self.consumer.name}"


@dataclass(frozen=True)
class Outcome:
    """`word`: refused, made again, told, as if not there; or what is wrong."""

    trial: Trial
    word: str
    wrong: str | None = None
    remedy: str | None = None  # what came of following it: "worked", or what is wrong; None if it was not tried
    seen_by_verify: str | None = None


def plan(world: World, size: int, seed: int) -> list[Trial]:
    """`size` trials for each type that somebody reads: every mutation alike, files at random, quick consumers more often."""
    trials = []
    for kind, files in world.types.items():
        pairs = [(file, consumer) for file in files for consumer in world.readers.get(file, [])]
        costs = [1 / max(0.5, world.seconds[consumer.name]) for _, consumer in pairs]
        rng, order = generator(seed, kind), []
        for number in range(size if pairs else 0):
            if not order:
                order = rng.sample(MUTATIONS, len(MUTATIONS))
            ((file, consumer),) = rng.choices(pairs, costs)
            word = f"{seed}/{kind}/{number}"
            trials.append(
                Trial(
                    number, kind, file, order.pop(), consumer, word, tries_remedy=number % 8 == 0, asks_verify=number % 4 == 0
                )
            )
    return trials


def attempt(trial: Trial, world: World) -> Outcome | None:
    """None: there is nothing of its type to swap it with."""
    tree, rng = world.tree(), random.Random(trial.seed)
    try:
        trial.consumer.prepare(tree)
        peers = [tree / other for other in world.types[trial.kind] if other != trial.file and (tree / other).exists()]
        if not (tree / trial.file).exists():
            return None
        changed = [str(path.relative_to(tree)) for path in mutate(tree / trial.file, trial.mutation, rng, peers=peers)]
        if not changed:
            return None
        seen = verify_sees(trial, changed, tree, world) if trial.asks_verify else NOT_ASKED
        environment = {} if trial.checks else {SIZES_ONLY: "1"}
        ended = world.run(trial.consumer, tree, **environment)
        word, wrong = judge(trial, changed, tree, ended, world)
        remedy = follow_remedy(trial, ended.said, tree, world) if trial.tries_remedy and word == "refused" else None
        return Outcome(trial, word, f"{trial}: {wrong}" if wrong else None, remedy, seen)
    finally:
        shutil.rmtree(tree, ignore_errors=True)


def judge(trial: Trial, changed: Sequence[str], tree: Path, ended: Ended, world: World) -> tuple[str, str | None]:
    consumer, result = trial.consumer, result_of(trial.consumer, tree, ended)
    page = tree / consumer.page if consumer.page else None
    told = ended.said + (page.read_text().replace("\\", "") if page and page.exists() else "")
    is_named = any(name in told or str(Path(name).parent / MANIFEST) in told for name in changed)
    last_words = " ".join(ended.said[-LAST_WORDS:].split())
    if "Traceback" in ended.said:
        return "a traceback", last_words
    if ended.code == 1:
        if any((tree / name).exists() for name in consumer.results):
            return "published", f"refused, and yet published: {last_words}"
        if not is_named or not REMEDY.search(told):
            return "unnamed", f"refused without the file's name, or without a way out: {last_words}"
        return "refused", None
    if ended.code:
        return "died", f"exit code {ended.code}: {last_words}"
    if result == world.undisturbed[consumer.name] or result == world.made_anew(consumer):
        is_commit = trial.kind.startswith("commit") and not trial.kind.endswith("record.json")
        if is_commit and not any(str(Path(name).parent) in told for name in changed):
            return "passed over silently", f"nothing is said of the damaged commit: {last_words}"
        return "made again", None
    if page and is_named and REMEDY.search(told):
        return "told", None
    if trial.kind.endswith("record.json") and result == result_without(trial, world):
        return "as if not there", None
    return "used silently", f"another result, and no word: {last_words}"


def result_without(trial: Trial, world: World) -> str:
    key = trial.consumer.name, trial.file
    if key not in world.without:
        tree = world.tree()
        trial.consumer.prepare(tree)
        (tree / trial.file).unlink(missing_ok=True)
        world.without[key] = result_of(trial.consumer, tree, world.run(trial.consumer, tree))
        shutil.rmtree(tree)
    return world.without[key]


def follow_remedy(trial: Trial, said: str, tree: Path, world: World) -> str:
    """Do what the message says, then what the next run does; the result is to be the undisturbed one."""
    for _ in range(3):  # two files that were swapped may be told one after the other
        if found := REPAIR.search(said):
            repaired = world.zygotes.run(
                Job("torture.consume:run", ["nanochat.verify", "--repair", *filter(None, [found[1]])], {}), tree
            )
            if repaired.code:
                return f"{trial}: {found[0].strip()!r} ended with {repaired.code}: {repaired.said[-LAST_WORDS:]}"
        elif "delete the folder of the commits" in said:
            shutil.rmtree(tree / trial.consumer.made_by.state)
        for program in world.programs:
            is_own = trial.consumer.made_by is not None and program.name == trial.consumer.made_by.name
            if not (tree / program.manifest).exists() and not is_own:
                ended = world.run(Consumer(program.name, program.path, program.arguments, made_by=program), tree)
        ended = world.run(trial.consumer, tree)
        said = ended.said
        if ended.code == 0:
            same = result_of(trial.consumer, tree, ended) == world.undisturbed[trial.consumer.name]
            return "worked" if same else f"{trial}: repaired as told, and the result is another one"
    return f"{trial}: repaired as told, and still refused: {said[-LAST_WORDS:]}"


def verify_sees(trial: Trial, changed: Sequence[str], tree: Path, world: World) -> str | None:
    """What is wrong with what `verify` says of the tree; None if it names what was changed, and nothing else."""
    before = {program.name for program in world.programs if not (tree / program.manifest).exists()}
    ended = world.zygotes.run(Job("torture.consume:run", ["nanochat.verify", "--json"], {}), tree)
    if ended.code not in (0, 1):
        return f"{trial}: verify ended with {ended.code}: {ended.said[-LAST_WORDS:]}"
    damaged = json.loads(ended.said)["damaged"]
    folders = {owner(name) for name in changed}
    if strangers := [found["path"] for found in damaged if owner(found["path"]) not in folders]:
        return f"{trial}: verify calls {strangers[0]} damaged"
    is_no_damage = trial.mutation == DELETED and trial.kind.endswith(("manifest.json", "record.json", "part_*.json"))
    nobody_knows = [name for name in changed if owner(name) in before or Path(name).name == ".verified.json"]
    unseen = [name for name in changed if owner(name) not in {owner(found["path"]) for found in damaged}]
    if unseen and not is_no_damage and not nobody_knows:
        return f"{trial}: verify does not see {unseen[0]}"
    return None


def owner(name: str) -> str:
    """The stage, download or commit that a file belongs to."""
    path = Path(name)
    if path.parts[0] == "resources":
        return re.sub(r"\.(manifest|record)\.json$", "", name)
    return name if path.name.startswith("part_") else str(path.parent)


# -- rows --------------------------------------------------------------------------------------------------------------------


def rows(size: int, *, seed: int, folder: Path, say: Callable[[str], None]) -> list[Row]:
    say("making a finished run")
    project = make_finished(folder / "finished")
    with Zygotes(folder) as zygotes:
        return rows_of(make_world(project, folder / "trees", zygotes), size, seed=seed, say=say)


def rows_of(world: World, size: int, *, seed: int, say: Callable[[str], None]) -> list[Row]:
    before, trials = digests(world.folder), plan(world, size, seed)
    say(f"{len(trials)} trials of {len(world.types)} types with {len(world.consumers)} consumers")
    outcomes = attempt_all(trials, world, say)
    controls = attempt_all(control_trials(world, max(10, size // 2), seed), world, say)
    if not world.is_exact:
        raise RuntimeError("what was made again is another one than the run had made. Was the code changed since?")
    if digests(world.folder) != before:
        raise RuntimeError("a trial changed what all trials share")
    words = Counter(outcome.word for outcome in outcomes)
    kinds = {kind: dict(Counter(o.word for o in outcomes if o.trial.kind == kind)) for kind in world.types}
    mutations = {name: dict(Counter(o.word for o in outcomes if o.trial.mutation == name)) for name in MUTATIONS}
    remedies = [outcome.remedy for outcome in outcomes if outcome.remedy]
    is_kept = [o for o in outcomes if o.trial.kind.startswith(("commit", "part"))]
    return [
        row(
            PART,
            "no damaged file of any type is used without a word",
            (outcome.wrong for outcome in outcomes),
            types=len(world.types),
            mutations=len(MUTATIONS),
            consumers=len(world.consumers),
            outcomes=dict(words),
            by_type=kinds,
            by_mutation=mutations,
        ),
        row(
            PART,
            "repaired as the message says, the result is the undisturbed one",
            (r if r != "worked" else None for r in remedies),
        ),
        row(
            PART,
            "verify names what is damaged, and nothing else",
            (o.seen_by_verify for o in outcomes if o.seen_by_verify != NOT_ASKED),
        ),
        row(
            PART,
            "a damaged commit or kept task is passed over, and the result is the same",
            (o.wrong or (None if o.word in ("made again", "refused") else f"{o.trial}: {o.word}") for o in is_kept),
        ),
        row(
            PART,
            "with sizes compared and sha256 not, no flipped bit is used without a word",
            (outcome.wrong if outcome.word != "an error" else None for outcome in controls),
            is_control=True,
            outcomes=dict(Counter(outcome.word for outcome in controls)),
        ),
    ]


def control_trials(world: World, size: int, seed: int) -> list[Trial]:
    """Flipped bits in what programs compute with."""
    rng, found = generator(seed, "control"), []
    for number in range(size):
        kind = rng.choice([kind for kind in world.types if kind.endswith((".safetensors", ".npy")) and "commit" not in kind])
        pairs = [(file, c) for file in world.types[kind] for c in world.readers.get(file, []) if "done" not in c.name]
        if pairs:
            file, consumer = rng.choice(pairs)
            found.append(Trial(number, kind, file, MUTATIONS[0], consumer, f"{seed}/control/{number}", checks=False))
    return found


def attempt_all(trials: Sequence[Trial], world: World, say: Callable[[str], None]) -> list[Outcome]:
    done, lock = itertools.count(1), threading.Lock()

    def one(trial: Trial) -> Outcome | None:
        try:
            outcome = attempt(trial, world)
        except Exception as error:  # a trial that fails is a trial, and not the end of them
            outcome = Outcome(trial, "an error", f"{trial}: {type(error).__name__}: {error}")
        with lock:
            if (number := next(done)) % 200 == 0:
                say(f"{number} of {len(trials)}")
        return outcome

    with ThreadPoolExecutor(WORKERS) as pool:
        return [outcome for outcome in pool.map(one, trials) if outcome]


def without_consumers(world: World) -> Mapping[str, list[str]]:
    """Types that no consumer opens."""
    return {kind: files for kind, files in world.types.items() if not any(world.readers.get(file) for file in files)}
