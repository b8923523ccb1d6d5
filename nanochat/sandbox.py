"""Run a program that a model wrote, and say whether it reached its end.

    run_program("assert 1 + 1 == 2")            ->  Result(passed=True, reason="", stdout="")
    run_program("import sys; sys.exit(0)")      ->  Result(passed=False, reason="SystemExit: 0", stdout="")

Covered (against accidents and the usual mistakes of generated code):
- an interpreter of its own for every program: no memory, environment variables or site packages of ours
- wall clock, CPU time, memory, file size, open files and core dumps are limited, the kept output too
- the whole process group is killed at the end, whatever it did with signals; the working folder is temporary and deleted
- passing needs a secret written to a private pipe after the program's last line: sys.exit(0), os._exit(0), a printed
  "passed", or junk written to every open file do not count

Not covered (it is not a security sandbox):
- files: the program may read, change and delete whatever the user may; /proc shows it other processes' environment
- network, and further processes: one that starts a session of its own outlives the program; each has its own memory limit
- a program that means to deceive: walking the stack to the secret, or objects that are equal to everything
- memory is not limited on macOS, whose kernel refuses it; the superuser may lift the limits again
So run it where nothing precious is within the user's reach. Safe to call from several threads at once.
"""

import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from nanochat.errors import UserError

MAX_OUTPUT_BYTES = 1_000_000
MAX_FILE_BYTES = 16_000_000
MAX_OPEN_FILES = 64
START_TIMEOUT_S = 60.0  # an interpreter on a busy shared file system may need seconds; it is not the program's fault

# Modules of a cluster find their libpython through these; they hold folders, never secrets.
KEPT_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME")

READY = b"ready\n"
FAILED = b"failed "

# Runs in the new interpreter. stdin: one line with the secret, then the program. Everything it needs after the
# program has run is a local variable, because the program may have replaced any attribute of any module by then.
RUNNER = f"""
import io, os, signal, sys, types

def main(verdict, seconds, memory_bytes, write=os.write, leave=os._exit):
    secret, _, program = sys.stdin.buffer.read().partition(b"\\n")
    signal.alarm(seconds)  # for a program that sleeps for ever, should nobody be left to kill it
    limit(seconds, memory_bytes)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 2)
    sys.stdin = io.StringIO()
    module = types.ModuleType("program")  # not "__main__": code under that guard would wait for input
    sys.modules["program"] = module
    output = sys.stdout
    message = {FAILED!r}
    write(verdict, {READY!r})
    try:
        exec(compile(program, "program.py", "exec"), module.__dict__)
        message = secret
    except BaseException as error:
        message += describe(error).encode("utf-8", "replace")[:500]
    try:
        output.flush()
    except BaseException:
        pass
    write(verdict, message)
    leave(0)

def describe(error, name=lambda kind: kind.__name__, text=str):
    try:
        return f"{{name(type(error))}}: {{text(error)}}".rstrip(": ")
    except BaseException:
        return "an error that cannot be described"

def limit(seconds, memory_bytes):
    import resource
    limits = [
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, {MAX_FILE_BYTES}),
        (resource.RLIMIT_NOFILE, {MAX_OPEN_FILES}),
        (resource.RLIMIT_CORE, 0),
    ]
    if sys.platform != "darwin":
        limits.append((resource.RLIMIT_AS, memory_bytes))
    for kind, most in limits:
        hard = resource.getrlimit(kind)[1]
        if hard != resource.RLIM_INFINITY:
            most = min(most, hard)  # a site's own limit may be lower
        resource.setrlimit(kind, (most, most))

main(*map(int, sys.argv[1:]))
"""


@dataclass(frozen=True)
class Result:
    passed: bool
    reason: str  # why it did not pass, in a few words; "" if it did
    stdout: str  # the first megabyte


def run_program(code: str, *, timeout_s: float = 5.0, memory_mb: int = 512) -> Result:
    """Run Python code in an interpreter of its own; passed means that its last line was reached without an exception.

    timeout_s is wall clock and starts when the interpreter is ready. Raises UserError if no interpreter can be started here,
    which says nothing about the program.
    """
    folder = tempfile.mkdtemp(prefix="program-")
    try:
        return run_in(folder, code, timeout_s=timeout_s, memory_mb=memory_mb)
    finally:
        remove(folder)


