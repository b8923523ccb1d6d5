"""The outside of the sandbox: starts an interpreter for each program, feeds it, reads what it says, and kills it in the end."""

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nanochat
from nanochat.confined import wire
from nanochat.confined.tiers import LAYERS, is_enough
from nanochat.errors import UserError
from nanochat.sandbox.interpreter import FLAGS, Files, files_of

MAX_OUTPUT_BYTES = 1_000_000
MAX_VERDICT_BYTES = 100_000
START_TIMEOUT_S = 60.0  # an interpreter on a busy shared file system may need seconds; it is not the program's fault

# Modules of a cluster find their libpython through these; they hold folders, never secrets.
KEPT_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME")

# It keeps compiled what it imports of ours, where it may, and nothing of the program's. What is ours leaves the path again.
BOOTSTRAP = (
    "import sys; sys.path.insert(0, sys.argv[2]); from nanochat.confined.child import main; "
    "sys.path.pop(0); sys.dont_write_bytecode = True; main(int(sys.argv[1]))"
)
ROOT = str(Path(nanochat.__file__).resolve().parent.parent)


@dataclass(frozen=True)
class Result:
    passed: bool
    reason: str  # why it did not pass, in a few words; "" if it did
    stdout: str  # the program's, the first megabyte
    tier: str  # at which it ran
    layers: Mapping[str, str] = field(default_factory=dict, repr=False)  # layer -> why it did not take effect, "" if it did


def run_tests(
    code: str,
    *,
    setup: str,
    tests: str,
    entry_point: str,
    timeout_s: float = 5.0,
    memory_mb: int = 512,
    tier: str = "closed",
    at_most: str = "full",
) -> Result:
    """Whether the function `entry_point` of this code passes the tests, which define check(function) and call it at least once.

    setup      the data set's own code, run before the tests and never in the program's process: helpers that the tests use
    timeout_s  wall clock, from when the interpreter is ready
    tier       UserError, and nothing is run, where this is not reached
    at_most    for measurements: no layers above this tier
    UserError also if no interpreter can be started here, which says nothing about the program.
    """
    brief = {"setup": setup, "tests": tests, "entry_point": entry_point}
    return run(utf8(code), brief, timeout_s=timeout_s, memory_mb=memory_mb, tier=tier, at_most=at_most)


def run_program(
    code: str, *, timeout_s: float = 5.0, memory_mb: int = 512, tier: str = "closed", at_most: str = "full"
) -> Result:
    """Run Python code; passed means that its last line was reached without an exception, by its own word. Else as run_tests."""
    return run(utf8(code), None, timeout_s=timeout_s, memory_mb=memory_mb, tier=tier, at_most=at_most)


def utf8(code: str) -> bytes:
    return code.encode("utf-8", "replace")  # lone surrogates, which no program can hold


def run(
    code: bytes,
    brief: Mapping[str, str] | None,
    *,
    timeout_s: float = 5.0,
    memory_mb: int = 512,
    tier: str = "closed",
    at_most: str = "full",
) -> Result:
    folder = os.path.realpath(tempfile.mkdtemp(prefix="program-"))
    try:
        secret = secrets.token_bytes(16)
        plan = make_plan(code, folder, timeout_s=timeout_s, memory_mb=memory_mb, tier=tier, at_most=at_most)
        secret_brief = {"setup": None, "tests": None, "entry_point": None, **(brief or {}), "secret": secret}
        messages = b"".join(len(data).to_bytes(4, "big") + data for data in map(wire.encode, (plan, secret_brief)))
        return run_in(folder, messages, secret, timeout_s=timeout_s, tier=tier)
    finally:
        remove(folder)


def make_plan(code: bytes, folder: str, *, timeout_s: float, memory_mb: int, tier: str, at_most: str) -> dict[str, Any]:
    """What the interpreter is told before all else."""
    files = known_files()
    return {
        "code": code,
        "layers": LAYERS[at_most] if sys.platform == "linux" else (),
        "needed": tier,
        "trees": files.trees,
        "libraries": files.libraries,
        "hidden": files.hidden,
        "readable": files.readable,
        "parent": os.getpid(),
        "alarm_s": int(START_TIMEOUT_S + timeout_s) + 2,  # for a program that sleeps for ever, should nobody be left to kill it
        "cpu_s": int(timeout_s) + 2,
        "memory_bytes": memory_mb * 2**20,
    }


def known_files() -> Files:
    try:
        return files_of(sys.executable, tuple(environment("/").items()))
    except (OSError, subprocess.SubprocessError) as error:
        raise unusable(getattr(error, "stderr", None) or getattr(error, "stdout", None) or error) from error


