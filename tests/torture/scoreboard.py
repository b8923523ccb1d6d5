"""The scoreboard: docs/reliability.json, and the table in docs/reliability.md that is made from it."""

import json
import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nanochat.manifest import as_json
from nanochat.stage import code_revision, versions
from torture.board import PARTS, Row

ROOT = Path(__file__).resolve().parent.parent.parent
BOARD = ROOT / "docs" / "reliability.json"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- made by make torture: begin -->", "<!-- made by make torture: end -->"


def entry(row: Row, *, size: int, seed: int, seconds: float) -> dict[str, Any]:
    """A row as the JSON file has it: with the command that makes it anew, and what it ran on."""
    return {
        "part": row.part,
        "promise": row.promise,
        "command": f"make torture N={size} ONLY={row.part} SEED={seed}",
        "trials": row.trials,
        "failures": row.failures,
        "is_control": row.is_control,
        "holds": row.holds,
        "examples": list(row.examples),
        "details": row.details,
        "part_seconds": round(seconds),
        "date": datetime.now(UTC).date().isoformat(),
        "code": code_revision(),
        "machine": {"cpu": cpu_model(), **versions()},
    }


def cpu_model() -> str:
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def table(entries: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line for a promise, controls by themselves."""
    lines = ["| promise | trials | broken | date | command |", "|---|---:|---:|---|---|"]
    lines += [line(found, found["failures"]) for found in entries if not found["is_control"]]
    lines += ["", "Negative controls, each with a mechanism taken away:", ""]
    lines += ["| control | trials | noticed | date | command |", "|---|---:|---:|---|---|"]
    lines += [line(found, found["failures"]) for found in entries if found["is_control"]]
    return "\n".join(lines)


def line(found: dict[str, Any], count: int) -> str:
    wrong = "" if found["holds"] else " **(does not hold)**"
    promise = found["promise"].replace("|", "\\|")
    return f"| {promise}{wrong} | {found['trials']:,} | {count:,} | {found['date']} | `{found['command']}` |"


def write(entries: Sequence[dict[str, Any]]) -> None:
    """Replace the rows of the parts that ran; those of other parts stay."""
    ran = {found["part"] for found in entries}
    board = [found for found in read() if found["part"] not in ran] + list(entries)
    board.sort(key=lambda found: list(PARTS).index(found["part"]))
    BOARD.write_text(as_json(board))
    PAGE.write_text(with_table(PAGE.read_text(), board))


def read() -> list[dict[str, Any]]:
    return json.loads(BOARD.read_text()) if BOARD.exists() else []


def with_table(page: str, board: Sequence[dict[str, Any]]) -> str:
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table(board)}\n{END}{after}"