def run_in(folder: str, code: str, *, timeout_s: float, memory_mb: int) -> Result:
    secret = secrets.token_hex(16).encode()
    verdict_end, child_end = os.pipe()
    # -P -s -S with an environment of our own is as isolated as -I, which would ignore PYTHONHASHSEED:
    # a program that depends on the order of a set must get the same verdict every time.
    command = [sys.executable, "-P", "-s", "-S", "-B", "-X", "utf8", "-c", RUNNER]
    limits = [child_end, int(timeout_s) + 2, memory_mb * 2**20]
    try:
        process = subprocess.Popen(
            command + [str(value) for value in limits],
            cwd=folder,
            env=environment(folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,  # until it is ready; then the runner closes it
            pass_fds=[child_end],
            start_new_session=True,
        )
    except OSError as error:
        os.close(verdict_end)
        raise unusable(error) from error
    finally:
        os.close(child_end)
    assert process.stdin and process.stdout
    with process.stdout as stdout:
        try:
            send(process.stdin, secret + b"\n" + code.encode("utf-8", "replace"))
            return watch(process, verdict_end, stdout.fileno(), secret, timeout_s=timeout_s)
        finally:
            kill_group(process)
            process.wait()
            os.close(verdict_end)


def environment(folder: str) -> Mapping[str, str]:
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    return {"PATH": "/usr/bin:/bin", "HOME": folder, "TMPDIR": folder, "PYTHONHASHSEED": "0", **kept}


def send(stdin: IO[bytes], data: bytes) -> None:
    try:
        with stdin:
            stdin.write(data)
    except BrokenPipeError:
        pass  # it died at once; watch() finds out and says why


def watch(process: subprocess.Popen, verdict_end: int, output_end: int, secret: bytes, *, timeout_s: float) -> Result:
    """Read both pipes until there is a verdict, the verdict pipe ends, or time is up.

    It does not wait for the output to end: a forgotten child may hold that open.
    """
    verdict, output = b"", bytearray()
    deadline = time.monotonic() + START_TIMEOUT_S
    with selectors.DefaultSelector() as selector:
        selector.register(verdict_end, selectors.EVENT_READ)
        selector.register(output_end, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            ready = {key.fd for key, _ in selector.select(left)}
            if output_end in ready and not keep(output_end, output):
                selector.unregister(output_end)
            if verdict_end in ready:
                data = os.read(verdict_end, 1024)
                if not verdict and data:
                    deadline = time.monotonic() + timeout_s
                verdict += data
                if not data or len(verdict) > len(READY):
                    break
    return judge(process, verdict, secret, drained(output_end, output), timed_out=left <= 0, timeout_s=timeout_s)


def judge(
    process: subprocess.Popen, verdict: bytes, secret: bytes, output: bytes, *, timed_out: bool, timeout_s: float
) -> Result:
    stdout = output.decode("utf-8", "replace")
    if not verdict.startswith(READY):
        raise unusable(stdout.strip() or "it said nothing")
    message = verdict.removeprefix(READY)
    if message == secret:
        return Result(True, "", stdout)
    if message.startswith(FAILED):
        return Result(False, message.removeprefix(FAILED).decode("utf-8", "replace"), stdout)
    if timed_out:
        return Result(False, f"not finished after {timeout_s:g} s", stdout)
    if message:
        return Result(False, "wrote into the pipe of the sandbox", stdout)
    return Result(False, f"ended before its last line ({ending(process)})", stdout)


def unusable(why: object) -> UserError:
    return UserError(f"The sandbox for generated programs cannot start one here: {sys.executable}: {why}")


def ending(process: subprocess.Popen) -> str:
    try:
        code = process.wait(timeout=1.0)
    except subprocess.TimeoutExpired:
        return "it closed its pipes"
    return f"exit status {code}" if code >= 0 else signal.strsignal(-code) or f"signal {-code}"


def keep(descriptor: int, output: bytearray) -> bool:
    """Move what is there into output, up to its limit; what is over is thrown away. False at the end of the pipe."""
    data = os.read(descriptor, 65_536)
    output += data[: MAX_OUTPUT_BYTES - len(output)]
    return bool(data)


def drained(descriptor: int, output: bytearray) -> bytes:
    """The output with what was printed before the verdict and may still be in the pipe."""
    os.set_blocking(descriptor, False)
    try:
        while len(output) < MAX_OUTPUT_BYTES and keep(descriptor, output):
            pass
    except BlockingIOError:
        pass
    return bytes(output)


def kill_group(process: subprocess.Popen) -> None:
    with suppress(ProcessLookupError, PermissionError):  # nobody left; for a group of zombies macOS says PermissionError
        os.killpg(process.pid, signal.SIGKILL)


def remove(folder: str) -> None:
    """Needs neither recursion nor open files of ours: the program may have made a thousand folders within each other."""
    try:
        os.rmdir(folder)  # the usual case: it wrote nothing
        return
    except OSError:
        run_quietly("rm", "-rf", "--", folder)
    if os.path.lexists(folder):  # a folder without permissions
        run_quietly("chmod", "-R", "u+rwX", folder)
        run_quietly("rm", "-rf", "--", folder)


def run_quietly(*command: str) -> None:
    subprocess.run(command, stderr=subprocess.DEVNULL, check=False)
