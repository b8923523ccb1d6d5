"""Check the machine that trainings get, in one short job: write check.json and check.txt, fail if something is missing."""

import argparse
import json
import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nanochat.distributed import Ranks, join_ranks
from nanochat.errors import UserError
from nanochat.jobs import machine_check
from nanochat.manifest import write_json
from nanochat.stage import run_program
from nanochat.storage import atomic_path

GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=json.loads, required=True, help="fields of GPTConfig, as JSON: its shapes are tried")
    parser.add_argument("--folder", type=Path, required=True, help="folder for check.json and check.txt")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    args = parser.parse_args()

    # over the CPU: the ranks can speak to one another whatever is wrong with the GPUs
    with join_ranks("cpu") as ranks:
        found = check(args.model, args.device, ranks)
        if ranks.is_main:
            publish(args.folder, found)
        ranks.wait()
    if ranks.is_main and found["problems"]:
        raise UserError("\n       ".join(found["problems"]))


def check(model: dict, device_kind: str, ranks: Ranks) -> dict[str, Any]:
    on_gpu = machine_check.are_gpus_meant(device_kind)
    gpu_problem = machine_check.gpu_problem(ranks.world_size) if on_gpu else None
    device = machine_check.device_of(ranks.rank, on_gpu=on_gpu)
    can_measure = ranks.from_main(gpu_problem) is None
    here: dict[str, Any] = {"name": "not to be had"}
    attention = attention_error = exchange = exchange_error = None
    if can_measure:
        here = machine_check.describe(device)
        here["flops_per_second"], here["error"] = attempt(lambda: machine_check.product_rate(device))
        if ranks.is_main:
            attention, attention_error = attempt(lambda: machine_check.attention(model, device))
    devices = ranks.gather_objects(here)
    if can_measure and not any(other["error"] for other in devices):  # a rank that is not well would keep the others waiting
        exchange, exchange_error = attempt(lambda: machine_check.exchange(ranks, device))
    found = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "versions": machine_check.versions(),
        "ranks": ranks.world_size,
        "on_gpu": on_gpu,
        "gpu_problem": gpu_problem,
        "devices": devices,
        "attention": attention,
        "attention_error": attention_error,
        "exchange": exchange,
        "exchange_error": exchange_error,
        "disk": machine_check.disk(Path.cwd()),
        "network": machine_check.network(ranks.world_size),
        "sandbox": machine_check.sandbox(),
    }
    return {**found, "problems": machine_check.problems_of(found), "warnings": machine_check.warnings_of(found)}


def attempt(measure: Callable[[], Any]) -> tuple[Any, str | None]:
    """What was measured, or what PyTorch said instead (it says everything by RuntimeError, out of memory too)."""
    try:
        return measure(), None
    except RuntimeError as error:
        return None, str(error).strip().splitlines()[0]


def publish(folder: Path, found: dict[str, Any]) -> None:
    text = "\n".join(lines_of(found)) + "\n"
    write_json(folder / "check.json", found)
    with atomic_path(folder / "check.txt") as temporary:
        temporary.write_text(text)
    print(text, flush=True)


# -- for people --------------------------------------------------------------------------------------------------------------


def lines_of(found: dict[str, Any]) -> list[str]:
    verdict = "something is missing" if found["problems"] else "all that a training needs is there"
    job = f", job {found['job']}" if found["job"] else ""
    disk = found["disk"]
    versions = {name: version for name, version in found["versions"].items() if version is not None}
    rows = [
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        *[(f"rank {rank}", device_words(device)) for rank, device in enumerate(found["devices"])],
        ("attention", attention_words(found["attention"])),
        ("all-reduce", exchange_words(found["exchange"], found["ranks"])),
        ("disk", f"{disk['free'] / GIB:,.0f} of {disk['total'] / GIB:,.0f} GiB free in {disk['path']}"),
        ("network", found["network"]["description"]),
        ("sandbox", found["sandbox"]["description"]),
        *[("warning", warning) for warning in found["warnings"]],
        *[("problem", problem) for problem in found["problems"]],
    ]
    title = f"gpu_check on {found['host']}{job}, {found['at']}: {verdict}"
    return [title, *(f"  {name:<11} {words}" for name, words in rows)]


def device_words(device: dict[str, Any]) -> str:
    words = [device["name"]]
    if "memory_total" in device:
        words.append(f"{device['memory_free'] / GIB:.1f} of {device['memory_total'] / GIB:.1f} GiB free")
    if rate := device.get("flops_per_second"):
        peak = device.get("peak_flops")
        share = f" ({rate / peak:.0%} of its peak)" if peak else ""
        words.append(f"products at {rate / 1e12:.3g} TFLOP/s{share}")
    return ", ".join(words)


def attention_words(attention: dict[str, Any] | None) -> str:
    if attention is None:
        return "not tried"
    times = attention["milliseconds"]
    shape = attention["shape"]
    what = f"{shape['rows']} x {shape['tokens']} tokens, {shape['heads']} heads of {shape['head_dim']}, forward and backward"
    listed = ", ".join(f"{name} {'-' if time is None else f'{time:.2f} ms'}" for name, time in times.items())
    return f"{attention['chosen'] or 'unknown'} is taken; {listed} ({what})"


def exchange_words(exchange: dict[str, Any] | None, ranks: int) -> str:
    if ranks == 1:
        return "one rank, nothing to exchange"
    if exchange is None:
        return "not tried"
    what = f"{exchange['backend']}, {exchange['bytes'] >> 20} MiB"
    return f"{exchange['bytes_per_second'] / 1e9:.3g} GB/s between {ranks} ranks ({what})"


if __name__ == "__main__":
    run_program(main)
