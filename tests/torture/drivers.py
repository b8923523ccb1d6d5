"""Two Snakemakes at once on one run, where file locks do nothing: nothing is mixed, and no stage is worked on by both.

A trial begins with the finished world of which a part is gone, and starts two real Snakemakes there, a seeded moment apart.
`fcntl.flock` and `lockf` succeed for everybody, as on a Lustre without them. When both have ended,

    each has finished, or says in a sentence who else works there; neither shows a traceback
    every manifest that stands fits its files and its record
    no two programs of a stage have run at the same time
    after one further run of the first one's command, every bit is as in the undisturbed world

As shipped, the second Snakemake is refused before its first job. `--no-hooks` takes that away, as if each believed the other
dead: then the leases of stages and the way in which results are published have to do. A third kind believes it on the way.

Covered: starts at the same moment and later ones, from nothing and from any stage; another host name and other process
numbers; process numbers alone; the same folder under another path; two umasks; another configuration of the same run.
Not covered: two machines that see a shared file system differently for seconds, and downloads over a network
(`tests/test_download.py`).
"""

import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nanochat.errors import UserError
from nanochat.manifest import open_verified, read_record
from torture.board import Row, Say, row
from torture.world import RUN, SMALL, STAGES, Golden, World, copy_code, make_golden

PART = "drivers"
TRIALS_PER_SIZE = 5  # one pair of Snakemakes for so many of `make torture N=`
LONGEST_S = 600.0
PAUSE_S = 0.1

# loaded by every Python of a trial
SITE = """
import fcntl, os, sys, time
flock = fcntl.flock
fcntl.flock = fcntl.lockf = lambda *words: None
program = next((word for word in sys.orig_argv if "workflow/scripts/" in word), "")
if os.environ.get("DRIVERS_WITHOUT_LEASES"):
    import itertools, types
    from nanochat.jobs import attempt, launcher
    attempt.newest_claim = lambda state: 0
    def nobody_asks(state, **words):
        state.mkdir(parents=True, exist_ok=True)
        holder = types.SimpleNamespace(claim=1, job=None, restart=None, host="here")
        return types.SimpleNamespace(holder=holder, is_lost=False, release=lambda: None)
    launcher.take_lease = nobody_asks
is_program = program and not program.endswith("launch.py") and "nanochat.jobs.torchrun" not in sys.orig_argv
if is_program and "NANOCHAT_STATE" in os.environ and os.environ.get("RANK", "0") == "0":
    stage = os.environ["NANOCHAT_STATE"].split("/resume/")[1].replace("/", "_")
    held = open(os.path.join(os.environ["DRIVERS_WATCH"], stage), "a")  # closed when this process ends
    # what the one before left behind may take a moment to die
    end = time.monotonic() + (0 if "DRIVERS_WITHOUT_LEASES" in os.environ else 2)
    while True:
        try:
            flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > end:
                open(os.path.join(os.environ["DRIVERS_WATCH"], "both"), "a").write(stage + "\\n")
                break
            time.sleep(0.05)
"""

# what a Snakemake that does not finish has to say
CLEAR = re.compile(
    r"another Snakemake \(process \d+ on \S+\) works on results/"
    r"|stopped at .*, as .* takes this stage over"
    r"|took this stage over"
    r"|has taken this stage over"
    r"|another program replaced what it reads"
    r"|another Snakemake makes or publishes it again"
    r"|vanished before this stage was published"
    r"|did not let go within"
    r"|was begun with|is of another training"
)
# Snakemake's own word for outputs that the other one deletes, before its job, when this one's job has just published them
DELETED = "completed successfully, but some output files are missing"
# the remedy for what another configuration left unfinished
DELETE = re.compile(r"delete (?:the folder )?(results/\S+/resume/[\w/]+)")

ALONE, UNCHECKED, TAKEN_FOR_DEAD = "as shipped", "unchecked", "taken for dead"
BEGINNINGS = (None, "tokenizer", "base_train", "base_eval", "base_eval", "sft", "trace")  # the first stage that is gone
TWISTS = ("", "", "", "other host", "other process numbers", "other path", "umasks", "configuration")
OTHER = SMALL | {"base_train.seed": 7, "sft.seed": 7}


@dataclass(frozen=True)
class Trial:
    """Two Snakemakes that meet."""

    seed: int
    kind: str
    beginning: str | None  # the first stage that is not there yet; None: not even a download
    delay_s: float
    twist: str = ""
    has_leases: bool = True

    def __str__(self) -> str:
        what = f"from {self.beginning or 'nothing'}, {self.delay_s:.1f} s apart{', ' + self.twist if self.twist else ''}"
        return f"{self.kind}, {what} (seed {self.seed})"


