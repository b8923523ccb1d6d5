"""Fixtures that several test modules use."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from filelock import FileLock
from project import Project

# read when PyTorch is first imported: tests run side by side, one thread each
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Where SLURM is installed, its plugin asks `scontrol` for the cluster's settings at every start of Snakemake: up to 10 s where
# no cluster answers, milliseconds with an empty configuration. tests/test_slurm.py has a cluster, with its own configuration
os.environ["SLURM_CONF"] = os.devnull

REPOSITORY = Path(__file__).resolve().parent.parent
REAL_DATA = REPOSITORY.parent / "shared" / "data"


def skip_or_fail(reason: str) -> NoReturn:
    """Skip; with NANOCHAT_REQUIRE_ALL=1, as in CI, fail instead."""
    if os.environ.get("NANOCHAT_REQUIRE_ALL") == "1":
        pytest.fail(f"NANOCHAT_REQUIRE_ALL=1 and {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data in the originals' formats, beside the repository."""
    if not REAL_DATA.is_dir():
        skip_or_fail("no real data in ../shared/data")
    return REAL_DATA


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    """The folder of a project in which config/tiny.yaml, as shipped, has run to its end: results/tiny is in it.

    Nobody may change anything in it. It takes minutes.
    """
    return made_once(tmp_path_factory, "tiny_run", lambda project: project.snakemake(config="config/tiny.yaml"))


@pytest.fixture(scope="session")
def quick_run(tmp_path_factory) -> Path:
    """The same of `Project.configure()`, in a minute. Who wants to change something makes a copy: `project.copy_of`."""

    def run(project: Project) -> subprocess.CompletedProcess:
        project.configure()
        return project.snakemake()

    return made_once(tmp_path_factory, "quick_run", run)


def made_once(tmp_path_factory, name: str, run: Callable[[Project], subprocess.CompletedProcess]) -> Path:
    """The folder of a finished project, made once for all workers of pytest-xdist; the others wait."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder, failure = shared / name, shared / f"{name}.failed"
    with FileLock(shared / f"{name}.lock", timeout=1800):
        if not folder.exists() and not failure.exists():
            project = Project(shared / f"{name}.unfinished")
            done = run(project)
            if done.returncode != 0:
                failure.write_text(done.stdout + done.stderr)
            else:
                project.folder.rename(folder)
    if failure.exists():
        pytest.fail(f"{name} did not run to its end:\n{failure.read_text()}", pytrace=False)
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A headless Chromium; tests/browser.py says how to use it."""
    from browser import launched  # Playwright is imported by the tests that need it alone

    with launched(tmp_path_factory.mktemp("screenshots")) as browser:
        yield browser


# With two workers, the file that starts last decides when the tests end: those that take longest go first. At the end come
# those that want `tiny_run`, which test_demo.py has made by then: a worker that waits for it does nothing else.
LONGEST = ("test_slurm.py", "test_demo.py", "test_small.py")
LATE = ("test_exercises.py", "test_demo_pages.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        name = item.path.name
        if name in LONGEST:
            return LONGEST.index(name)
        return len(LONGEST) + (1 + LATE.index(name) if name in LATE else 0)

    items.sort(key=place)
