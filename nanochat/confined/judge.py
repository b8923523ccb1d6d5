"""The process that has the tests, and never the program: the function under test is a proxy that asks the candidate.

What the candidate sends is decoded into plain data, so nothing of it runs here, and what is no answer ends it all.
"""

from __future__ import annotations

import builtins
import os

from nanochat.confined import wire

TYPE_CHECKING = False  # not from typing, which takes longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, NoReturn

ENDING_TRIES, TRY_S = 100, 0.01


class Judge:
    def __init__(self, *, candidate: int, questions: int, answers: int, verdict: int):
        self.candidate, self.questions, self.answers, self.verdict = candidate, questions, answers, verdict
        self.num_calls = 0

    def decide(self, brief: Mapping[str, Any]) -> NoReturn:
        """brief: secret, which stands for a pass, and setup, tests and entry_point, or None for them: the program alone."""
        entry_point = brief["entry_point"]
        self.load(entry_point)
        if entry_point is not None:
            try:
                self.test(brief["setup"], brief["tests"], entry_point)
            except BaseException as error:
                self.fail(describe(error))
            if self.num_calls == 0:
                self.fail(f"the tests never called {entry_point}")
        self.say("passed", brief["secret"])

    def load(self, entry_point: str | None) -> None:
        nonce = os.urandom(16)
        self.ask((nonce, entry_point))
        state, found = self.answer(2)
        words = self.receive()
        if found != nonce:
            self.fail("wrote into the pipe of the sandbox")
        if state != "loaded":
            self.fail(words.decode("utf-8", "replace") or f"NameError: name {entry_point!r} is not defined")

    def test(self, setup: str, tests: str, entry_point: str) -> None:
        """As in one program: what the prompt defines, the function in place of its own, the tests, and the call of check."""
        namespace: dict[str, Any] = {"__name__": "tests"}
        exec(compile(setup, "setup.py", "exec"), namespace)
        namespace[entry_point] = self.call
        exec(compile(tests, "tests.py", "exec"), namespace)
        namespace["check"](self.call)

    def call(self, *arguments: Any, **keywords: Any) -> Any:
        self.num_calls += 1
        self.ask((arguments, keywords))
        kind, *rest = self.answer(2, 3)
        if kind == "value" and len(rest) == 1:
            return rest[0]
        if kind == "raised" and len(rest) == 2 and isinstance(rest[0], list):
            raise same_error(*rest)
        self.fail("wrote into the pipe of the sandbox")

    def ask(self, question: object) -> None:
        try:
            wire.send(self.questions, wire.encode(question))
        except BrokenPipeError:
            self.fail(f"ended before its last line ({self.ending()})")

    def answer(self, *lengths: int) -> tuple:
        try:
            value = wire.decode(self.receive())
        except wire.Malformed:
            self.fail("wrote into the pipe of the sandbox")
        if not isinstance(value, tuple) or len(value) not in lengths:
            self.fail("wrote into the pipe of the sandbox")
        return value

    def receive(self) -> bytes:
        try:
            data = wire.receive(self.answers)
        except wire.Malformed:
            self.fail("wrote into the pipe of the sandbox")
        if data is None:
            self.fail(f"ended before its last line ({self.ending()})")
        return data

    def ending(self) -> str:
        """How the candidate ended."""
        import select
        import signal

        for _ in range(ENDING_TRIES):
            process, status = os.waitpid(self.candidate, os.WNOHANG)
            if process:
                code = os.waitstatus_to_exitcode(status)
                return f"exit status {code}" if code >= 0 else signal.strsignal(-code) or f"signal {-code}"
            select.select([], [], [], TRY_S)
        return "it closed its pipes"

    def fail(self, reason: str) -> NoReturn:
        """No exception, which a test might catch."""
        self.say("failed", reason.encode("utf-8", "replace")[:1000])

    def say(self, what: str, words: bytes) -> NoReturn:
        wire.send(self.verdict, wire.encode((what, words)))
        os._exit(0)


def same_error(names: list, text: object) -> BaseException:
    """The candidate's exception, of the nearest class that takes its words alone."""
    for name in names:
        kind = getattr(builtins, name, None) if isinstance(name, str) else None
        if isinstance(kind, type) and issubclass(kind, BaseException):
            try:
                return kind(text)
            except TypeError:
                continue
    return Exception(text)


def describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")
