"""What a machine can do for a training, found out by trying: GPUs, attention back ends, products, exchanges between ranks.

Used by rule gpu_check, which runs it as a training is run: the same launcher, as many ranks, without network. Everything is
tried on its own, and what fails becomes a problem in words, so that one job tells all there is to mend.
"""

import os
import platform
import re
import shutil
import subprocess
import time
import warnings
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from nanochat.distributed import Ranks, choose_dtype
from nanochat.errors import UserError
from nanochat.jobs import offline
from nanochat.planning import hardware
from nanochat.sandbox import probe

BACK_ENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
SECONDS_A_MEASUREMENT = {"cuda": 0.5, "cpu": 0.2}
PRODUCT_SIZE = {"cuda": 8192, "cpu": 1024}
ATTENTION_ROWS = {"cuda": 4, "cpu": 1}
EXCHANGED_BYTES = {"cuda": 2**28, "cpu": 2**24}  # large, as gradients are: the bandwidth counts, not the start
EXCHANGE_TIMEOUT = timedelta(seconds=120)
LOW_SHARE = 0.5  # of the peak; large products reach 0.6 to 0.9 of it on a GPU that is well and alone
SLOW_SHARE = 0.8  # of the other GPUs' rate

DRIVER = Path("/proc/driver/nvidia/version")

Facts = dict[str, Any]


def versions() -> Facts:
    found: Facts = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    if torch.cuda.is_available():
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
        found["cudnn"] = torch.backends.cudnn.version()
    return {**found, "driver": driver_version()}


def driver_version() -> str | None:
    """NVIDIA's kernel module; None if there is none, or this is a container that hides it."""
    try:
        # NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build ...
        if found := re.search(r"\b\d+\.\d[\d.]*", DRIVER.read_text()):
            return found[0]
    except OSError:
        pass
    try:
        command = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None


# -- which device ------------------------------------------------------------------------------------------------------------


def are_gpus_meant(device: str) -> bool:
    """Whether trainings here are to run on GPUs: asked for, or there are some, or the scheduler gave some to this job."""
    if device != "auto":
        return device == "cuda"
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "") not in ("", "-1", "NoDevFiles")
    return torch.cuda.is_available() or given or driver_version() is not None


def gpu_problem(num_ranks: int) -> str | None:
    """Why PyTorch cannot give every rank a GPU; None if it can."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        is_available = torch.cuda.is_available()
    words = " ".join(str(warning.message) for warning in said)
    other = "Install another PyTorch: make venv TORCH_INDEX=... with the address for a CUDA version that the driver knows"
    if torch.version.cuda is None:
        return f"this PyTorch ({torch.__version__}) is a build for CPUs, and GPUs are meant to be used. {other}"
    if not is_available and "too old" in words:
        return f"the driver ({driver_version()}) is too old for a PyTorch built for CUDA {torch.version.cuda}. {other}"
    if not is_available:
        return f"PyTorch sees no GPU here: {words or 'no driver, or the job was given none (--gres)'}"
    if torch.cuda.device_count() < num_ranks:
        return (
            f"{num_ranks} ranks were started, and PyTorch sees {torch.cuda.device_count()} of the GPUs that they need, one "
            "each. Make the resources agree in the profile: ranks and gres"
        )
    return None


def device_of(rank: int, *, on_gpu: bool) -> torch.device:
    return torch.device("cuda", rank) if on_gpu else torch.device("cpu")


def describe(device: torch.device) -> Facts:
    """Name, memory and what the table of devices says of it."""
    if device.type == "cpu":
        return {"name": "cpu", "threads": torch.get_num_threads()}
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    known = hardware.find(properties.name)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_total": total,
        "memory_free": free,
        "has_bf16": torch.cuda.is_bf16_supported(including_emulation=False),
        "peak_flops": known.peak_flops if known else None,
    }


# -- measurements ------------------------------------------------------------------------------------------------------------


def product_rate(device: torch.device) -> float:
    """FLOP/s of large matrix products, in bfloat16 where the device has it."""
    size, dtype = PRODUCT_SIZE[device.type], choose_dtype("auto", device)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / seconds_of(lambda: a @ b, device)


def attention(model: Mapping[str, Any], device: torch.device) -> Facts:
    """Milliseconds of each attention back end at the model's shapes, forward and backward; None where it does not run."""
    num_heads, head_dim = model["n_head"], model["n_embd"] // model["n_head"]
    rows, num_kv_heads = ATTENTION_ROWS[device.type], model["n_kv_head"]
    dtype = choose_dtype("auto", device)

    def draw(heads: int) -> Tensor:
        return torch.randn(rows, heads, model["sequence_len"], head_dim, device=device, dtype=dtype, requires_grad=True)

    q, k, v = draw(num_heads), draw(num_kv_heads), draw(num_kv_heads)  # (B, H, T, D), (B, G, T, D), (B, G, T, D)
    is_grouped = num_heads != num_kv_heads

    def both_ways() -> None:
        F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=is_grouped).sum().backward()

    times: dict[str, float | None] = {}
    for name, back_end in BACK_ENDS.items():
        try:
            with warnings.catch_warnings(), sdpa_kernel([back_end]):
                warnings.simplefilter("ignore")  # PyTorch tells at length why a back end is not possible
                times[name] = 1000 * seconds_of(both_ways, device)
        except RuntimeError:
            times[name] = None
    shape = {"rows": rows, "heads": num_heads, "head_dim": head_dim, "tokens": model["sequence_len"], "dtype": str(dtype)}
    return {"chosen": chosen_back_end(q, k, v, is_grouped), "milliseconds": times, "shape": shape}


