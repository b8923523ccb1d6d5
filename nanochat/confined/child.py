"""The story of one program in its interpreter: give up what is not needed, split in two, run, judge.

It is told a plan (what to give up, and the program) and a brief, which only the judge reads: the tests, and a secret that
stands for a pass. It answers with what took effect and, if that is enough, with a verdict.
"""

from __future__ import annotations

import os
import sys

from nanochat.confined import candidate, kernel, landlock, namespaces, system_calls, wire
from nanochat.confined.judge import Judge
from nanochat.confined.tiers import is_enough, reached

TYPE_CHECKING = False  # not from typing, which takes longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, NoReturn

STDIN, STDOUT, STDERR = 0, 1, 2
ONLY_LINUX = f"only Linux has it, and this is {sys.platform}"


def main(verdict: int) -> NoReturn:
    plan = wire.decode(wire.receive(STDIN) or b"")
    nothing = os.open(os.devnull, os.O_RDWR)
    kernel.die_in(plan["alarm_s"])
    kernel.set_limits(plan["cpu_s"], plan["memory_bytes"])
    kernel.die_with(plan["parent"])
    layers = close_in(plan)
    if not layers.get("pid", "no"):
        layers["pid"] = become_first_process()
    (from_judge, questions), (answers, to_judge) = os.pipe(), os.pipe()
    judge = os.getpid()
    child = os.fork()
    if child == 0:
        for end in (questions, answers, verdict):
            os.close(end)
        kernel.die_with(judge)
        os.dup2(nothing, STDIN)  # where the brief is
        wire.send(to_judge, wire.encode(filtered(plan)))
        os.dup2(nothing, STDERR)
        forget_ourselves()
        candidate.serve(plan["code"], from_judge, to_judge)
        os._exit(0)
    for end in (from_judge, to_judge):
        os.close(end)
    layers["filter"] = wire.decode(wire.receive(answers) or b"") or filtered(plan)
    tier = reached(layers)
    wire.send(verdict, wire.encode((tier, layers)))
    if not is_enough(tier, plan["needed"]):
        os._exit(0)
    brief = wire.decode(wire.receive(STDIN) or b"")
    for descriptor in (STDIN, STDOUT, STDERR):
        os.dup2(nothing, descriptor)
    forget_ourselves()
    Judge(candidate=child, questions=questions, answers=answers, verdict=verdict).decide(brief)


def close_in(plan: Mapping[str, Any]) -> dict[str, str]:
    """Layer -> why it did not take effect, "" if it did. The filter comes last: it refuses what the others are made with."""
    if sys.platform != "linux":
        return dict.fromkeys(("capabilities", "landlock"), ONLY_LINUX)
    layers: dict[str, str] = {}
    if "namespaces" in plan["layers"]:
        layers |= namespaces.enter(os.getcwd(), readable=plan["trees"] + plan["libraries"], hidden=plan["hidden"])
        kernel.die_with(plan["parent"])  # a new user namespace forgets it
    kernel.hide_memory()
    layers["capabilities"] = obstacle(kernel.drop_capabilities)
    if "landlock" in plan["layers"]:
        readable = [*plan["readable"], os.getcwd()]
        layers["landlock"] = obstacle(lambda: landlock.restrict(readable=readable, listable=plan["trees"]))
    return layers


def become_first_process() -> str:
    """Go on as the first process of the new namespace, with which all others in it end; the old one waits for that."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        os._exit(0)
    kernel.die_with(0)
    return "" if os.getpid() == 1 else "is the old one"


def filtered(plan: Mapping[str, Any]) -> str:
    if "filter" not in plan["layers"]:
        return "not wanted"
    return obstacle(system_calls.refuse_calls) if sys.platform == "linux" else ONLY_LINUX


def obstacle(step: Callable[[], None]) -> str:
    try:
        step()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def forget_ourselves() -> None:
    """The program finds the standard library and nothing of ours."""
    sys.argv = [""]
    for name in [name for name in sys.modules if name.partition(".")[0] == "nanochat"]:
        del sys.modules[name]
