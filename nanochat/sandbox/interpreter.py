"""Which files an interpreter reads while it runs: the standard library, and the shared libraries that this one needs.

Run as a program, it prints the shared libraries of the interpreter that runs it.
"""

import ctypes
import importlib
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

FLAGS = ("-P", "-s", "-S", "-X", "utf8")
# modules that no program here needs, and that load much (a window system) or have side effects
PASSED_OVER = ("_test", "_ctypes_test", "_tkinter", "_curses", "_dbm", "_gdbm", "readline", "xx", "nis", "ossaudiodev")
CACHE_OF_NAMES = "/etc/ld.so.cache"  # where the loader looks for libraries by name
PROBE_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Files:
    trees: tuple[str, ...]  # folders of the standard library
    libraries: tuple[str, ...]
    hidden: tuple[str, ...]  # folders of installed packages that lie within the trees
    readable: tuple[str, ...]  # the trees without what is hidden, and the libraries


@cache
def files_of(interpreter: str, variables: tuple[tuple[str, str], ...]) -> Files:
    """Paths as the interpreter opens them. OSError or subprocess.SubprocessError if it does not run."""
    command = [interpreter, *FLAGS, "-B", __file__]
    found = subprocess.run(
        command, env=dict(variables), capture_output=True, text=True, check=True, timeout=PROBE_TIMEOUT_S, cwd="/"
    ).stdout.splitlines()
    trees = tuple(line[1:] for line in found if line.startswith("+"))
    libraries = tuple(line[1:] for line in found if line.startswith("-"))
    entries = [entry for tree in trees for entry in os.scandir(tree)]
    hidden = tuple(entry.path for entry in entries if entry.name.endswith("-packages"))
    shown = tuple(entry.path for entry in entries if not entry.name.endswith("-packages")) if hidden else trees
    return Files(trees, libraries, hidden, shown + libraries)


def main() -> None:
    folders = [os.path.normpath(folder) for folder in sys.path if os.path.isdir(folder)]
    trees = [folder for folder in folders if not is_within(folder, folders)]  # lib-dynload is in the standard library
    for folder in trees:
        print(f"+{folder}")
    for folder in folders:
        for file in os.listdir(folder):
            name = file.partition(".")[0]
            if file.endswith(".so") and not name.startswith(PASSED_OVER):
                with suppress(ImportError):
                    importlib.import_module(name)
    for path in map(os.path.normpath, (*libraries(), CACHE_OF_NAMES)):
        if os.path.isabs(path) and os.path.isfile(path) and not is_within(path, trees):
            print(f"-{path}")


def is_within(path: str, folders: list[str]) -> bool:
    return any(path.startswith(folder + os.sep) for folder in folders)


def libraries() -> list[str]:
    """The shared libraries that this process has loaded, by the names by which they were found."""

    class Loaded(ctypes.Structure):
        _fields_ = [("address", ctypes.c_void_p), ("name", ctypes.c_char_p)]

    found: list[str] = []
    visitor = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Loaded), ctypes.c_size_t, ctypes.c_void_p)
    library = ctypes.CDLL(None)
    if not hasattr(library, "dl_iterate_phdr"):
        return []
    with suppress(OSError):
        ctypes.CDLL("libgcc_s.so.1")  # glibc wants it when a thread is ended

    def visit(entry: Any, _size: int, _data: object) -> int:
        found.append(os.fsdecode(entry.contents.name or b""))
        return 0

    library.dl_iterate_phdr(visitor(visit), None)
    return found


if __name__ == "__main__":
    main()
