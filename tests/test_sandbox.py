"""A program passes only if it reached its last line; hostile ones cost a failed sample, never the evaluation."""

import os
import select
import stat
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from textwrap import dedent

import pytest

from nanochat import sandbox
from nanochat.errors import UserError
from nanochat.sandbox import MAX_OUTPUT_BYTES, run_program


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Programs make their folders here, so that a test sees what they leave behind: nothing."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_reaches_its_last_line_passes():
    result = run_program("def double(x):\n    return 2 * x\nprint('déjà vu')\nassert double(2) == 4")
    assert (result.passed, result.reason, result.stdout) == (True, "", "déjà vu\n")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("assert 1 == 2, 'one is not two'", "AssertionError: one is not two"),
        ("assert 1 == 2", "AssertionError"),
        ("def f(:", "SyntaxError"),
        ("x = 'a\0b'", "ValueError"),  # SyntaxError from Python 3.12 on
        ("input()", "EOFError"),
        ("import torch", "ModuleNotFoundError"),
        ("class Odd(BaseException): pass\nraise Odd('x')", "Odd: x"),
        ("class Mute(Exception):\n    def __str__(self): raise self\nraise Mute", "an error that cannot be described"),
    ],
)
def test_a_program_that_fails_says_why(code, reason):
    result = run_program(code)
    assert not result.passed
    assert reason in result.reason or result.reason.startswith("SyntaxError")


PRETENDING = {
    "sys.exit": "import sys; sys.exit(0)",
    "exit in a function": "def f(): raise SystemExit\nf()\nassert False",
    "os._exit": "import os; os._exit(0)",
    "exec of another program": "import os; os.execv('/bin/true', ['true'])",
    "atexit": "import atexit, os; atexit.register(os._exit, 0); assert False",
    "printing": "print('ready\\npassed'); assert False",
    "junk in every file": """
        import os
        for i in range(256):
            try: os.write(i, b'ready passed')
            except OSError: pass
        os._exit(0)
    """,
    "junk before a pass": """
        import os
        for i in range(3, 256):
            try: os.write(i, b'x')
            except OSError: pass
    """,
    "closing every file": "import os; os.closerange(0, 256)\nassert False",
    "a child that leaves": "import os\nif os.fork() == 0: os._exit(0)\nassert False",
    "no assertions": "import builtins; builtins.AssertionError = None\nassert False",
    "no exceptions": "import builtins; builtins.BaseException = Exception = None\nassert False",
    "a broken runner": "import __main__; __main__.describe = None; __main__.main = None\nassert False",
}


@pytest.mark.parametrize("code", PRETENDING.values(), ids=PRETENDING.keys())
def test_a_program_cannot_pass_without_its_last_line(code):
    result = run_program(dedent(code))
    assert not result.passed
    assert result.reason


HOSTILE = {
    "endless loop": "while True: pass",
    "endless sleep": "import time; time.sleep(3600)",
    "deaf to signals": """
        import signal, time
        for number in range(1, 32):
            try: signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError): pass
        while True: time.sleep(1)
    """,
    "large integer": "10**10**10",
    "memory": "x = []\nwhile True: x.append(bytearray(10**7))",
    "recursion": "def f(): return f()\nf()",
    "recursion in C": """
        import sys
        sys.setrecursionlimit(10**9)
        x = []
        for _ in range(10**6): x = [x]
        repr(x)
    """,
    "crash": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "real-time signal": "import os; os.kill(os.getpid(), 40)",
    "stack of the parser": "eval('-' * 10**6 + '1')",
    "output": "while True: print('x' * 10**6)",
    "output to the error channel": "import sys\nwhile True: sys.stderr.write('x' * 10**6)",
    "large file": "f = open('large', 'wb')\nwhile True: f.write(bytes(10**7)); f.flush()",
    "many files": "x = [open(str(i), 'w') for i in range(1000)]",
    "deep folders": "import os\nfor i in range(1500): os.mkdir('d'); os.chdir('d')\nassert False",
    "locked folder": "import os; os.mkdir('a'); open('a/b', 'w').close(); os.chmod('a', 0)\nassert False",
    "its own folder": "import os; os.rmdir(os.getcwd())\nassert False",
    "threads that go on": """
        import threading, time
        for _ in range(8): threading.Thread(target=time.sleep, args=(3600,)).start()
        assert False
    """,
    "a child that goes on": "import os, time\nif os.fork() == 0: time.sleep(3600)\nassert False",
    "a child that holds the pipes": "import os, time\nif os.fork() == 0: time.sleep(3600)\nos._exit(0)",
    "the verdict pipe filled": """
        import os
        for i in range(3, 256):
            try:
                while True: os.write(i, bytes(10**6))
            except OSError: pass
    """,
}


