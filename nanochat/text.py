"""Text for people: numbers that people read, and Markdown into which foreign text can be put without harm.

Foreign text is whatever a model, a user or another computer wrote: samples, titles, names of tasks and hosts, messages.

Covered: it stays text. Nothing in it becomes HTML, a link, an emphasis, a table cell or the end of a code block, and control
    characters (terminal escapes, reversed writing, zero-width signs) are shown instead of obeyed.
Not covered: what the words say.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence

NOTHING = "–"  # a table's cell when there is no number


class Markdown(str):
    """A string that is Markdown already; everything else is foreign text and gets escaped."""


# -- numbers -----------------------------------------------------------------------------------------------------------------


def count(value: float | None) -> str:
    """A number of things, three digits: 9345 -> 9,345; 1_830_000 -> 1.83 M; 11_219_763_200 -> 11.2 B; 3.92e19 -> 3.92e19."""
    if value is None:
        return NOTHING
    if abs(value) < 10_000:
        return f"{value:,.0f}"
    if abs(value) >= 999.5e12:
        return f"{value:.2e}".replace("e+", "e")
    unit, size = next((unit, size) for unit, size in UNITS if abs(value) < 999.5 * size)
    return f"{three_digits(value / size)} {unit}"


UNITS = (("K", 1e3), ("M", 1e6), ("B", 1e9), ("T", 1e12))


def three_digits(value: float) -> str:
    decimals = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{decimals}f}"


def duration(seconds: float | None) -> str:
    """12.3 -> 12.3 s; 245 -> 4 min 05 s; 25_980 -> 7 h 13 min; 180_000 -> 2 d 02 h."""
    if seconds is None:
        return NOTHING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if seconds < 3599.5:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02d} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"


def memory(num_bytes: float | None) -> str:
    """Bytes of memory: 80_960_000_000 -> 75.4 GiB."""
    if num_bytes is None:
        return NOTHING
    unit, size = ("GiB", 2**30) if num_bytes >= 2**30 else ("MiB", 2**20)
    return f"{three_digits(num_bytes / size)} {unit}"


def score(value: float | None, digits: int = 4) -> str:
    """A score, a loss or a rate with a fixed number of decimals, so that a column lines up: 0.2219."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    if value is None:
        return NOTHING
    return "under 0.1 %" if 0 < value < 0.0005 else f"{100 * value:.1f} %"


def exact(value: int | None) -> str:
    """A count to the last digit: 21,400."""
    return NOTHING if value is None else f"{value:,}"


def moment(iso: str | None) -> str:
    """A time of a record, which is in UTC, to the second: 2026-11-22 10:00:07."""
    return NOTHING if iso is None else str(iso)[:19].replace("T", " ")


# -- foreign text ------------------------------------------------------------------------------------------------------------


def visible(text: str, keep: str = "") -> str:
    """Show each control character by a sign for it (ESC as `␛`, U+202E as `\\u{202E}`), those in `keep` excepted."""
    return "".join(sign(c) if c not in keep and unicodedata.category(c) in UNSEEN else c for c in text)


# control, format (bidirectional, zero-width), lone surrogates, line and paragraph separators
UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


SHOWN_CHARACTERS, SHOWN_NAMES = 80, 30


def shown(value: object) -> str:
    """Foreign data for a message, whatever it is: on one line, harmless on a terminal, and short."""
    try:
        text = visible(repr(value)[: SHOWN_CHARACTERS + 1])
    except (RecursionError, ValueError):  # nested too deep; an integer too long to print
        return f"a {type(value).__name__}"
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."


def listed(names: Sequence[str]) -> str:
    """Foreign names for a message: the first thirty, each short and harmless on a terminal."""
    first = [visible(name[:SHOWN_CHARACTERS]) for name in names[:SHOWN_NAMES]]
    return ", ".join(first) + (f" and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else "")


def sign(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"\\u{{{code:04X}}}"


def inline(text: object) -> Markdown:
    """Foreign text for a sentence or a table cell: one line, with every sign that Markdown or HTML would read escaped."""
    if isinstance(text, Markdown):
        return text
    line = re.sub(r"\s+", " ", visible(str(text), keep="\n\t\r")).strip()
    line = re.sub(r"([\\`*\[\]|~$])", r"\\\1", line)
    line = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", line)  # base_train needs no escape
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return Markdown(line.replace("://", "&#58;//").replace("www.", "www&#46;"))  # else some renderers make a link of it


def code(text: object) -> Markdown:
    """Short text in code type, as it is; what could break out of it (backticks, bars, several lines) as `inline`."""
    text = str(text)
    is_plain = text.strip() == text != "" and text.isprintable() and not set("`|") & set(text)
    return Markdown(f"`{text}`") if is_plain else inline(text)


def fenced(text: str, language: str = "text") -> Markdown:
    """Foreign text as a code block, with a fence longer than any run of backticks in it."""
    text = visible(text, keep="\n\t")
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markdown(f"{fence}{language}\n{text}\n{fence}")


def fenced_json(value: object) -> Markdown:
    return fenced(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False), "json")


# -- tables ------------------------------------------------------------------------------------------------------------------


def table(header: Sequence[object], rows: Iterable[Sequence[object]], left: int = 1) -> Markdown:
    """A table whose first `left` columns are aligned to the left (names), the others to the right (numbers)."""
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    lines = [header, [Markdown(r) for r in rule], *rows]
    return Markdown("\n".join("| " + " | ".join(inline(cell) for cell in line) + " |" for line in lines))


# -- small parts -------------------------------------------------------------------------------------------------------------


def bullets(lines: Iterable[str]) -> Markdown:
    return Markdown("\n".join(f"- {inline(line)}" for line in lines))


def picture(description: str, file: str) -> Markdown:
    return Markdown(f"![{description}]({file})")


def given(value: object) -> str:
    return NOTHING if value is None else str(value)


def setting(value: object) -> Markdown | str:
    """A value of the configuration as one writes it there."""
    if value is None:
        return NOTHING
    return code(value if isinstance(value, str) else json.dumps(value))
