"""A process that has imported everything and forks for each trial: a program starts in milliseconds instead of seconds.

    with Zygote() as zygote:
        ended = zygote.run(Job("workflow/scripts/tokenizer.py", ["--help"], folder), inject="write:error=ENOSPC:when=3")

The forked child runs the program as `python program.py` would, in the folder given, with one thread. Between the fork and the
program it waits, so that strace can take hold of it: the calls that strace counts are those of the program alone.
"""

import gc
import json
import os
import re
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

TESTS = Path(__file__).resolve().parent.parent
ROOT = TESTS.parent
TIMEOUT_S = 120

# calls by which a program changes or syncs what is on the disk; `?`: where this machine has such a call
CALLS = (
    *("openat", "write", "pwrite64", "writev", "ftruncate", "truncate", "fallocate", "fsync", "fdatasync", "sendfile"),
    *(
        "copy_file_range",
        "rename",
        "renameat",
        "renameat2",
        "mkdir",
        "mkdirat",
        "rmdir",
        "unlink",
        "unlinkat",
        "link",
        "linkat",
    ),
    *("symlink", "symlinkat", "chmod", "fchmod", "fchmodat", "utimensat", "open", "creat"),
)

# One thread; no git, as what it writes into the record would be counted with what the program does
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "PYTHONHASHSEED": "0",
    "PATH": "/nonexistent",
    "PYTHONPATH": f"{ROOT}:{TESTS}",
    "MPLBACKEND": "agg",
}
INHERITED = ("HOME", "TMPDIR", "LANG", "MPLCONFIGDIR")


@dataclass(frozen=True)
class Job:
    """`program`: a file to run as __main__, or a function to call with the arguments (`torture.publish_paths:remove`)."""

    program: str
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    is_direct: bool = False  # negative control: writes at the final name, where the library writes aside and renames


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code (128 + n: by signal n), what it said, and strace's lines if it was traced."""

    code: int
    said: str
    pid: int
    lines: Sequence[str] = ()


class Zygote:
    """The forking process. One child at a time."""

    def __init__(self, folder: Path):
        self.folder, self.memory = folder, folder / "memory"
        self.memory.mkdir(parents=True, exist_ok=True)
        environment = {name: os.environ[name] for name in INHERITED if name in os.environ} | ENVIRONMENT
        self.process = subprocess.Popen(
            [sys.executable, "-m", "torture.zygote"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.ask("ready")

    def __enter__(self) -> "Zygote":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.stdin.close()
        self.process.wait(TIMEOUT_S)
        self.process.stdout.close()

    def run(self, job: Job, folder: Path, *, is_traced: bool = False, inject: str | None = None) -> Ended:
        """Run a job in `folder` to its end; traced, or with strace's `inject` at work."""
        output, lines = self.folder / "output", self.folder / "trace"
        output.unlink(missing_ok=True)
        pid = int(
            self.ask(json.dumps({**job.__dict__, "folder": str(folder), "output": str(output), "memory": str(self.memory)}))
        )
        strace = attach(pid, lines, inject) if is_traced or inject else None
        code = int(self.ask("go"))
        if strace:
            strace.wait(TIMEOUT_S)
        said = output.read_text(errors="replace") if output.exists() else ""
        return Ended(code, said, pid, lines.read_text(errors="replace").splitlines() if strace else ())

    def ask(self, line: str) -> str:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], TIMEOUT_S)
        answer = self.process.stdout.readline().strip() if ready else ""
        if not answer:
            os.killpg(self.process.pid, 9)
            raise TimeoutError(f"no answer within {TIMEOUT_S} s to {line[:300]}")
        return answer


# -- strace ------------------------------------------------------------------------------------------------------------------


class NoTracing(Exception):
    """This machine does not let us trace a process; says why."""


def attach(pid: int, output: Path, inject: str | None) -> subprocess.Popen:
    """strace, once it holds the process. Without -f: only the main thread, which does all the writing, is counted."""
    calls = ",".join(f"?{name}" for name in CALLS)
    command = ["strace", "-p", str(pid), "-y", "-s", "0", "-o", str(output), "-e", f"trace={calls}", "-e", "signal=none"]
    command += ["-e", f"inject={inject}"] if inject else []
    try:
        strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise NoTracing("strace is not installed") from None
    said = strace.stderr.readline()
    if "attached" not in said:
        os.kill(pid, 9)
        strace.wait()
        raise NoTracing(f"strace may not trace a process here: {said.strip()}")
    return strace


def why_no_tracing(folder: Path) -> str | None:
    """Why crash points cannot be tried on this machine; None if they can."""
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        strace = attach(sleeper.pid, folder / "try", None)
    except NoTracing as problem:
        return str(problem)
    finally:
        sleeper.kill()
        sleeper.wait()
    strace.wait()
    strace.stderr.close()
    return None


# -- the forking process -----------------------------------------------------------------------------------------------------


def main() -> None:
    import_everything()
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page that it looks at
    sys.stdin.readline()
    say("ready")
    for line in iter(sys.stdin.readline, ""):
        job = json.loads(line)
        (wait, go), (ready, is_ready) = os.pipe(), os.pipe()
        pid = os.fork()
        if not pid:
            os.close(go)
            become(job, wait, is_ready)
        os.close(is_ready)
        os.read(ready, 1)
        os.close(ready)
        os.close(wait)
        say(pid)
        sys.stdin.readline()
        os.write(go, b"!")
        os.close(go)
        _, status = os.waitpid(pid, 0)
        say(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))


def say(answer: object) -> None:
    print(answer, flush=True)


def import_everything() -> None:
    import importlib

    import torch

    torch.set_num_threads(1)
    for path in sorted((ROOT / "nanochat").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if re.search(r"\.(serving|serve|chat|watch|watching|static)(\.|$)", name):
            continue  # no publish path leads there
        importlib.import_module(name)
    importlib.import_module("torture.publish_paths")
    importlib.import_module("matplotlib.backends.backend_agg")


def become(job: dict, wait: int, is_ready: int) -> None:
    """In the child: run the program, then end without a return."""
    import io
    import runpy
    import traceback

    from torture import publish_paths

    # what the program says is kept in memory, so that no call of `write` is one of these
    said = sys.stdout = sys.stderr = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    descriptor = os.open(job["output"], os.O_CREAT | os.O_RDWR | os.O_TRUNC, 0o600)
    os.dup2(descriptor, 2)
    os.chdir(job["folder"])
    os.environ.update(job["environment"])
    sys.argv = [job["program"], *job["arguments"]]
    publish_paths.steady()
    publish_paths.remember(Path(job["memory"]))
    if job["is_direct"]:
        publish_paths.write_directly()
    code = 0
    os.write(is_ready, b"!")
    os.read(wait, 1)
    try:
        if ":" in job["program"]:
            publish_paths.call(job["program"])
        else:
            runpy.run_path(str(ROOT / job["program"]), run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if code and not isinstance(end.code, int):
            said.write(f"{end.code}\n")
    except BaseException:  # as Python does at the end of a program
        traceback.print_exc(file=said)
        code = 1
    os.pwritev(descriptor, [said.buffer.getvalue()], 0)  # a call that nobody counts
    os._exit(code)


if __name__ == "__main__":
    main()
