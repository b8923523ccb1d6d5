"""The processes that train together: their ranks, their device, and the few things they say to one another.

The only module that reads RANK, WORLD_SIZE and LOCAL_RANK. One process is the case where every exchange is a no-op.
"""

import functools
import logging
import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from nanochat.errors import UserError

# how long ranks wait for one. The main rank hashes its inputs (22 GB) and commits while the others wait for it, on storage that
# has slow days; NCCL's own 10 minutes would end the training. A rank that dies is noticed by torchrun at once, not by this
PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class Ranks:
    """This process among all: rank of world_size, working on `device`."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def record(self) -> dict[str, str | int]:
        """The machine, for the record of a stage."""
        is_cuda = self.device.type == "cuda"
        return {"device": torch.cuda.get_device_name(self.device) if is_cuda else "cpu", "num_devices": self.world_size}

    @property
    def hardware(self) -> str:
        """What multiplies, as far as it decides the last bits: the GPU's name, or the CPU's and its widest instructions."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"{cpu_name()}, {torch.backends.cpu.get_cpu_capability()}"

    def memory_bytes(self) -> int | None:
        """Memory of this rank's GPU; None on a CPU."""
        return torch.cuda.get_device_properties(self.device).total_memory if self.device.type == "cuda" else None

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all ranks."""
        if self.world_size > 1:
            for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
                work.wait()

    def share(self, length: int) -> slice:
        """This rank's block of `length` things: all blocks are as long, rounded up, so the last may be short or empty."""
        block = -(-length // self.world_size)
        return slice(min(self.rank * block, length), min((self.rank + 1) * block, length))

    def sum_shares(self, tensor: Tensor) -> Tensor:
        """Of a tensor's sum over all ranks, this rank's `share` of its rows: (N, ...) -> (n, ...)."""
        if self.world_size == 1:
            return tensor
        even = lengthened(tensor, -(-len(tensor) // self.world_size) * self.world_size)
        own = tensor.new_empty(len(even) // self.world_size, *tensor.shape[1:])
        dist.reduce_scatter_single(own, even)
        rows = self.share(len(tensor))
        return own[: rows.stop - rows.start]

    def join_shares(self, own: Tensor, length: int) -> Tensor:
        """Everybody's shares of `length` rows, one after the other, on every rank: (n, ...) -> (length, ...)."""
        if self.world_size == 1:
            return own
        block = -(-length // self.world_size)
        whole = own.new_empty(block * self.world_size, *own.shape[1:])
        dist.all_gather_single(whole, lengthened(own, block))
        return whole[:length]

    def sum_floats(self, *values: float) -> list[float]:
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        self.sum_([total])
        return total.tolist()

    def gather_objects(self, item) -> list:
        """Everybody's item, in the order of ranks, on every rank."""
        if self.world_size == 1:
            return [item]
        items = [None] * self.world_size
        dist.all_gather_object(items, item)
        return items

    def from_main(self, item):
        """The main rank's item, on every rank."""
        if self.world_size == 1:
            return item
        items = [item]
        dist.broadcast_object_list(items, src=0)
        return items[0]

    def wait(self) -> None:
        if self.world_size > 1:
            dist.barrier()


def lengthened(tensor: Tensor, length: int) -> Tensor:
    """With rows of zeros behind it, up to so many: (n, ...) -> (length, ...)."""
    missing = length - len(tensor)
    return torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])]) if missing else tensor.contiguous()


@contextmanager
def join_ranks(device: str = "auto") -> Iterator[Ranks]:
    """Join the processes that torchrun started, or be the only one. gloo on the CPU, NCCL on GPUs."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    chosen = choose_device(device, local_rank)
    if world_size == 1:
        yield Ranks(0, 1, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=PATIENCE)
    if rank > 0:
        logging.getLogger("nanochat").setLevel(logging.WARNING)  # or every line of progress would be there once a rank
    try:
        yield Ranks(rank, world_size, chosen)
    finally:
        dist.destroy_process_group()


def choose_device(device: str, local_rank: int = 0) -> torch.device:
    """`auto`: a CUDA GPU where there is one, or the CPU. A device asked for by name and not there is an error, not a detour."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        if not torch.cuda.is_available():
            raise UserError("device cuda was asked for, and PyTorch sees no GPU here; ask for cpu, or check the driver")
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"there is no GPU for rank {local_rank}: PyTorch sees {torch.cuda.device_count()} here. "
                "The resource ranks must be the number of GPUs that the job asks for"
            )
        return torch.device("cuda", local_rank)
    return torch.device(device)


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Activations: `auto` is bfloat16 where the hardware multiplies it (5 to 10 times faster on such CPUs), else float32."""
    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    has_bf16 = torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu_has_bf16()
    return torch.bfloat16 if has_bf16 else torch.float32


@functools.cache
def cpu_has_bf16() -> bool:
    """Whether the CPU has instructions for bfloat16 products; without them they are emulated, and slower than fp32."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(cpu_line("flags", "Features").split()))


def cpu_name() -> str:
    """As the kernel calls it:  AMD EPYC 9654 96-Core Processor"""
    return cpu_line("model name").partition(":")[2].strip() or platform.processor() or platform.machine()


def cpu_line(*keys: str) -> str:
    """The first line of /proc/cpuinfo that begins so; nothing where there is none."""
    try:
        with open("/proc/cpuinfo") as file:
            return next((line for line in file if line.startswith(keys)), "")
    except OSError:
        return ""
