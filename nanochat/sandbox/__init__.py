"""Run programs that a model wrote, closed in as far as the machine allows, and say whether their tests passed.

    run_tests("def double(x): return 2 * x", setup="", tests="def check(f): assert f(2) == 4", entry_point="double")
    run_program("assert 1 + 1 == 2")      ->  Result(passed=True, reason="", stdout="", tier="full")
    require("closed")                     ->  UserError, in words, on a machine that cannot

Tiers, each with all that is above it. What the machine offers is always used; nothing runs below the tier that is asked for,
and what took effect is tried out in the very process that then runs the program.

    limited    limits of time, memory and open files; an environment, a folder and a session of its own; no capabilities
    filtered   system calls are filtered: no sockets, no further processes, no signals to others, no writing of files
    closed     files are out of reach, but for Python's own: by Landlock, or by a root of its own (namespaces)
    full       both, and no view of the machine's processes, network, users, names and shared memory (six namespaces)

Covered:
- a wrong function does not pass. Tests and program are in two processes; the judge's gets plain data from the other, no more:
  objects equal to everything, sys.exit, os._exit, patched builtins, walks over frames, junk in the pipes decide nothing
- from filtered on: no network, no process that outlives the program, no file changed, no other process disturbed
- from closed on: no file, environment variable or memory of the user is read
- time, memory, output and messages are bounded; everything is killed when time is up, and when we die
Not covered:
- faults of the kernel, side channels such as timing and load; names and sizes of files below full (without a root of its own)
- limited: everything that the user may do, a program may. filtered: it may read all that the user may, the tests too
- a program that passes by knowing the tests by heart, and run_program(), whose verdict is the program's own word
- changes that a function makes to its arguments: they are copies. It may call nothing in the tests, and they nothing else in it
- macOS: limited is all there is, and memory is not limited
Safe to call from several threads at once.
"""

from nanochat.confined.tiers import TIERS
from nanochat.sandbox.host import MAX_OUTPUT_BYTES, Result, run_program, run_tests
from nanochat.sandbox.offer import Offer, probe, require

__all__ = ["MAX_OUTPUT_BYTES", "TIERS", "Offer", "Result", "probe", "require", "run_program", "run_tests"]
