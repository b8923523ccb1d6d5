"""Snakemake without its two seconds of imports: a process that has done them forks for each command that starts no job.

    done = warm.snakemake(["snakemake", "-n", "--configfile", "my.yaml"], folder)    # what subprocess.run would return

What runs in the child is Snakemake's own `main`, with the arguments, folder and environment of the caller. Not for commands
that start jobs: a launcher looks for a process called snakemake above it.
"""

import atexit
import json
import os
import select
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def snakemake(
    command: list[str], folder: Path, *, timeout: float = 900, environment: Mapping[str, str] = os.environ
) -> subprocess.CompletedProcess:
    with tempfile.TemporaryDirectory() as place:
        out, err = Path(place, "out"), Path(place, "err")
        job = {"argv": command, "folder": str(folder), "environment": dict(environment), "out": str(out), "err": str(err)}
        code = ask(job, timeout)
        return subprocess.CompletedProcess(command, code, out.read_text(), err.read_text())


def ask(job: dict, timeout: float) -> int:
    process = forking_process()
    process.stdin.write(json.dumps(job) + "\n")
    process.stdin.flush()
    if not select.select([process.stdout], [], [], timeout)[0]:
        end(process)
        forking_process.cache_clear()
        raise subprocess.TimeoutExpired(job["argv"], timeout)
    return int(process.stdout.readline())


@cache
def forking_process() -> subprocess.Popen:
    """One for each process of pytest, started when it is first asked."""
    process = subprocess.Popen(
        [sys.executable, __file__],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    atexit.register(end, process)
    return process


def end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


# -- the forking process -----------------------------------------------------------------------------------------------------


def main() -> None:
    import snakemake.cli
    import snakemake.dag
    import snakemake.workflow  # noqa: F401

    # what the Snakefile imports
    import nanochat.config
    import nanochat.jobs.driver
    import nanochat.jobs.mail
    import nanochat.jobs.preemption
    import nanochat.planning.disk
    import nanochat.planning.inventory
    import nanochat.planning.plan  # noqa: F401

    for line in iter(sys.stdin.readline, ""):
        job = json.loads(line)
        pid = os.fork()
        if not pid:
            become(job)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def become(job: dict) -> None:
    """In the child: be Snakemake, then end without a return."""
    import logging

    import snakemake.cli

    streams = (os.open(os.devnull, os.O_RDONLY), *(os.open(job[name], os.O_WRONLY | os.O_CREAT) for name in ("out", "err")))
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["environment"])
    sys.argv, code = job["argv"], 0
    try:
        snakemake.cli.main()
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 0 if ending.code is None else 1
        if code and not isinstance(ending.code, int):
            print(ending.code, file=sys.stderr)
    except BaseException:  # as Python does at the end of a program
        traceback.print_exc()
        code = 1
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
