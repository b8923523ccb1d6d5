"""Where something stands in the project's source: looked up in the syntax tree whenever it is asked for, never written down.

    find("nanochat.gpt.GPT.embed")                              the `def` itself
    find("nanochat.gpt.GPT.__init__", assigns="wte")            the statement in it that assigns self.wte
    find("nanochat.gpt.GPT.embed", code="self.wte(idx)")        the statement in it that holds this piece of code

A symbol must exist in the running code, and a statement must be found exactly once: what moved, vanished or was doubled is a
`SymbolMoved`, not a wrong line number. Pieces of code are compared as syntax, so line breaks, quotes and comments do not count.
"""

import ast
import importlib
import importlib.util
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import nanochat
from nanochat.errors import UserError

ROOT = Path(nanochat.__file__).resolve().parent.parent  # what the names of files are relative to

LONGEST = 160  # characters of code that are shown on one line
CLOSING = {"(": ")", "[": "]", "{": "}"}

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class SymbolMoved(UserError):
    """The source no longer has what a text points at."""


@dataclass(frozen=True)
class Place:
    """A statement: `nanochat.gpt.GPT.embed`, `nanochat/gpt.py`, its first line, and its text on one line with its comment."""

    symbol: str
    file: str
    line: int
    code: str


def find(symbol: str, *, assigns: str | None = None, code: str | None = None) -> Place:
    """The definition of a symbol, or the one statement in it that assigns the name `assigns` or holds the piece of `code`."""
    module, names = import_owner(symbol)
    tree, lines = parsed(module)
    node = definition(tree, names, symbol)
    if assigns is not None:
        node = the_only([s for s in statements(node) if assigns in assigned(s)], f"assigns {assigns}", symbol)
    elif code is not None:
        node = the_only(holders(node, code), f"holds `{code}`", symbol)
    file = Path(inspect.getsourcefile(module) or "").resolve()
    shown = file.relative_to(ROOT).as_posix() if file.is_relative_to(ROOT) else file.as_posix()
    return Place(symbol, shown, node.lineno, text(node, lines))


# -- the symbol ----------------------------------------------------------------------------------------------------------------


@cache
def import_owner(symbol: str) -> tuple[ModuleType, tuple[str, ...]]:
    """The module that a dotted name is in, and the names behind it, each of which the running code must have."""
    parts = symbol.split(".")
    for number in range(len(parts), 0, -1):
        try:
            is_module = importlib.util.find_spec(".".join(parts[:number])) is not None
        except ModuleNotFoundError:
            is_module = False
        if is_module:
            break
    else:
        raise SymbolMoved(f"{symbol}: there is no module of that name")
    module, names = importlib.import_module(".".join(parts[:number])), tuple(parts[number:])
    value: object = module
    for name in names:
        if not hasattr(value, name):
            raise SymbolMoved(f"{symbol}: {module.__name__} has no {'.'.join(names)}")
        value = getattr(value, name)
    return module, names


@cache
def parsed(module: ModuleType) -> tuple[ast.Module, list[str]]:
    source = inspect.getsource(module)
    return ast.parse(source), source.splitlines()


def definition(tree: ast.Module, names: tuple[str, ...], symbol: str) -> ast.stmt:
    """The class, function or assignment that a dotted name stands for."""
    body, found = tree.body, None
    for name in names:
        here = [s for s in body if (isinstance(s, Definition) and s.name == name) or name in assigned(s)]
        found = the_only(here, f"defines {name}", symbol)
        body = found.body if isinstance(found, Definition) else []
    if found is None:
        raise SymbolMoved(f"{symbol}: is a module; name something in it")
    return found


# -- statements in it ----------------------------------------------------------------------------------------------------------


def statements(node: ast.AST) -> Iterator[ast.stmt]:
    return (inner for inner in ast.walk(node) if isinstance(inner, ast.stmt) and inner is not node)


def assigned(statement: ast.stmt) -> list[str]:
    """Names that a statement assigns: `x`, and `wte` for `self.wte`."""
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    targets = [statement.target] if isinstance(statement, ast.AnnAssign | ast.AugAssign) else targets
    return [ast.unparse(target).removeprefix("self.") for target in targets]


def holders(node: ast.stmt, code: str) -> list[ast.stmt]:
    """The innermost statements that hold a piece of code, once for each time that they hold it."""
    (wanted,) = ast.parse(code).body
    piece = ast.dump(wanted.value if isinstance(wanted, ast.Expr) else wanted)
    return list(search(node, piece, node))


def search(node: ast.AST, piece: str, statement: ast.stmt) -> Iterator[ast.stmt]:
    if ast.dump(node) == piece:
        yield statement
    for child in ast.iter_child_nodes(node):
        yield from search(child, piece, child if isinstance(child, ast.stmt) else statement)


def the_only(found: list[ast.stmt], what: str, symbol: str) -> ast.stmt:
    if len(found) != 1:
        lines = ", ".join(str(node.lineno) for node in found)
        raise SymbolMoved(f"{symbol}: {f'more than one statement {what} (lines {lines})' if found else f'nothing {what}'}")
    return found[0]


def text(node: ast.stmt, lines: list[str]) -> str:
    """A statement's source on one line, with the comment behind it; of a class, function, loop or condition the head alone.

    What is too long for a line is cut where its first line ends.
    """
    last = node.end_lineno or node.lineno
    if body := getattr(node, "body", None):
        last = next(n for n in range(node.lineno, body[0].lineno) if lines[n - 1].split("#")[0].rstrip().endswith(":"))
    pieces = [line.strip() for line in lines[node.lineno - 1 : last]]
    joined = " ".join(piece for piece in pieces if not piece.startswith("#"))
    joined = joined.replace("( ", "(").replace(", )", ")").replace(" )", ")")
    return joined if len(joined) <= LONGEST else f"{pieces[0]}...{CLOSING.get(pieces[0][-1], '')}"
