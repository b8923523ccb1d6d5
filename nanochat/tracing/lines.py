"""Watch code run: every statement of chosen source files, with the values that it made.

    with LineRecorder([Path(gpt.__file__)], on_line):
        model(ids)

calls `on_line` once for each statement, as soon as it has finished. The code that runs is the real one, unchanged: Python's own
hook for debuggers (`sys.settrace`) tells which line comes next, and the syntax tree of the file tells which statement that line
belongs to and which names it assigns. Nothing is computed twice, so the results are the same bits as without a recorder.

Covered: statements over several lines (told once), loops (each round anew), generators, nested calls (what a statement calls
    comes before the statement itself, as it finishes first), `return` (its value under the name "return"), names that a method
    ending in `_` changes in place (`momenta.lerp_(...)`), statements that an exception ended (not told: they did not finish).
Not covered: other threads; two statements on one line; comprehensions and lambdas as such (functions that they call are seen);
    attributes and items (`self.x = ...`, `a[0] = ...`), which are no names. A value is the object itself, not a copy: look at
    it at once, since a later line may change it in place.
"""

import ast
import dis
import re
import sys
import textwrap
import tokenize
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

# `# (B, T, C)`, `# (B, 1)`, `# (B, V or k), rising to almost 1`: the shape of what the line assigns
SHAPE_COMMENT = re.compile(r"#\s*\(((?:[A-Z]|\d+)(?: or \w+)?(?:, (?:[A-Z]|\d+)(?: or \w+)?)*,?)\)")
RETURN = "return"


@dataclass(frozen=True)
class Call:
    """A recorded function that is running."""

    number: int  # calls are counted from 0
    function: str
    line: int  # where the statement starts at which it is
    frame_self: object | None


@dataclass(frozen=True)
class Line:
    """One statement that has finished."""

    file: Path
    function: str  # qualified: "Block.forward"
    line: int
    end_line: int  # of a loop or an `if`: where its head ends
    code: str  # as in the file, comment included, without the indentation
    depth: int  # how many recorded functions this one was called from
    frame_self: object | None  # `self` of a method
    values: dict[str, object]
    letters: str | None = None  # "B, T, C", if the line ends in a comment that gives the shape
    taken: bool | None = None  # of an `if`, `while`: whether its condition held
    call: int = 0  # the number of the call that it belongs to
    callers: tuple[Call, ...] = ()  # recorded functions that wait for this one, the outermost first


@dataclass(frozen=True)
class Statement:
    """A statement as it is written: of a compound one (`for`, `if`, `with`, a nested `def`) the head."""

    line: int
    end_line: int
    names: tuple[str, ...]
    code: str
    letters: str | None
    body: range | None = None  # lines of a compound statement's body
    kind: str = ""  # name of the syntax node: "Assign", "For", ...


@dataclass(frozen=True)
class Function:
    """A function as it is written, with its statements by the lines that they cover."""

    name: str
    line: int  # of `def`
    end_line: int
    explanation: str  # the first sentence of its docstring, or of the comment that it opens with
    statements: dict[int, Statement]


@dataclass(frozen=True)
class Source:
    """A source file: its text and its functions by qualified name."""

    file: Path
    lines: tuple[str, ...]
    functions: dict[str, Function]


