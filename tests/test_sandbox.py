"""A wrong program never passes, and a hostile one (tests/hostile_programs.py) has no effect at the tiers that promise it."""

import itertools
import json
import math
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections import Counter, OrderedDict, namedtuple
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from textwrap import dedent
from typing import get_args

import pytest
from conftest import skip_or_fail
from hostile_programs import CONTROLS, GROUPS, PROGRAMS, TESTS
from hypothesis import given
from hypothesis import strategies as st
from reaching import USERS, open_folder, runner

from nanochat import sandbox
from nanochat.confined import system_calls, wire
from nanochat.confined.tiers import LAYERS, NAMESPACES, reached
from nanochat.errors import UserError
from nanochat.jobs.seccomp import MACHINES
from nanochat.sandbox import MAX_OUTPUT_BYTES, TIERS, host, probe, require, run_program, run_tests
from nanochat.sections import ChatEval

ROOT = Path(__file__).resolve().parent.parent
BATTERY = [sys.executable, "tests/hostile_programs.py"]
POORER = [sys.executable, "tests/poorer_machine.py"]
CHECK = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-7) == -14\n"


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Programs make their folders here, so that a test sees what they leave behind: nothing."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def run_as():
    with open_folder() as place:
        yield runner(place / "bound")


def need(tier):
    if TIERS.index(probe().tier) < TIERS.index(tier):
        skip_or_fail(f"this machine offers {probe()}")


def run(code, **options):
    """Whatever the machine offers: these tests are about verdicts."""
    return run_program(dedent(code), tier="limited", **options)


def double(code, *, setup="", tests=CHECK, **options):
    return run_tests(dedent(code), setup=setup, tests=tests, entry_point="double", tier="limited", **options)


# -- hostile programs --------------------------------------------------------------------------------------------------------


def effects(done):
    assert done.returncode == 0, done.stderr
    return {name: found for name, found in json.loads(done.stdout)["effects"].items() if found}


def test_there_are_enough_programs_of_every_kind():
    assert len(PROGRAMS) >= 60 and all(len(programs) >= 9 for programs in GROUPS.values())


@pytest.mark.parametrize("user", USERS)
def test_no_hostile_program_has_an_effect_or_passes_at_the_full_tier(run_as, user):
    need("full")
    assert effects(run_as([*BATTERY, "--at-most", "full"], user=user, timeout=300)) == {}


def test_the_same_programs_have_their_effects_at_the_lowest_tier(run_as):
    """Negative control: the traces are there to be left."""
    found = effects(run_as([*BATTERY, "--at-most", "limited", "--controls"], timeout=300))
    assert set(CONTROLS) - set(found) == set()


def test_files_stay_out_of_reach_also_by_a_root_of_its_own_alone(run_as):
    need("full")
    names = [name for name in PROGRAMS if name.startswith(("reads: ", "files: "))][::2]
    command = [*POORER, "landlock", "--", *BATTERY, "--tier", "closed", *names]
    assert effects(run_as(command, timeout=300)) == {}


def test_at_the_filtered_tier_files_can_be_read_and_nothing_else(run_as):
    need("filtered")
    some = [name for name in PROGRAMS if name.startswith(("processes: ", "files: ", "sockets: ", "kernel: "))][::2]
    names = [*some, *(name for name in PROGRAMS if name.startswith("reads: "))]
    found = effects(run_as([*BATTERY, "--at-most", "filtered", *names], timeout=300))
    assert {"reads: a file", "reads: names of files"} <= set(found)
    assert all(name.startswith("reads: ") or name == "sockets: names" for name in found), found


# -- tiers -------------------------------------------------------------------------------------------------------------------

OFFER = [sys.executable, "-c", "from nanochat.sandbox import probe; offer = probe(); print(offer.tier, *sorted(offer.missing))"]


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize(
    ("missing", "tier", "layers"),
    [
        ([], "full", []),
        (["landlock"], "closed", ["landlock"]),
        (["network"], "closed", ["network"]),
        (["user"], "closed", sorted([*NAMESPACES, "root"])),
        (["landlock", "user"], "filtered", sorted([*NAMESPACES, "landlock", "root"])),
        (["filter"], "limited", ["filter"]),
    ],
    ids=lambda value: "-".join(value) or "nothing" if isinstance(value, list) else value,
)
def test_the_tier_is_what_the_machine_offers(run_as, user, missing, tier, layers):
    need("full")
    before = [*POORER, *missing, "--"] if missing else []
    done = run_as([*before, *OFFER], user=user)
    assert done.stdout.split() == [tier, *layers], done.stderr


