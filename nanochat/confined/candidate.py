"""The process that has the program: it runs it, then answers calls of one of its functions, until it is killed.

Whatever comes from here is data to the judge and no verdict. The program may have replaced any attribute of any module by the
time that it has run, so what reports the end of it holds all that it needs.
"""

from __future__ import annotations

import builtins
import io
import sys
import types

from nanochat.confined import wire

TYPE_CHECKING = False  # not from typing, which takes longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MAX_WORDS = 500


def serve(code: bytes, questions: int, answers: int) -> None:
    """The first question holds a nonce and the name of the function (None: only run the program). Then calls follow."""
    nonce, entry_point = wire.decode(wire.receive(questions) or b"")
    loaded, missing, failed = (wire.encode((state, nonce)) for state in ("loaded", "missing", "failed"))
    send, output, say = wire.send, sys.stdout, describe
    module = types.ModuleType("program")  # not "__main__": code under that guard would wait for input
    sys.modules["program"] = module
    sys.stdin = io.StringIO()
    try:
        exec(compile(code, "program.py", "exec"), module.__dict__)
        verdict = loaded if entry_point is None or entry_point in module.__dict__ else missing
        words = b""
    except BaseException as error:
        verdict, words = failed, say(error)
    try:  # noqa: SIM105 (contextlib takes 5 ms to import)
        output.flush()
    except BaseException:
        pass
    send(answers, verdict)
    send(answers, words)
    if verdict == loaded and entry_point is not None:
        answer_calls(module.__dict__[entry_point], questions, answers, output)


def answer_calls(function: Callable, questions: int, answers: int, output: Any) -> None:
    while (call := wire.receive(questions)) is not None:
        arguments, keywords = wire.decode(call)
        try:
            reply = wire.encode(("value", function(*arguments, **keywords)))
        except BaseException as error:
            reply = wire.encode(("raised", builtin_names(error), describe(error, with_name=False).decode("utf-8", "replace")))
        try:  # noqa: SIM105
            output.flush()
        except BaseException:
            pass
        wire.send(answers, reply)


def builtin_names(error: BaseException) -> list[str]:
    """Of its class and those it is derived from, the nearest first, those that every Python has."""
    return [kind.__name__ for kind in type(error).__mro__ if getattr(builtins, kind.__name__, None) is kind]


def describe(error: BaseException, with_name: bool = True, name=lambda kind: kind.__name__, text=str) -> bytes:
    try:
        words = f"{name(type(error))}: {text(error)}".rstrip(": ") if with_name else text(error)
    except BaseException:
        words = "an error that cannot be described"
    return words.encode("utf-8", "replace")[:MAX_WORDS]