def environment(folder: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    # the seed of hashes is fixed: a program that depends on the order of a set must get the same verdict every time
    return {"PATH": "/usr/bin:/bin", "HOME": folder, "TMPDIR": folder, "PYTHONHASHSEED": "0", **kept}


def run_in(folder: str, messages: bytes, secret: bytes, *, timeout_s: float, tier: str) -> Result:
    verdict_end, child_end = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, *FLAGS, "-c", BOOTSTRAP, str(child_end), ROOT],
            cwd=folder,
            env=environment(folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,  # until it is ready; then it closes it
            pass_fds=[child_end],
            start_new_session=True,
            bufsize=0,
        )
    except OSError as error:
        os.close(verdict_end)
        raise unusable(error) from error
    finally:
        os.close(child_end)
    conversation = Conversation(process, verdict_end, messages)
    try:
        timed_out = conversation.hold(timeout_s)
    finally:
        kill_group(process)
        process.wait()
        conversation.close()
    return judge(conversation, secret, "" if not timed_out else f"not finished after {timeout_s:g} s", tier=tier)


class Conversation:
    """Feeds an interpreter, and keeps what it says: its output, and messages in the pipe of the verdict."""

    def __init__(self, process: subprocess.Popen, verdict_end: int, messages: bytes):
        assert process.stdin and process.stdout
        self.stdin, self.stdout, self.verdict_end = process.stdin, process.stdout, verdict_end
        self.to_send, self.verdict, self.output = memoryview(messages), bytearray(), bytearray()
        for end in (self.stdin, self.stdout, verdict_end):
            os.set_blocking(end if isinstance(end, int) else end.fileno(), False)

    def hold(self, timeout_s: float) -> bool:
        """Until there is a verdict, or the pipe of it ends, or time is up (True).

        It does not wait for the output to end: a forgotten child may hold that open.
        """
        deadline, is_ready = time.monotonic() + START_TIMEOUT_S, False
        with selectors.DefaultSelector() as selector:
            selector.register(self.stdin, selectors.EVENT_WRITE, self.feed)
            selector.register(self.stdout, selectors.EVENT_READ, self.keep_output)
            selector.register(self.verdict_end, selectors.EVENT_READ, self.keep_verdict)
            while (left := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    if not key.data():
                        selector.unregister(key.fileobj)
                        if key.fileobj == self.verdict_end:
                            return False
                said = len(self.said())
                if said > 1:
                    return False
                if said and not is_ready:
                    deadline, is_ready = time.monotonic() + timeout_s, True
        return True

    def feed(self) -> bool:
        try:
            self.to_send = self.to_send[os.write(self.stdin.fileno(), self.to_send) :]
        except BrokenPipeError:
            return False  # it died at once; what is read says why
        return len(self.to_send) > 0

    def keep_output(self) -> bool:
        """What is over its limit is thrown away. False at the end of the pipe."""
        data = os.read(self.stdout.fileno(), 65_536)
        self.output += data[: MAX_OUTPUT_BYTES - len(self.output)]
        return bool(data)

    def keep_verdict(self) -> bool:
        data = os.read(self.verdict_end, 65_536)
        self.verdict += data
        return bool(data) and len(self.verdict) < MAX_VERDICT_BYTES

    def said(self) -> list[bytes]:
        """The messages that are complete."""
        messages, rest = [], bytes(self.verdict)
        while len(rest) >= 4 and len(rest) - 4 >= (size := int.from_bytes(rest[:4], "big")):
            messages.append(rest[4 : 4 + size])
            rest = rest[4 + size :]
        return messages

    def close(self) -> None:
        """With what was printed before the verdict and may still be in the pipe."""
        with suppress(BlockingIOError):
            while len(self.output) < MAX_OUTPUT_BYTES and self.keep_output():
                pass
        with suppress(BrokenPipeError):
            self.stdin.close()
        self.stdout.close()
        os.close(self.verdict_end)


def judge(conversation: Conversation, secret: bytes, too_late: str, *, tier: str) -> Result:
    stdout = conversation.output.decode("utf-8", "replace")
    try:
        said = [wire.decode(message) for message in conversation.said()[:2]]
        reached, layers = said[0]
        what, words = said[1] if len(said) > 1 else ("failed", too_late.encode() or b"the judge ended before its verdict")
    except (wire.Malformed, IndexError, TypeError, ValueError):
        raise unusable(stdout.strip() or "it said nothing") from None
    if not is_enough(reached, tier):
        reasons = "; ".join(f"{layer}: {reason}" for layer, reason in layers.items() if reason)
        raise UserError(f"The sandbox reached tier {reached} where {tier} is asked for, and ran nothing ({reasons})")
    passed = what == "passed" and words == secret
    return Result(passed, "" if passed else words.decode("utf-8", "replace"), stdout, reached, layers)


def unusable(why: object) -> UserError:
    return UserError(f"The sandbox for generated programs cannot start one here: {sys.executable}: {why}")


def kill_group(process: subprocess.Popen) -> None:
    with suppress(ProcessLookupError, PermissionError):  # nobody left; for a group of zombies macOS says PermissionError
        os.killpg(process.pid, signal.SIGKILL)


def remove(folder: str) -> None:
    """Needs neither recursion nor open files of ours: at the lowest tier a program may have made folders a thousand deep."""
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