@pytest.mark.parametrize("code", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_program_is_a_failed_sample_with_a_reason(code):
    result = run_program(dedent(code), timeout_s=1.0, memory_mb=256)
    assert not result.passed
    assert result.reason
    assert len(result.stdout) <= MAX_OUTPUT_BYTES


@pytest.mark.parametrize(
    "code",
    [
        "import threading, time\nthreading.Thread(target=time.sleep, args=(3600,)).start()",
        "import os\nos.write = os._exit = None",
        "import sys\nsys.stdout = sys.stderr = sys.stdin = None",
        "import sys\nsys.stdout.close()",
        "import builtins\nbuiltins.print = builtins.str = builtins.type = None",
        "import os; os.rmdir(os.getcwd())",
        "import sys; sys.modules.clear()",
        "print('x' * 3_000_000)",
        "from dataclasses import dataclass\n@dataclass\nclass Point:\n    x: 'int' = 0\nassert Point(1).x == 1",
        "if __name__ == '__main__':\n    input()",
    ],
)
def test_odd_but_finished_programs_pass(code):
    result = run_program(code)
    assert (result.passed, result.reason) == (True, "")
    assert len(result.stdout) <= MAX_OUTPUT_BYTES


def test_what_is_printed_before_the_end_is_kept_also_after_a_failure():
    assert run_program("print('before')\nassert False").stdout == "before\n"
    assert run_program("print('before', flush=True)\nwhile True: pass", timeout_s=0.5).stdout == "before\n"


def test_the_environment_holds_none_of_our_variables(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "canary")
    result = run_program("import os; print(sorted(os.environ)); assert 'canary' not in str(os.environ)")
    assert result.passed
    assert "SECRET" not in result.stdout


def test_a_program_starts_in_an_empty_folder_of_its_own():
    assert run_program("import os; assert os.listdir('.') == [] and os.environ['HOME'] == os.getcwd()").passed


def test_a_child_process_does_not_outlive_its_program(tmp_path):
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    code = f"import os, time\nif os.fork() == 0:\n    open({str(fifo)!r}, 'w'); time.sleep(3600)\nopen({str(fifo)!r}).read(0)"
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert run_program(code).passed
        assert select.select([reader], [], [], 30)[0], "the child still holds the writing end"
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)
        fifo.unlink()


def test_verdicts_do_not_depend_on_hash_order():
    code = "print(list({'a', 'b', 'c', 'd', 'e', 'f'}))"
    assert len({run_program(code).stdout for _ in range(5)}) == 1


def test_programs_in_parallel_threads_do_not_disturb_each_other():
    codes = [f"import time; time.sleep(0.05); print({i}); assert {i} % 3" for i in range(24)]
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(run_program, codes))
    assert [result.passed for result in results] == [i % 3 != 0 for i in range(24)]
    assert [result.stdout for result in results] == [f"{i}\n" for i in range(24)]


def test_open_files_of_ours_are_closed_again():
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    for code in ("pass", "import os; os._exit(0)", "while True: pass"):
        run_program(code, timeout_s=0.2)
    after = set(os.listdir("/proc/self/fd")) if before else set()
    assert len(after) <= len(before)


@pytest.mark.parametrize("said", ["", "echo no python today"])
def test_a_sandbox_that_does_not_work_is_an_error_and_no_verdict(tmp_path, monkeypatch, said):
    broken = tmp_path / "python"
    broken.write_text(f"#!/bin/sh\n{said}\nexit 1\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(UserError, match=said.removeprefix("echo ") or "said nothing"):
        run_program("pass")
    broken.unlink()
    with pytest.raises(UserError, match="No such file"):
        run_program("pass")


def test_a_check_by_exit_code_would_have_passed_the_pretenders(monkeypatch):
    """Negative control: with a verdict that needs no secret, the programs above do get through."""
    monkeypatch.setattr(sandbox, "judge", lambda process, *_, **__: process.wait() == 0)
    assert run_program(PRETENDING["os._exit"])
