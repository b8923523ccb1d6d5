"""What devices can do at most, by the name PyTorch reports. Which share our trainings reach is in `nanochat.planning.predict`.

    find("NVIDIA A100-SXM4-80GB").peak_flops   # 312e12
    by_gres("a100").memory_bytes               # of SLURM's --gres=gpu:a100:8

Peaks are dense bf16 with fp32 accumulation, and bandwidths, from the makers' data sheets (never the figures "with sparsity",
which are twice as high). Memory is what PyTorch reports as the device's total, a little less than what is printed on it.
A device that is not here is None: whoever asks says that it is unknown, and guesses nothing.
"""

import re
import shutil
import subprocess
from dataclasses import dataclass

GIB = 2**30
TB = 10**12

# FLOP/s of one core of a CPU in our trainings. Measured on 2 cores of an AMD EPYC that multiplies bfloat16: 1.1e11 to 1.6e11
# for the tiny and the small model (benchmarks/README.md, step.py).
CPU_FLOPS_PER_CORE = 6e10

# What a training on CPUs wants of its process; GPUs do not mind.
ON_CPUS = {
    # Threads that wait for work spin so many times before they sleep. Measured at 5,000 and 20,000 (benchmarks/README.md): on
    # idle cores a step is 1.2 to 1.4 times as fast as with threads that sleep at once. But beside two busy programs on two
    # cores threads that spin for long, as by default, make it half as fast; these between 0.74 and 1.05 times as fast
    "GOMP_SPINCOUNT": "10000",
    "KMP_BLOCKTIME": "0",  # LLVM's OpenMP (macOS) counts in milliseconds
    # keep freed memory instead of giving it back and having it zeroed again: beside another busy program, a step at a
    # vocabulary of 8,192 took 3.2 s so, and 8.0 s with the defaults of the C library; idle it gains less (benchmarks/step.py)
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}


@dataclass(frozen=True)
class Device:
    """A kind of GPU."""

    name: str
    peak_flops: float  # FLOP/s, bf16, dense
    memory_bytes: int
    bandwidth: float  # bytes/s of its memory


def _gib(number: float) -> int:
    return int(number * GIB)


A100_80 = Device("A100 80GB", 312e12, _gib(79.2), 2.04 * TB)
A100_40 = Device("A100 40GB", 312e12, _gib(39.4), 1.56 * TB)
H100 = Device("H100 SXM", 989e12, _gib(79.1), 3.35 * TB)

# (pattern, device): the first pattern found in the name counts, so the narrower ones come first
DEVICES: tuple[tuple[str, Device], ...] = (
    (r"\bgb200\b", Device("GB200", 2500e12, _gib(184), 8.0 * TB)),
    (r"\bb200\b", Device("B200", 2250e12, _gib(178), 8.0 * TB)),
    (r"\bgh200\b", Device("GH200", 989e12, _gib(94.5), 4.0 * TB)),
    (r"\bh200\b", Device("H200", 989e12, _gib(139.8), 4.8 * TB)),
    (r"\bh100 nvl\b", Device("H100 NVL", 835e12, _gib(93), 3.9 * TB)),
    (r"\bh100 (80gb )?pcie\b", Device("H100 PCIe", 756e12, _gib(79.1), 2.0 * TB)),
    (r"\bh100\b", H100),
    (r"\bh800\b", Device("H800", 989e12, _gib(79.1), 3.35 * TB)),
    (r"\ba100\b.*\b40gb?\b", A100_40),
    (r"\ba100\b", A100_80),  # a cluster that says only "a100": Ptolemy's are of 80 GB
    (r"\ba800\b", Device("A800", 312e12, _gib(79.2), 2.04 * TB)),
    (r"\brtx a6000\b|\ba6000\b", Device("RTX A6000", 154.8e12, _gib(47.5), 0.768 * TB)),
    (r"\ba40\b", Device("A40", 149.7e12, _gib(44.4), 0.696 * TB)),
    (r"\ba30\b", Device("A30", 165e12, _gib(23.5), 0.933 * TB)),
    (r"\ba10g\b", Device("A10G", 70e12, _gib(22.1), 0.6 * TB)),
    (r"\ba10\b", Device("A10", 125e12, _gib(22.1), 0.6 * TB)),
    (r"\bl40s\b", Device("L40S", 362e12, _gib(44.4), 0.864 * TB)),
    (r"\bl40\b", Device("L40", 181e12, _gib(44.4), 0.864 * TB)),
    (r"\bl4\b", Device("L4", 121e12, _gib(22.0), 0.3 * TB)),
    (r"\brtx 6000 ada\b", Device("RTX 6000 Ada", 364e12, _gib(47.5), 0.96 * TB)),
    # consumer cards: products of bf16 accumulated in fp32 run at half of the rate that is advertised
    (r"\brtx 5090\b", Device("RTX 5090", 209.5e12, _gib(31.4), 1.79 * TB)),
    (r"\brtx 4090\b", Device("RTX 4090", 165.2e12, _gib(23.5), 1.01 * TB)),
    (r"\brtx 3090\b", Device("RTX 3090", 71e12, _gib(23.5), 0.936 * TB)),
    (r"\bmi300x\b", Device("MI300X", 1307e12, _gib(191.5), 5.3 * TB)),
)


def find(name: str | None) -> Device | None:
    """The device of this name, as `torch.cuda.get_device_name` gives it; None if it is not in the table (a CPU is not)."""
    words = " ".join(re.findall(r"[a-z0-9]+", (name or "").lower()))
    return next((device for pattern, device in DEVICES if re.search(pattern, words)), None)


def by_gres(type_: str | None) -> Device | None:
    """The device that a cluster calls by this type in --gres=gpu:TYPE:8, such as a100 or nvidia_h100_80gb_hbm3."""
    return find(type_)


def gpus_here() -> list[str]:
    """Names of this machine's GPUs, as its driver gives them; none where there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]
