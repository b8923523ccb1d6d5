"""The chat model's tool: work out a small Python expression without eval().

    calculate("12/60")                    ->  "0.2"
    calculate("1,200 * 3")                ->  "3600"
    calculate("'strawberry'.count('r')")  ->  "3"

A model wrote the expression, so anything may stand there. Allowed are numbers, + - * / // % **, parentheses and
.count() of one text literal in another; everything else gives None, and the model then gets no answer from the tool.
Results read as Python prints them. No expression takes longer than a millisecond or so: length, size of every
intermediate number and exponents are bounded before anything is computed.
"""

import ast
import operator
import re
from collections.abc import Callable

Number = int | float

MAX_CHARACTERS = 256
MAX_MAGNITUDE = 10**100  # of every number on the way; more digits than a model can use
MAX_EXPONENT = 1_000

OPERATORS: dict[type, Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
SIGNS: dict[type, Callable[[Number], Number]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}

QUOTED = re.compile(r"('[^']*'|\"[^\"]*\")")
THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:,\d{3})+(?!\d)")
# What may stand outside the quotes. It also keeps the parser from warning about texts such as "1if".
PLAIN = re.compile(r"(?:[\d\s+\-*/%().]|(?<=\d)[eE](?=[+-]?\d)|\.count(?=\())*")


class NotAllowed(Exception):
    """The expression asks for something that the calculator does not do."""


def calculate(expression: str) -> str | None:
    """The result as Python would print it, or None if the expression is wrong or not allowed."""
    if len(expression) > MAX_CHARACTERS or "\\" in expression:
        return None
    try:
        tree = ast.parse(without_thousands_commas(expression.strip()), mode="eval")
        return str(number(tree.body))
    except (NotAllowed, ArithmeticError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def without_thousands_commas(expression: str) -> str:
    """Take the commas out of 1,234,567 but not out of quoted text. Refuses characters that no expression needs."""
    pieces = QUOTED.split(expression)
    for i in range(0, len(pieces), 2):  # every second piece is quoted
        pieces[i] = THOUSANDS.sub(lambda match: match.group().replace(",", ""), pieces[i])
        if not PLAIN.fullmatch(pieces[i]):
            raise NotAllowed(pieces[i])
    return "".join(pieces)


def number(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value=int() | float() as value):
            return bounded(value)
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in SIGNS:
            return SIGNS[type(sign)](number(operand))
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return bounded(power(number(left), number(right)))
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in OPERATORS:
            return bounded(OPERATORS[type(sign)](number(left), number(right)))
        case ast.Call(
            func=ast.Attribute(value=ast.Constant(value=str() as text), attr="count"),
            args=[ast.Constant(value=str() as part)],
            keywords=[],
        ):
            return text.count(part)
    raise NotAllowed(type(node).__name__)


def power(base: Number, exponent: Number) -> Number | complex:
    # the bound on the magnitude cannot wait for the result: 9**9**9 has 370 million digits
    if abs(exponent) > MAX_EXPONENT or (isinstance(base, int) and base.bit_length() * exponent > MAX_EXPONENT):
        raise NotAllowed("power")
    return base**exponent


def bounded(value: Number | complex) -> Number:
    """Refuses what is too large, not finite, complex (a root of a negative number) or a truth value."""
    if isinstance(value, complex | bool) or not abs(value) <= MAX_MAGNITUDE:
        raise NotAllowed("magnitude")
    return value