class LineRecorder:
    """Calls `on_line` for every statement that finishes in a function of `files`, while the context lasts.

    What `on_line` itself calls is not recorded. What it raises ends the traced code, as any exception there would.
    """

    def __init__(self, files: Collection[Path], on_line: Callable[[Line], None]):
        self.sources = {str(Path(file)): read_source(Path(file)) for file in files}
        self.on_line = on_line
        self.frames: dict[FrameType, _Running] = {}
        self.num_calls = 0
        self._previous: Any = None

    def __enter__(self) -> "LineRecorder":
        self._previous = sys.gettrace()
        sys.settrace(self._on_call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._previous)
        self.frames.clear()

    def _on_call(self, frame: FrameType, event: str, _: Any) -> Callable | None:
        source = self.sources.get(frame.f_code.co_filename)
        function = source.functions.get(frame.f_code.co_qualname) if source else None
        if source is None or function is None:  # another file, a comprehension, a lambda, the module itself
            return None
        if frame not in self.frames:  # a generator is called again each time it goes on
            self.frames[frame] = _Running(self.num_calls, source.file, function, first_offsets(frame.f_code))
            self.num_calls += 1
        return self._on_event

    def _on_event(self, frame: FrameType, event: str, argument: Any) -> Callable:
        running = self.frames.get(frame)
        if running is None:  # begun under another recorder
            return self._on_event
        if event == "line":
            statement = running.function.statements.get(frame.f_lineno)
            if statement is not running.statement or frame.f_lasti == running.start_of(statement):
                self._finish(frame, running, statement)
                running.statement = statement
        elif event == "exception":
            # that a loop finds no further item is an exception too, and ends no statement
            if not instruction_of(frame).startswith(("FOR_ITER", "SEND")):
                running.statement = None
        elif event == "return":
            instruction = instruction_of(frame)
            if instruction.startswith("RETURN"):
                self._finish(frame, running, None, {RETURN: argument})
            if not instruction.startswith(("YIELD", "RESUME")):  # returned, or left by an exception (3.13 waits behind a yield)
                del self.frames[frame]
        return self._on_event

    def _finish(self, frame: FrameType, running: "_Running", following: Statement | None, returned: dict | None = None) -> None:
        statement = running.statement
        if statement is None:
            return
        enters = following is not None and statement.body is not None and following.line in statement.body
        if statement.kind in ("For", "AsyncFor", "With", "AsyncWith") and not enters:
            return  # a loop that found no further item; a `with` that is being left
        names, callers = frame.f_locals, tuple(self._callers(frame))
        values = {name: names[name] for name in statement.names if name in names}
        if returned and statement.kind == "Return":
            values |= returned
        self.on_line(
            Line(
                file=running.file,
                function=running.function.name,
                line=statement.line,
                end_line=statement.end_line,
                code=statement.code,
                depth=len(callers),
                frame_self=names.get("self"),
                values=values,
                letters=statement.letters,
                taken=enters if statement.kind in ("If", "While") else None,
                call=running.number,
                callers=callers,
            )
        )

    def _callers(self, frame: FrameType) -> list[Call]:
        callers, caller = [], frame.f_back
        while caller:
            if running := self.frames.get(caller):
                line = running.statement.line if running.statement else caller.f_lineno
                callers.append(Call(running.number, running.function.name, line, caller.f_locals.get("self")))
            caller = caller.f_back
        return callers[::-1]


@dataclass
class _Running:
    """A frame of a recorded function: where it is."""

    number: int
    file: Path
    function: Function
    offsets: dict[int, int]
    statement: Statement | None = None

    def start_of(self, statement: Statement | None) -> int | None:
        """The first instruction of a statement. Going there begins it again, which a loop inside it does not."""
        if statement is None:
            return None
        return min((self.offsets[n] for n in range(statement.line, statement.end_line + 1) if n in self.offsets), default=None)


def instruction_of(frame: FrameType) -> str:
    """The name of the instruction at which a frame is."""
    return dis.opname[frame.f_code.co_code[frame.f_lasti]]


@cache
def first_offsets(code: CodeType) -> dict[int, int]:
    """Line -> its first instruction."""
    offsets: dict[int, int] = {}
    for start, _, line in code.co_lines():
        if line is not None and (line not in offsets or start < offsets[line]):
            offsets[line] = start
    return offsets


# -- reading the source ------------------------------------------------------------------------------------------------------


@cache
def read_source(file: Path) -> Source:
    """The statements of a Python file, function by function."""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    comments = _comments(text)
    functions = {f.name: f for f in _functions(ast.parse(text), (), "", lines, comments)}
    return Source(file, tuple(lines), functions)


def _comments(text: str) -> dict[int, str]:
    """Line -> the comment on it."""
    tokens = tokenize.generate_tokens(iter(text.splitlines(keepends=True)).__next__)
    return {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}


def _functions(
    node: ast.AST, path: tuple[str, ...], class_doc: str, lines: list[str], comments: dict[int, str]
) -> Iterator[Function]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            name = ".".join([*path, child.name])
            statements: dict[int, Statement] = {}
            for statement in _statements(child.body, lines, comments):
                statements.update(dict.fromkeys(range(statement.line, statement.end_line + 1), statement))
            yield Function(
                name, child.lineno, child.end_lineno or child.lineno, _explanation(child, class_doc, comments), statements
            )
            yield from _functions(child, (*path, child.name, "<locals>"), "", lines, comments)
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, (*path, child.name), ast.get_docstring(child) or "", lines, comments)
        else:
            yield from _functions(child, path, class_doc, lines, comments)


