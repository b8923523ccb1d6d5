"""What `python -m nanochat.watch` prints: a table for each run, and lines under those stages that want to be looked at."""

import textwrap
from collections.abc import Mapping
from typing import Any

from nanochat.watching.files import plain

WIDTHS = {"stage": 19, "state": 11, "progress": 17, "loss": 6, "tokens/s": 8, "util": 4, "time": 8}  # 79 with the gaps
LEFT = ("stage", "state")
SHORTEST_NOTE = 24
BARS = "▁▂▃▄▅▆▇█"
COLOURS = {
    "finished": "32", "running": "36", "evaluating": "36", "queued": "33", "begun": "33", "stopped": "33", "died": "31",
    "failed": "31", "reused": "2", "not started": "2",
}  # fmt: skip
IN_DETAIL = ("queued", "running", "evaluating", "begun", "stopped", "died", "failed")


def render(seen: Mapping[str, Any], *, width: int = 80, colour: bool = False, bars: bool = True) -> list[str]:
    """The lines for a terminal of `width` columns (at least 80). Without `bars`, no curve of the loss."""
    lines = []
    for run in seen["runs"]:
        lines += [*run_lines(run, width=max(80, width), colour=colour, bars=bars), ""]
    if not seen["runs"]:
        lines += [f"Nothing has been started in {seen['results']}/ yet.", ""]
    for job in seen["other_jobs"]:
        what = job["comment"].removeprefix("rule_") or "no comment"
        reason = f", {job['reason']}" if job["reason"] else ""
        lines.append(f"job {job['job']} ({what}): {job['state'].lower()}{reason}")
    if problem := seen["slurm"]["problem"]:
        lines.append(painted(f"SLURM's queue is not known: {problem}", "2", colour))
    return [line.rstrip() for line in lines]


def run_lines(run: Mapping[str, Any], *, width: int, colour: bool, bars: bool) -> list[str]:
    stages = run["stages"]
    num_done = sum(stage["state"] in ("finished", "reused") for stage in stages)
    lines = [painted(f"{plain(run['run'])}: {num_done} of {len(stages)} stages finished", "1", colour)]
    note_width = width - sum(WIDTHS.values()) - len(WIDTHS)
    has_notes = note_width >= SHORTEST_NOTE
    header = row({name: name for name in WIDTHS} | {"note": "note"}, note_width if has_notes else 0)
    lines.append(painted(header, "2", colour))
    for stage in stages:
        cells = cells_of(stage)
        line = row(cells, note_width if has_notes else 0)
        start = WIDTHS["stage"] + 1
        end = start + WIDTHS["state"]
        lines.append(line[:start] + painted(line[start:end], COLOURS.get(stage["state"], "0"), colour) + line[end:])
        if stage["state"] in IN_DETAIL:
            lines += details(stage, width=width, bars=bars)
    return lines


def row(cells: Mapping[str, str], note_width: int) -> str:
    columns = [f"{cells[name]:<{size}}" if name in LEFT else f"{cells[name]:>{size}}" for name, size in WIDTHS.items()]
    if note_width:
        columns.append(textwrap.shorten(cells["note"], note_width, placeholder="..."))
    return " ".join(columns).rstrip()


def cells_of(stage: Mapping[str, Any]) -> dict[str, str]:
    is_over = stage["state"] in ("finished", "failed", "died", "stopped")
    seconds = stage["seconds"] if is_over else stage["seconds_left"]
    note = stage["message"] if stage["state"] == "finished" else ""
    if stage["state"] == "reused":
        note = f"from {stage['reused_from'] or 'another run'}"
    return {
        "stage": stage["stage"],
        "state": stage["state"],
        "progress": progress(stage["step"], stage["num_steps"]),
        "loss": "" if stage["loss"] is None else fixed(stage["loss"], 6),
        "tokens/s": "" if stage["tokens_per_second"] is None else big(stage["tokens_per_second"]),
        "util": "" if stage["utilisation"] is None else f"{stage['utilisation']:.0%}",
        "time": clock(seconds) if seconds is None or is_over else f"-{clock(seconds)}",
        "note": note,
    }


def details(stage: Mapping[str, Any], *, width: int, bars: bool) -> list[str]:
    """Where it runs, what is the matter with it, its losses, its log."""
    where = []
    if stage["job"] and stage["state"] != "queued":
        where.append(f"job {stage['job']}")
    if stage["host"]:
        where.append(f"on {stage['host']}")
    if stage["device"]:
        where.append(f"{stage['num_devices'] or 1} x {stage['device']}")
    if stage["attempts"] and stage["attempts"] > 1:
        where.append(f"attempt {stage['attempts']}")
    if stage["job_seconds_left"] is not None and stage["state"] in ("running", "evaluating"):
        where.append(f"{clock(stage['job_seconds_left'])} until this job's wall")
    curve = sparkline(stage["losses"]) if bars else ""
    texts = [
        ", ".join(where),
        stage["message"],
        f"loss {curve}  {stage['losses'][0]:.3f} to {stage['losses'][-1]:.3f}" if curve else "",
        stage["last_error"] or "",
        f"log {stage['log']}" if stage["log"] else "",
    ]
    lines: list[str] = []
    for words in texts:
        # a path stays in one piece, to be copied
        lines += textwrap.wrap(
            plain(words), width, initial_indent="    ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
        )
    return lines


# -- small words -------------------------------------------------------------------------------------------------------------


def progress(step: int | None, num_steps: int | None) -> str:
    if step is None:
        return ""
    if not num_steps:
        return f"{step:,}"
    share = f" {step * 100 // num_steps}%" if step < num_steps else ""
    return f"{step:,}/{num_steps:,}{share}"


def clock(seconds: float | None) -> str:
    """45 s, 12:05, 7:13:05, 25h 10m, 3d 04h"""
    if seconds is None:
        return ""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02}"
    if whole < 10 * 3600:
        return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
    if whole < 48 * 3600:
        return f"{whole // 3600}h {whole // 60 % 60:02}m"
    return f"{whole // 86400}d {whole // 3600 % 24:02}h"


def fixed(number: float, width: int) -> str:
    shown = f"{number:.4f}"
    return shown if len(shown) <= width else f"{number:.4g}"[:width]


def big(number: float) -> str:
    return f"{number:,.0f}" if number < 1e7 else f"{number / 1e6:,.1f}M"


def sparkline(values: list[float]) -> str:
    """The numbers as a row of bars, the lowest as the lowest bar."""
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    return "".join(BARS[round((value - low) / ((high - low) or 1) * (len(BARS) - 1))] for value in values)


def painted(text: str, code: str, colour: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if colour and text.strip() else text