@pytest.mark.parametrize("method", ["namespace", "seccomp"])
def test_it_works_inside_the_jail_without_network(run_as, method):
    need("full")
    done = run_as([sys.executable, "-m", "nanochat.jobs.offline", "run", "--method", method, "--", *OFFER])
    assert done.stdout == "full\n", done.stderr


def test_nothing_runs_below_the_tier_that_is_asked_for(tmp_path, monkeypatch):
    trace = tmp_path / "ran"
    code = f"open({str(trace)!r}, 'w').close()"
    with pytest.raises(UserError, match="reached tier limited where closed is asked for, and ran nothing"):
        run_program(code, at_most="limited")
    assert not trace.exists()
    assert run(code, at_most="limited").passed  # negative control
    trace.unlink()


def test_a_machine_that_offers_less_is_told_in_words(monkeypatch):
    poor = sandbox.Offer("filtered", {"landlock": "Function not implemented", "root": "namespaces: Operation not permitted"})
    monkeypatch.setattr("nanochat.sandbox.offer.probe", lambda: poor)
    assert require("filtered") == poor
    with pytest.raises(UserError) as refused:
        require("closed")
    words = str(refused.value)
    for part in ("closed", "no landlock: Function not implemented", "chat_eval.sandbox: filtered", "docs/sandbox.md"):
        assert part in words


def test_preflight_warns_and_does_not_refuse(monkeypatch, caplog):
    from nanochat.planning import preflight

    monkeypatch.setattr("nanochat.sandbox.offer.probe", lambda: sandbox.Offer("limited", {"filter": "no"}))
    preflight.look_at_sandbox("limited")
    assert not caplog.records
    preflight.look_at_sandbox("closed")
    assert "on this machine, chat_eval would refuse" in caplog.text


def test_the_configuration_knows_the_tiers_and_asks_for_closed_files():
    field = ChatEval.model_fields["sandbox"]
    assert get_args(field.annotation) == TIERS and field.default == "closed"


def test_a_tier_is_no_higher_than_its_weakest_layer():
    full = dict.fromkeys(("capabilities", "filter", "landlock", "root", *NAMESPACES), "")
    assert reached(full) == "full"
    expected = {"capabilities": "limited", "filter": "limited", **dict.fromkeys(("landlock", "root", *NAMESPACES), "closed")}
    for layer, tier in expected.items():
        assert reached({**full, layer: "no"}) == tier
        assert reached({other: "" for other in full if other != layer}) == tier
    assert reached({**full, "landlock": "no", "root": "no"}) == "filtered"
    assert reached({}) == "limited" and tuple(LAYERS) == TIERS


def test_a_layer_that_does_nothing_is_noticed():
    """In a process where no layer was applied."""
    code = """
        from nanochat.confined import kernel, landlock, system_calls
        kernel.libc = system_calls.install_filter = lambda *_: 0
        landlock.system_call = lambda *_: 1
        landlock.os.close = lambda _: None
        for layer in (system_calls.refuse_calls, kernel.drop_capabilities, lambda: landlock.restrict(readable=[], listable=[])):
            try: layer()
            except OSError as error: print(error)
    """
    done = subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines() == [
        "socket is not refused",
        "capabilities are left",
        "/ can be read all the same",
    ], done.stderr


@pytest.mark.parametrize("machine", MACHINES)
def test_the_filter_is_small_and_knows_every_machine(machine):
    assert 200 < len(system_calls.make_filter(machine)) < 400
    numbers = [row[system_calls.COLUMN[machine]] for row in system_calls.ALLOWED.values()]
    known = [number for number in numbers if number is not None]
    assert len(known) == len(set(known))
    dangerous = {row[system_calls.COLUMN[machine]] for row in system_calls.FORBIDDEN.values()}
    assert not dangerous & set(known)