def chosen_back_end(q: Tensor, k: Tensor, v: Tensor, is_grouped: bool) -> str | None:
    """The one that PyTorch takes by itself; None if this version does not tell."""
    choose = getattr(torch, "_fused_sdp_choice", None)
    if choose is None:
        return None
    number = choose(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=True, enable_gqa=is_grouped)
    return next((name for name, back_end in BACK_ENDS.items() if back_end.value == number), None)


def exchange(ranks: Ranks, device: torch.device) -> Facts | None:
    """Bandwidth of summing a large tensor over all ranks, counted as NCCL's own tests do; None for a single rank."""
    if ranks.world_size == 1:
        return None
    backend = "nccl" if device.type == "cuda" else "gloo"
    group = dist.new_group(backend=backend, timeout=EXCHANGE_TIMEOUT)
    ones = torch.ones(EXCHANGED_BYTES[device.type] // 4, device=device)
    dist.all_reduce(ones, group=group)
    is_right = bool((ones == ranks.world_size).all())
    # a fixed number of times: all ranks must agree on it
    seconds = seconds_of(lambda: dist.all_reduce(ones, group=group), device, repeat=5)
    num_bytes = ones.numel() * 4
    bandwidth = num_bytes / seconds * 2 * (ranks.world_size - 1) / ranks.world_size
    return {"backend": backend, "bytes": num_bytes, "seconds": seconds, "bytes_per_second": bandwidth, "is_right": is_right}


def seconds_of(work: Callable[[], Any], device: torch.device, repeat: int | None = None) -> float:
    """Mean time of doing it, after doing it once for nothing."""

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    work()
    finish()
    began, count = time.perf_counter(), 0
    while count != repeat if repeat else count < 3 or time.perf_counter() - began < SECONDS_A_MEASUREMENT[device.type]:
        work()
        count += 1
        if count % 8 == 0:
            finish()  # or the loop would queue up work for minutes while the clock runs
    finish()
    return (time.perf_counter() - began) / count


# -- surroundings ------------------------------------------------------------------------------------------------------------


def network(num_ranks: int) -> Facts:
    """How this process is kept from the network, and the ways out that it sees all the same."""
    method = os.environ.get(offline.VARIABLE)
    words = offline.DESCRIPTIONS.get(method or "")
    if words is None:
        words = offline.jail(ranks=num_ranks).description if method else "not enforced: not started by launch.py"
    return {"method": method, "description": words, "routes": routes()}


def routes() -> list[str]:
    """Interfaces over which this process could reach others; Linux only, empty elsewhere."""
    try:
        lines = Path("/proc/self/net/route").read_text().splitlines()[1:]
    except OSError:
        return []
    return sorted({line.split()[0] for line in lines if line.split()})


def sandbox() -> Facts:
    """How well programs that a model writes are closed in here."""
    try:
        offer = probe()
    except UserError as error:
        return {"tier": None, "description": str(error)}
    return {"tier": offer.tier, "description": str(offer)}


def disk(folder: Path) -> Facts:
    usage = shutil.disk_usage(folder)
    return {"path": str(folder), "free": usage.free, "total": usage.total}


# -- judgement ---------------------------------------------------------------------------------------------------------------


def problems_of(found: Facts) -> list[str]:
    """What a training needs and does not have here."""
    problems = [found["gpu_problem"]] if found["gpu_problem"] else []
    for rank, device in enumerate(found["devices"]):
        if device.get("has_bf16") is False:
            problems.append(f"GPU {rank} ({device['name']}) has no bfloat16; this needs an A100 or a later GPU")
        if device.get("error"):
            problems.append(f"rank {rank} ({device['name']}): {device['error']}")
    if found.get("attention_error"):
        problems.append(f"attention: {found['attention_error']}")
    if found.get("exchange_error"):
        problems.append(f"ranks cannot exchange gradients: {found['exchange_error']}")
    elif found["exchange"] and not found["exchange"]["is_right"]:
        problems.append("ranks exchange wrong numbers: the sum of ones is not their number")
    if found["network"]["method"] == "namespace" and found["network"]["routes"]:
        problems.append(f"the jail leaks: there are routes over {', '.join(found['network']['routes'])}")
    return problems


def warnings_of(found: Facts) -> list[str]:
    """What works, and not as it should."""
    said = []
    rates = sorted(device["flops_per_second"] for device in found["devices"] if device.get("flops_per_second"))
    for rank, device in enumerate(found["devices"]):
        rate, peak = device.get("flops_per_second"), device.get("peak_flops")
        if rate and peak and rate < LOW_SHARE * peak:
            said.append(f"GPU {rank} reaches {rate / peak:.0%} of its peak: somebody else on it, too hot, or throttled?")
        if rate and device["name"] != "cpu" and rate < SLOW_SHARE * rates[len(rates) // 2]:
            said.append(f"GPU {rank} is slower than the others, and all wait for the slowest")
    if found["on_gpu"] and found["attention"] and found["attention"]["chosen"] == "math":
        said.append("attention runs without a fused kernel: slow, and large in memory")
    if found["network"]["method"] not in offline.DESCRIPTIONS:
        said.append("outside connections are not refused by the kernel here")
    return said
