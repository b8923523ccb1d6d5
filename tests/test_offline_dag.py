"""The whole compute part of the DAG passes without network, as root and as a normal user: only downloads need one."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from conftest import skip_or_fail
from launching import Stage
from project import Project
from reaching import PROBE, ROOT, USERS, canary_server, open_folder, runner

from nanochat import runs
from nanochat.jobs import offline

JAIL = [sys.executable, "-m", "nanochat.jobs.offline", "run", "--method", "namespace", "--loopback", "--"]
NOBODY_ID = 65_534


@dataclass(frozen=True)
class Finished:
    """A project that went from its downloads to the report inside a jail, and what a probe in that jail found."""

    project: Project
    output: str
    ways_inside: dict[str, str]
    ways_outside: dict[str, str]


@pytest.fixture(scope="module")
def server():
    with canary_server() as found:
        yield found


@pytest.fixture(scope="module")
def finished(server, quick_run):
    """finished(user): one run of Snakemake for each user, when it is first asked for."""
    with open_folder() as place:
        run = runner(place / "bound")

        @cache
        def finished(user: str) -> Finished:
            project = with_downloads(quick_run / "resources", place / user.replace(" ", "_"), user=user)
            options = {"user": user, "folder": project.folder, "environment": {"HOME": str(project.folder)}}
            entered = run([*JAIL, "true"], **options)
            if entered.returncode != 0:
                skip_or_fail(f"{user} gets no network namespace here: {entered.stderr.strip()}")
            probe = [sys.executable, PROBE, *server]
            outside = run(probe, **options)
            # the probe and Snakemake are in one and the same jail
            both = ["sh", "-ec", f'{shlex.join(probe)}\nexec "$@"', "sh", *project.command()]
            inside = run([*JAIL, *both], timeout=900, **options)
            assert inside.returncode == 0, inside.stdout + inside.stderr
            found, _, rest = inside.stdout.partition("\n")
            return Finished(project, rest + inside.stderr, json.loads(found), json.loads(outside.stdout))

        yield finished


def with_downloads(resources: Path, folder: Path, *, user: str) -> Project:
    """A project of that user's own, with the downloaded files."""
    project = Project(folder)
    project.configure()
    shutil.copytree(resources, folder / "resources")
    if user == "nobody":
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, NOBODY_ID, NOBODY_ID, follow_symlinks=False)
    return project


@pytest.mark.slow
@pytest.mark.parametrize("user", USERS)
def test_after_its_downloads_the_dag_reaches_the_report_without_network(finished, user):
    found = finished(user)
    assert set(found.ways_outside.values()) == {"through"}, found.ways_outside
    assert set(found.ways_inside.values()) == {"refused"}, found.ways_inside
    assert "download_file" not in found.output
    report = found.project.folder / "results" / "tiny" / "report" / "manifest.json"
    assert report.stat().st_uid == (NOBODY_ID if user == "nobody" else os.geteuid())


@pytest.mark.slow
@pytest.mark.parametrize("user", USERS)
def test_every_stages_log_says_how_the_network_was_refused(finished, user):
    run = finished(user).project.folder / "results" / "tiny"
    stages = {str(file.parent.relative_to(run / "resume")) for file in (run / "resume").rglob("attempts.jsonl")}
    assert stages == {*runs.STAGES, "preflight"}
    for stage in stages:
        log = (run / "logs" / f"{stage.replace('/', '_')}.log").read_text()
        assert f"{stage}: {offline.DESCRIPTIONS['namespace']}\n" in log
        assert "tried to connect" not in log


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["base_train", "sft", "chat_eval/sft"])
def test_root_and_a_normal_user_make_the_same_bits(finished, stage):
    if len(USERS) < 2:
        skip_or_fail("only root can run the DAG as two users")
    first, second = (finished(user).project.manifest(stage) for user in USERS)
    assert first == second


# a stage that wants out

REACHING = """
import sys, urllib.request
from nanochat.stage import run_program

def main():
    print(urllib.request.urlopen(f"http://{sys.argv[1]}:{sys.argv[2]}/", timeout=5).read())

run_program(main)
"""


def test_a_launched_program_that_reaches_out_is_refused_and_named_in_one_line(tmp_path, server):
    stage = Stage(tmp_path)
    program = tmp_path / "reaching.py"
    program.write_text(REACHING)
    address = ":".join(server)

    unlaunched = subprocess.run(
        [sys.executable, str(program), *server],
        env=stage.environment(no_proxy="*"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (unlaunched.stdout, unlaunched.stderr) == ("b'canary'\n", "")

    launched = stage.run(*server, program=program, no_proxy="*")
    assert launched.returncode == 1 and launched.stdout == ""
    assert f"base_train: {offline.jail(ranks=1).description}\n" in launched.stderr
    named = [line for line in launched.stderr.splitlines() if address in line]
    assert len(named) == 1, launched.stderr
    assert named[0].startswith(f"offline: reaching.py tried to connect to {address} (reaching.py:6 in main); stages other than")