def test_programs_die_with_the_process_that_runs_them():
    need("filtered")
    code = "import sys; from nanochat.sandbox import run_program; run_program('while True: pass', timeout_s=60, tier='limited')"
    host_process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    deadline = time.monotonic() + 30
    while len(family := descendants(host_process.pid)) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(family) >= 3, "the judge and the candidate, and who waits for them"
    host_process.kill()
    host_process.wait()
    while any(is_alive(process) for process in family) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_alive(process) for process in family)
    for folder in Path("/tmp").glob("program-*"):  # it had no time to remove its own
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def descendants(process):
    children = [
        int(name)
        for name in os.listdir("/proc")
        if name.isdigit() and (status := state_of(int(name))) and int(status[1]) == process
    ]
    return children + [other for child in children for other in descendants(child)]


def state_of(process):
    """State and parent, as the kernel writes them behind the name in parentheses."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def is_alive(process):
    status = state_of(process)
    return status is not None and status[0] != "Z"


# -- verdicts ----------------------------------------------------------------------------------------------------------------


def test_a_program_that_reaches_its_last_line_passes():
    result = run("def double(x):\n    return 2 * x\nprint('déjà vu')\nassert double(2) == 4")
    assert (result.passed, result.reason, result.stdout, result.tier) == (True, "", "déjà vu\n", probe().tier)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("assert 1 == 2, 'one is not two'", "AssertionError: one is not two"),
        ("assert 1 == 2", "AssertionError"),
        ("def f(:", "SyntaxError"),
        ("x = 'a\0b'", "ValueError"),  # SyntaxError from Python 3.12 on
        ("input()", "EOFError"),
        ("import torch", "ModuleNotFoundError"),
        ("import nanochat", "ModuleNotFoundError"),
        ("class Odd(BaseException): pass\nraise Odd('x')", "Odd: x"),
        ("class Mute(Exception):\n    def __str__(self): raise self\nraise Mute", "an error that cannot be described"),
        ("import os; os._exit(3)", "exit status 3"),
        ("import ctypes; ctypes.string_at(0)", "Segmentation fault"),
        ("import os; os.closerange(0, 256)\nimport time; time.sleep(60)", "closed its pipes"),
    ],
)
def test_a_program_that_fails_says_why(code, reason):
    result = run(code)
    assert not result.passed
    assert reason in result.reason or result.reason.startswith("SyntaxError")


@pytest.mark.parametrize(
    "code",
    [
        "import threading, time\nthreading.Thread(target=time.sleep, args=(3600,)).start()",
        "import os\nos.write = os._exit = None",
        "import sys\nsys.stdout = sys.stderr = sys.stdin = None",
        "import sys\nsys.stdout.close()",
        "import builtins\nbuiltins.print = builtins.str = builtins.type = None",
        "import sys; sys.modules.clear()",
        "print('x' * 3_000_000)",
        "from dataclasses import dataclass\n@dataclass\nclass Point:\n    x: 'int' = 0\nassert Point(1).x == 1",
        "if __name__ == '__main__':\n    input()",
        "import hashlib, sqlite3, decimal, json, zlib, ssl, asyncio\nassert hashlib.md5(b'').hexdigest()[:4] == 'd41d'",
        "import random, datetime, uuid, collections, typing, statistics, heapq, bisect, string\nrandom.random()",
        "import signal\nsignal.alarm(1); signal.alarm(0); signal.signal(signal.SIGALRM, signal.SIG_IGN)",
        "from concurrent.futures import ThreadPoolExecutor as Pool\nassert list(Pool(4).map(abs, [-1])) == [1]",
    ],
)
def test_odd_but_finished_programs_pass(code):
    result = run(code)
    assert (result.passed, result.reason) == (True, "")
    assert len(result.stdout) <= MAX_OUTPUT_BYTES


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name.startswith("fakes: ")])
def test_no_fake_passes_also_at_the_lowest_tier(name, temporary):
    prologue = "import os, sys, time\nHOST = os.getppid()\ndescriptors = lambda first=0: range(first, 64)\n"
    result = double(prologue + PROGRAMS[name], tests=TESTS, at_most="limited", timeout_s=2.0)
    assert not result.passed and result.reason


def test_a_right_function_passes_and_what_it_prints_is_kept():
    result = double("def double(x):\n    print('asked', x)\n    return 2 * x")
    assert (result.passed, result.reason, result.stdout) == (True, "", "asked 2\nasked -7\n")


def test_a_wrong_function_fails_with_the_reason():
    assert double("def double(x): return x", tests="def check(f): assert f(2) == 4, 'not 4'").reason == "AssertionError: not 4"
    assert double("def triple(x): return 3 * x").reason == "NameError: name 'double' is not defined"
    assert double("def double(): return 4").reason.startswith("TypeError: double() takes 0 positional")
    assert double("double = 4").reason == "TypeError: 'int' object is not callable"


def test_tests_that_call_nothing_prove_nothing():
    result = double("def double(x): return 0", tests="def check(candidate): assert True")
    assert (result.passed, result.reason) == (False, "the tests never called double")


def test_tests_see_what_the_prompt_defines_and_the_function_by_its_name():
    setup = "def half(x): return x / 2\ndef double(x): return 'the header of the prompt'"
    tests = "def check(candidate):\n    assert half(candidate(3)) == 3 == half(double(x=3))"
    assert double("def double(x): return 2 * x", setup=setup, tests=tests).passed
    assert not double("def half(x): return 3\ndef double(x): return 0", setup=setup, tests=tests).passed


def test_errors_cross_over_as_what_they_are():
    code = """
        class Odd(KeyError): pass
        def double(x):
            if x == 1: raise ValueError('one')
            if x == 2: raise Odd('two')
            if x == 3: return b'\\xff'.decode()
            raise SystemExit(0)
    """
    tests = """
        def check(candidate):
            for x, kind in ((1, ValueError), (2, KeyError), (3, ValueError)):
                try: candidate(x)
                except kind as error: assert isinstance(error, kind) and (x != 1 or str(error) == 'one')
                else: assert False
            if {last}: candidate(4)
    """
    assert double(code, tests=dedent(tests).format(last=False)).passed
    assert double(code, tests=dedent(tests).format(last=True)).reason == "SystemExit: 0"


def test_a_dead_candidate_fails_whatever_the_tests_catch():
    tests = "def check(candidate):\n    try: candidate(2)\n    except BaseException: pass"
    assert double("def double(x): return 4", tests=tests).passed
    assert double("import os\ndef double(x): os._exit(0)", tests=tests).reason == "ended before its last line (exit status 0)"


def test_arguments_are_copies():
    code = "def double(x):\n    x.clear()\n    return 0"
    tests = "def check(candidate):\n    x = [1, 2]\n    assert candidate(x) == 0 and x == [1, 2]"
    assert double(code, tests=tests).passed


# -- values between the two processes ----------------------------------------------------------------------------------------

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.binary(max_size=20)
    | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.lists(inner, max_size=3).map(tuple)
    | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3) | st.sets(st.integers(), max_size=3)
    | st.frozensets(st.text(max_size=3), max_size=3),
    max_leaves=12,
)  # fmt: skip


def spelled(value):
    """Types and values; nan is itself, and a set has no order."""
    if isinstance(value, set | frozenset):
        return type(value), sorted(map(repr, value))
    if isinstance(value, list | tuple):
        return type(value), [spelled(item) for item in value]
    if isinstance(value, dict):
        return dict, [(key, spelled(item)) for key, item in value.items()]
    return type(value), repr(value)


@given(PLAIN)
def test_plain_values_arrive_as_they_are(value):
    found = wire.decode(wire.encode(value))
    assert spelled(found) == spelled(value)


def test_odd_values_arrive_as_they_are():
    values = [10**5000, -(2**70), math.inf, -0.0, "\ud800", "\ud800\udc00", "\U00010000", range(3, 9, 2), bytearray(b"x")]
    found = wire.decode(wire.encode(values))
    assert found == values and math.copysign(1, found[3]) == -1 and len(found[5]) == 2
    assert math.isnan(wire.decode(wire.encode(math.nan)))


def test_derived_classes_arrive_as_what_they_are_derived_from():
    class Five(int):
        def __eq__(self, other):
            return True

        __hash__ = int.__hash__

    Point = namedtuple("Point", "x y")
    values = [Five(5), Counter("aab"), OrderedDict(a=1), Point(1, 2), [Five(3)]]
    found = wire.decode(wire.encode(values))
    assert found == [5, {"a": 2, "b": 1}, {"a": 1}, (1, 2), [3]]
    assert [type(value) for value in found] == [int, dict, dict, tuple, list]
    assert found[0] != 4


def test_other_objects_equal_nothing_and_can_be_gone_through():
    found = wire.decode(wire.encode([object(), (x * x for x in range(3)), {}.keys()]))
    assert found[0] != 0 and list(found[1]) == [0, 1, 4] and found[1] != [0, 1, 4] and not found[2]
    with pytest.raises(TypeError, match="'object' object is not iterable"):
        list(found[0])
    assert len(list(wire.decode(wire.encode(itertools.count())))) == wire.MAX_OPAQUE_ITEMS


@given(st.binary(max_size=40))
def test_junk_is_a_value_or_malformed(data):
    with suppress(wire.Malformed):
        wire.decode(data)


@pytest.mark.parametrize(
    "data", [b"", b"x", b"l\0\0\0\xff", b"N" * 2, b"l\0\0\0\1" * 500, b"s\0\0\0\1l\0\0\0\0", b"i\0\0\0\1z"]
)
def test_malformed_values_are_refused(data):
    with pytest.raises(wire.Malformed):
        wire.decode(data)


def test_values_too_deep_or_too_large_are_refused(monkeypatch):
    deep = []
    for _ in range(wire.MAX_DEPTH + 1):
        deep = [deep]
    with pytest.raises(wire.Malformed, match="levels deep"):
        wire.encode(deep)
    monkeypatch.setattr(wire, "MAX_MESSAGE_BYTES", 100)
    with pytest.raises(wire.Malformed, match="a value of"):
        wire.encode("x" * 200)


# -- the rest ----------------------------------------------------------------------------------------------------------------


def test_what_is_printed_before_the_end_is_kept_also_after_a_failure():
    assert run("print('before')\nassert False").stdout == "before\n"
    assert run("print('before', flush=True)\nwhile True: pass", timeout_s=0.5).stdout == "before\n"


def test_the_environment_holds_none_of_our_variables(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "canary")
    result = run("import os; print(sorted(os.environ)); assert 'canary' not in str(os.environ)")
    assert result.passed
    assert "SECRET" not in result.stdout


@pytest.mark.parametrize("tier", TIERS)
def test_a_program_starts_in_an_empty_folder_of_its_own(tier):
    code = "import os; assert os.listdir('.') == [] and os.environ['HOME'] == os.getcwd()"
    assert run(code, at_most=tier).passed


def test_a_child_process_does_not_outlive_its_program():
    """At the lowest tier, the only one where there can be a child, if it stays in its session."""
    code = "import os, time\npid = os.fork()\nif pid == 0: time.sleep(3600)\nprint(pid)"
    result = run(code, at_most="limited")
    assert result.passed
    deadline = time.monotonic() + 30
    while is_alive(int(result.stdout)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(int(result.stdout))


def test_verdicts_do_not_depend_on_hash_order():
    code = "print(list({'a', 'b', 'c', 'd', 'e', 'f'}))"
    assert len({run(code).stdout for _ in range(5)}) == 1


def test_programs_in_parallel_threads_do_not_disturb_each_other():
    codes = [f"import time; time.sleep(0.05); print({i}); assert {i} % 3" for i in range(24)]
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(run, codes))
    assert [result.passed for result in results] == [i % 3 != 0 for i in range(24)]
    assert [result.stdout for result in results] == [f"{i}\n" for i in range(24)]


def test_open_files_of_ours_are_closed_again():
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    for code in ("pass", "import os; os._exit(0)", "while True: pass"):
        run(code, timeout_s=0.2)
    after = set(os.listdir("/proc/self/fd")) if before else set()
    assert len(after) <= len(before)


@pytest.mark.parametrize("said", ["", "echo no python today"])
def test_a_sandbox_that_does_not_work_is_an_error_and_no_verdict(tmp_path, monkeypatch, said):
    broken = tmp_path / "python"
    broken.write_text(f"#!/bin/sh\n{said}\nexit 1\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(broken))
    for known in (None, host.Files((), (), (), ())):  # it fails already when its files are looked for, or later
        if known:
            monkeypatch.setattr(host, "known_files", lambda known=known: known)
        with pytest.raises(UserError, match=said.removeprefix("echo ") or "said nothing|exit status 1"):
            run("pass")
    broken.unlink()
    with pytest.raises(UserError, match="No such file"):
        run("pass")


def test_a_verdict_that_needs_no_secret_would_let_fakes_pass(monkeypatch):
    """Negative control: the judge is what stops them, and not that they are bad programs."""
    monkeypatch.setattr(host, "judge", lambda conversation, *_, **__: conversation.said()[1:] != [])
    assert double("import os; os._exit(0)")
