"""Fixtures that several test modules use."""

import os
from pathlib import Path
from typing import NoReturn

import pytest

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest first: with two workers, the last file to start decides when the tests end."""
    longest = ("test_slurm.py", "test_demo.py", "test_small.py")
    items.sort(key=lambda item: longest.index(item.path.name) if item.path.name in longest else len(longest))