def _statements(body: list[ast.stmt], lines: list[str], comments: dict[int, str]) -> Iterator[Statement]:
    for node in body:
        parts = [part for name in BODIES for part in getattr(node, name, [])]
        handlers = [part for handler in getattr(node, "handlers", []) for part in handler.body]
        cases = [part for case in getattr(node, "cases", []) for part in case.body]
        inner = parts + handlers + cases
        is_definition = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if not isinstance(node, ast.Try | ast.TryStar):  # `try:` does nothing itself
            yield _statement(node, inner, lines, comments)
        if not is_definition:  # a nested function is listed by itself
            yield from _statements(inner, lines, comments)


BODIES = ("body", "orelse", "finalbody")


def _statement(node: ast.stmt, inner: list[ast.stmt], lines: list[str], comments: dict[int, str]) -> Statement:
    end = node.end_lineno or node.lineno
    body = None
    if inner:
        head = [child for child in ast.iter_child_nodes(node) if child not in inner and hasattr(child, "end_lineno")]
        end = max([node.lineno, *(part.end_lineno or 0 for part in head if isinstance(part, ast.expr))])
        for item in getattr(node, "items", []):  # of a `with`
            end = max(end, (item.optional_vars or item.context_expr).end_lineno)
        first_body = getattr(node, "body", None)
        if first_body:
            body = range(first_body[0].lineno, (first_body[-1].end_lineno or first_body[-1].lineno) + 1)
    code = textwrap.dedent("\n".join(lines[node.lineno - 1 : end]))
    shape = SHAPE_COMMENT.match(comments.get(end, ""))
    return Statement(
        line=node.lineno,
        end_line=end,
        names=tuple(dict.fromkeys(_assigned(node))),
        code=code,
        letters=shape[1] if shape else None,
        body=body,
        kind=type(node).__name__,
    )


def _assigned(node: ast.stmt) -> Iterator[str]:
    """Names that the statement (of a compound one, its head) assigns or changes in place."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
        return
    targets: list[ast.AST] = []
    if isinstance(node, ast.Assign):
        targets = [*node.targets, node.value]
    elif isinstance(node, ast.AugAssign | ast.AnnAssign):
        targets = [node.target, *([node.value] if node.value else [])]
    elif isinstance(node, ast.For | ast.AsyncFor):
        targets = [node.target, node.iter]
    elif isinstance(node, ast.With | ast.AsyncWith):
        targets = [part for item in node.items for part in (item.optional_vars, item.context_expr) if part]
    elif isinstance(node, ast.If | ast.While):
        targets = [node.test]
    elif isinstance(node, ast.Expr):
        targets = [node.value]
        yield from _changed_in_place(node.value)
    elif isinstance(node, ast.Return) and node.value:
        targets = [node.value]
    for target in targets:
        yield from (name.id for name in _names(target) if isinstance(name.ctx, ast.Store))


def _names(node: ast.AST) -> Iterator[ast.Name]:
    """Names in an expression, those of a comprehension or a lambda inside it aside: they are its own."""
    if isinstance(node, ast.Name):
        yield node
    if not isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        for child in ast.iter_child_nodes(node):
            yield from _names(child)


def _changed_in_place(node: ast.AST) -> Iterator[str]:
    """`square.mul_(a).addcmul_(b, c)` changes `square`."""
    in_place = False
    while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        name = node.func.attr
        in_place = in_place or (name.endswith("_") and not name.startswith("_"))
        node = node.func.value
    if in_place and isinstance(node, ast.Name):
        yield node.id


def _explanation(node: ast.FunctionDef | ast.AsyncFunctionDef, class_doc: str, comments: dict[int, str]) -> str:
    """What the function says of itself, in one sentence: its docstring, the comment it opens with, or its class's docstring."""
    doc = ast.get_docstring(node)
    if not doc:
        comment = [comments[n] for n in range(node.lineno + 1, node.body[0].lineno) if n in comments]
        doc = " ".join(line.lstrip("# ") for line in comment) or (class_doc if node.name in ("forward", "__call__") else "")
        doc = doc[:1].upper() + doc[1:]
    return first_sentence(doc)


def first_sentence(text: str) -> str:
    """The first sentence of a text's first paragraph, on one line."""
    paragraph = " ".join(text.split("\n\n")[0].split())
    match = re.match(r".*?[.](?= [A-Z])", paragraph)
    return (match[0] if match else paragraph).strip()