def rows(size: int, *, seed: int, folder: Path, say: Say) -> list[Row]:
    finished = finish_one(folder)
    trials = [choose(number, seed) for number in range(max(3, size // TRIALS_PER_SIZE))]
    found = [told(trial, finished, folder, say) for trial in trials]
    kinds = {kind: [problem for trial, problem in zip(trials, found, strict=True) if trial.kind == kind] for kind in PROMISES}
    control = replace(choose(1, seed), beginning="base_train", delay_s=0.0, twist="", has_leases=False)
    return [
        *(row(PART, PROMISES[kind], problems) for kind, problems in kinds.items() if problems),
        row(PART, "without leases, two Snakemakes work on one stage", [told(control, finished, folder, say)], is_control=True),
    ]


PROMISES = {
    ALONE: "the second of two Snakemakes on a run is told who works there, and the first one is not disturbed",
    UNCHECKED: "two Snakemakes that do not know of one another, without file locks: nothing is mixed, one more run heals",
    TAKEN_FOR_DEAD: "a living Snakemake that is taken for dead stops, and the other one goes on",
}


@dataclass(frozen=True)
class Finished:
    """A world that ran undisturbed, what must come out of every other, and how one is made."""

    world: World
    golden: Golden
    another: Callable[[Path], World]


def finish_one(folder: Path) -> Finished:
    code = copy_code(folder / "code")
    world = World(folder / "finished", code)
    return Finished(world, make_golden(world), lambda folder: World(folder, code))


def choose(number: int, seed: int) -> Trial:
    chance = random.Random(f"{seed} {number}")
    kind = (ALONE, UNCHECKED, UNCHECKED, UNCHECKED, TAKEN_FOR_DEAD)[number % 5]
    beginning = BEGINNINGS[number % len(BEGINNINGS)]
    twist = TWISTS[number % len(TWISTS)] if kind != TAKEN_FOR_DEAD else ""
    delay_s = chance.choice((0.0, chance.uniform(0, 4), chance.uniform(0, 20)))
    return Trial(seed * 1000 + number, kind, beginning, delay_s, twist)


def told(trial: Trial, finished: Finished, folder: Path, say: Say) -> str | None:
    began = time.monotonic()
    problem = try_pair(trial, finished, folder / f"trial-{trial.seed}-{trial.kind.replace(' ', '-')}-{trial.has_leases}")
    say(f"drivers  {trial}: {problem or 'right'}, {time.monotonic() - began:.0f} s")
    return f"{trial}: {problem}" if problem else None


# -- one trial ---------------------------------------------------------------------------------------------------------------


def try_pair(trial: Trial, finished: Finished, folder: Path) -> str | None:
    """What went wrong, in words."""
    place = Place(trial, finished, folder)
    try:
        return "; ".join(place.problems()) or None
    finally:
        place.end()
        shutil.rmtree(folder, ignore_errors=True)


class Place:
    """The folder of a trial, and what runs there."""

    def __init__(self, trial: Trial, finished: Finished, folder: Path):
        self.trial, self.golden = trial, finished.golden
        self.world = finished.another(folder / "world")
        self.site, self.watch = folder / "site", folder / "watch"
        self.site.mkdir()
        self.watch.mkdir()
        (self.site / "sitecustomize.py").write_text(SITE)
        self.running: list[subprocess.Popen] = []
        if trial.twist == "configuration":
            self.configure_other()
        copy_up_to(trial.beginning, finished.world, self.world)

    def configure_other(self) -> None:
        self.world.configure_as_shipped(OTHER)
        (self.world.folder / "my.yaml").rename(self.world.folder / "other.yaml")
        self.world.configure_as_shipped(SMALL)

    def problems(self) -> Iterator[str]:
        twist, is_unchecked = self.trial.twist, self.trial.kind == UNCHECKED
        options = ["--no-hooks"] if is_unchecked else []
        first = self.start("first", *options, umask=0o077 if twist == "umasks" else 0o022)
        if self.trial.kind == TAKEN_FOR_DEAD:
            self.let_claim_go()
        time.sleep(self.trial.delay_s)
        second = self.start(
            "second",
            *options,
            umask=0 if twist == "umasks" else 0o022,
            config="other.yaml" if twist == "configuration" else "my.yaml",
            around=AROUND[twist](self.world.folder),
        )
        codes = {"first": self.wait(first), "second": self.wait(second)}
        yield from (problem for name, code in codes.items() if (problem := self.ending_of(name, code)))
        if not any(code == 0 for code in codes.values()) and self.trial.kind == ALONE:
            yield "neither of them finished"
        yield from untrue(self.world)
        both = self.watch / "both"
        if both.exists():
            yield f"two programs at once in {', '.join(sorted(set(both.read_text().split())))}"
        yield from self.further_run()

    def let_claim_go(self) -> None:
        """What a wrong verdict on the first Snakemake comes to: its claim is said to be free."""
        claims = self.world.state("snakemake") / "claims"
        wait_for(lambda: claims.is_dir() and any(path.stat().st_size for path in claims.iterdir()))
        (path,) = claims.iterdir()
        path.write_text(path.read_text().replace('{"', '{"released": "by mistake", "', 1))

    def ending_of(self, name: str, code: int) -> str | None:
        said = (self.world.folder / f"{name}.log").read_text(errors="replace")
        if "Traceback (most recent call last)" in said:
            return f"{name}: a traceback: {said[said.index('Traceback') :][:1500]}"
        is_clear = CLEAR.search(said) or (self.trial.kind == UNCHECKED and DELETED in said)
        if code != 0 and not is_clear:
            return f"{name}: exit code {code} without a clear word: ...{said[-1500:]}"
        return None

    def further_run(self) -> Iterator[str]:
        code = self.wait(self.start("third"))
        said = (self.world.folder / "third.log").read_text(errors="replace")
        if code != 0 and self.trial.twist == "configuration" and (remedy := DELETE.search(said)):
            shutil.rmtree(self.world.folder / remedy[1])
            code = self.wait(self.start("third"))
            said = (self.world.folder / "third.log").read_text(errors="replace")
        if code != 0:
            yield f"one further run does not heal: exit code {code}: ...{said[-1500:]}"
            return
        yield from self.golden.differences(self.world)

    # -- processes -----------------------------------------------------------------------------------------------------------

    def start(
        self, name: str, *options: str, umask: int = 0o022, config: str = "my.yaml", around: Sequence[str] = ()
    ) -> subprocess.Popen:
        environment = {
            **os.environ,
            "PYTHONPATH": f"{self.site}:{self.world.folder}",
            "DRIVERS_WATCH": str(self.watch),
            "OMP_NUM_THREADS": "1",
            "NANOCHAT_HEARTBEAT_S": "1",
            "NANOCHAT_SILENCE_S": "600",  # a machine that is busy with two of everything
        }
        if not self.trial.has_leases:
            environment["DRIVERS_WITHOUT_LEASES"] = "1"
        with open(self.world.folder / f"{name}.log", "w") as log:
            process = subprocess.Popen(
                [*around, *self.world.command(*options, config=config)],
                cwd=self.world.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                umask=umask,
                start_new_session=True,
            )
        self.running.append(process)
        return process

    def wait(self, process: subprocess.Popen) -> int:
        try:
            return process.wait(LONGEST_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def end(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.kill()  # its launchers end when it is gone
                process.wait()


def nothing_around(folder: Path) -> list[str]:
    return []


def other_host(folder: Path) -> list[str]:
    """A host name and process numbers of its own, in which those of the other are not seen."""
    return [*unshare("--uts", "--pid", "--fork", "--mount-proc", "--kill-child"), 'hostname another; exec "$@"', "sh"]


def other_numbers(folder: Path) -> list[str]:
    return [*unshare("--pid", "--fork", "--mount-proc", "--kill-child"), 'exec "$@"', "sh"]


def other_path(folder: Path) -> list[str]:
    """The same folder under a second path: no link, which would be resolved."""
    second = folder.with_name("second-path")
    second.mkdir()
    return [*unshare("--mount"), f'mount --bind "{folder}" "{second}" && cd "{second}" && exec "$@"', "sh"]


def unshare(*spaces: str) -> list[str]:
    return ["unshare", "--map-root-user", *spaces, "sh", "-c"]


AROUND: dict[str, Callable[[Path], list[str]]] = {
    "": nothing_around,
    "umasks": nothing_around,
    "configuration": nothing_around,
    "other host": other_host,
    "other process numbers": other_numbers,
    "other path": other_path,
}


# -- the folder --------------------------------------------------------------------------------------------------------------


def copy_up_to(beginning: str | None, finished: World, world: World) -> None:
    """Downloads, and the stages before this one, with their commits; times are kept, as Snakemake compares them."""
    if beginning is None:
        return
    shutil.copytree(finished.folder / "resources", world.folder / "resources")
    for stage in STAGES[: STAGES.index(beginning)]:
        for source in (f"{RUN}/{stage}", f"{RUN}/resume/{stage}"):
            if (finished.folder / source).exists():
                shutil.copytree(finished.folder / source, world.folder / source)


def untrue(world: World) -> Iterator[str]:
    """Manifests that do not fit their files or their record."""
    for manifest in (*world.folder.glob("resources/**/*manifest.json"), *(world.folder / RUN).glob("**/manifest.json")):
        try:
            artefact = open_verified(manifest)
            for name in artefact.files:
                artefact.path(name)
        except UserError as error:
            yield f"a manifest that is not true: {error}"
            continue
        copy = read_record(manifest).get("manifest")
        if copy is not None and copy["files"] != artefact.files:
            yield f"{manifest}: another manifest than the one in its record"


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LONGEST_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("waited in vain")
        time.sleep(PAUSE_S)
