"""One GPU's training step: time of its parts, share of the bf16 peak, peak memory. By model and micro-batch.

    python benchmarks/gpu_step.py [--json FILE] [--only d20]

Each row is a fresh process that makes a few steps of two micro-batches, as nanochat/train.py does (the second micro-batch finds
the gradients of the first, so memory is at its highest), and reports medians. Run eagerly, without torch.compile.
nanochat/planning/memory.py is fitted to the memory found here.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

D20 = {"n_layer": 20, "n_head": 10, "n_kv_head": 10, "n_embd": 1280}
D12 = {"n_layer": 12, "n_head": 6, "n_kv_head": 6, "n_embd": 768}
D8 = {"n_layer": 8, "n_head": 4, "n_kv_head": 4, "n_embd": 512}
# name, fields of GPTConfig that differ from its preset, micro-batches
SHAPES = [
    ("d20", D20, (1, 2, 4, 8, 16, 18, 20, 32, 64)),
    ("d20, vocabulary 8,192", {**D20, "vocab_size": 8192}, (8, 32)),
    ("d20, length 512", {**D20, "sequence_len": 512}, (16, 64)),
    ("d20, deterministic kernels", {**D20, "deterministic": True}, (8, 16)),
    ("d12", D12, (4, 16, 32)),
    ("d12, 2 heads of keys", {**D12, "n_kv_head": 2}, (16,)),
    ("d12, fp32", {**D12, "dtype": "float32"}, (8,)),
    ("d12, textbook", {**D12, "preset": "textbook"}, (4, 8)),
    ("d12, vocabulary 1,024", {**D12, "vocab_size": 1024}, (16,)),
    ("d12, textbook, vocabulary 1,024", {**D12, "preset": "textbook", "vocab_size": 1024}, (4,)),
    ("d8", D8, (4, 16, 64)),
]
STEPS = 4  # after one that warms up
TOKENS_PER_STEP = 65_536  # of one GPU among 8 in the d20 reference: the optimizer's part is spread over as many tokens
LENGTH, VOCABULARY = 2048, 65_536
DECODED_ROWS, DECODED_LENGTH = 64, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write all figures there")
    parser.add_argument("--only", default="", help="the models whose name contains this")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        measure = {"machine": machine, "step": step_figures, "decode": decode_figures}[args.child.pop("what")]
        print(json.dumps(measure(**args.child)))
        return
    found = {"machine": run(what="machine"), "decode": run(what="decode", model=D20), "steps": []}
    for key, value in {**found["machine"], **found["decode"]}.items():
        print(f"{key:45} {value}")
    print(
        "\n| model | micro-batch | forward and backward | optimizer | tokens/s | of the peak | GB in a micro-batch | GB in the "
        "optimizer | GB reserved | same bits |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|---|"
    )
    for name, model, micro_batches in (shape for shape in SHAPES if args.only in shape[0]):
        for micro_batch in micro_batches:
            row = {"name": name, "model": model, "micro_batch": micro_batch}
            row |= run(what="step", model=model, micro_batch=micro_batch)
            found["steps"].append(row)
            print(row_text(row, found["machine"]), flush=True)
            if args.json:
                args.json.write_text(json.dumps(found, indent=1))


def run(**job) -> dict:
    command = [sys.executable, __file__, "--child", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def row_text(row: dict, machine: dict) -> str:
    start = f"| {row['name']} | {row['micro_batch']} | "
    if "failed" in row:
        return f"{start}{'out of memory' if 'OutOfMemory' in row['failed'] else row['failed']} | | | | | | | |"
    peak = machine["peak_flops"] or machine["matrix_flops"]
    gigabytes = (row[key] / 1e9 for key in ("bytes_in_micro_batch", "bytes_in_optimizer", "bytes_reserved"))
    return start + " | ".join(
        [
            f"{row['micro_batch_seconds'] * 1e3:,.1f} ms",
            f"{row['optimizer_seconds'] * 1e3:,.1f} ms",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['flops_per_second'] / peak:.1%}",
            *(f"{number:.2f}" for number in gigabytes),
            "yes |" if row["same_bits"] else "no |",
        ]
    )


# -- what a child measures ---------------------------------------------------------------------------------------------------


def machine() -> dict:
    """The device, its rate of bf16 matrix products, and which kernel attention runs on."""
    import torch

    from nanochat.determinism import use_deterministic_kernels
    from nanochat.planning.hardware import find

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = statistics.median(timed(lambda: a @ b) for _ in range(20))
    attention = attention_kernel()
    use_deterministic_kernels()
    name = torch.cuda.get_device_name()
    device = find(name)
    return {
        "device": name,
        "memory_bytes": torch.cuda.get_device_properties(0).total_memory,
        "free_bytes": torch.cuda.mem_get_info()[0],
        "torch": torch.__version__,
        "matrix_flops": 2 * 8192**3 / seconds,
        "peak_flops": device.peak_flops if device else None,
        "attention": attention,
        "attention, deterministic": attention_kernel(),
    }


def attention_kernel() -> str:
    """What PyTorch chooses for our attention: flash, efficient, cudnn or math."""
    import torch
    import torch.nn.functional as F

    q = torch.randn(4, 10, LENGTH, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        F.scaled_dot_product_attention(q, q, q, is_causal=True)
    prefix, suffix = "aten::_scaled_dot_product_", "_attention"
    found = {
        event.key.removeprefix(prefix).split(suffix)[0] for event in profile.key_averages() if event.key.startswith(prefix)
    }
    return ", ".join(sorted(found))


def step_figures(*, model: dict, micro_batch: int) -> dict:
    import torch

    from nanochat.casts import Casts
    from nanochat.loss import chunked_sum_of_losses
    from nanochat.schedule import flops_per_token

    model, gpt = build(model)
    optimizer, casts = build_optimizer_of(gpt), Casts(gpt)
    length, parameters = gpt.config.sequence_len, list(gpt.parameters())
    x, y = (torch.randint(0, gpt.config.vocab_size, (micro_batch, length), device="cuda") for _ in range(2))

    def forward_and_backward() -> None:
        with casts.made():
            (chunked_sum_of_losses(gpt, x, y) / (2 * y.numel())).backward()

    def update() -> None:
        optimizer.clip(1.0)
        optimizer.step(step=step, lr_scale=1e-3)
        for parameter in parameters:
            parameter.grad = None

    micro_batches, optimizers, peaks = [], [], {"bytes_in_micro_batch": 0, "bytes_in_optimizer": 0}
    for step in range(1 + STEPS):
        torch.cuda.reset_peak_memory_stats()
        parts = [timed(forward_and_backward) for _ in range(2)]
        peaks["bytes_in_micro_batch"] = max(peaks["bytes_in_micro_batch"], torch.cuda.max_memory_allocated())
        torch.cuda.reset_peak_memory_stats()
        optimizer_seconds = timed(update)
        peaks["bytes_in_optimizer"] = max(peaks["bytes_in_optimizer"], torch.cuda.max_memory_allocated())
        if step:
            micro_batches += parts
            optimizers.append(optimizer_seconds)
    seconds, optimizer_seconds = statistics.median(micro_batches), statistics.median(optimizers)
    speed = TOKENS_PER_STEP / (TOKENS_PER_STEP / (micro_batch * length) * seconds + optimizer_seconds)
    return {
        "micro_batch_seconds": seconds,
        "optimizer_seconds": optimizer_seconds,
        "tokens_per_second": speed,
        "flops_per_second": speed * flops_per_token(gpt.config.as_dict()),
        **peaks,
        "bytes_reserved": torch.cuda.memory_reserved(),
        "bytes_used_on_device": torch.cuda.mem_get_info()[1] - torch.cuda.mem_get_info()[0],
        "same_bits": same_bits(gpt, forward_and_backward),
    }


def same_bits(gpt, forward_and_backward) -> bool:
    """Whether the same batch gives the same gradients again; three times, since a race is not lost every time."""
    import torch

    digests = []
    for _ in range(3):
        for parameter in gpt.parameters():
            parameter.grad = None
        forward_and_backward()
        bits = [parameter.grad.view(torch.int32).sum(dtype=torch.int64).item() for parameter in gpt.parameters()]
        digests.append(bits)
    return digests[0] == digests[1] == digests[2]


def decode_figures(*, model: dict) -> dict:
    """Writing answers: one token for each of many rows whose caches are filled, and evaluation's forward pass."""
    import torch

    from nanochat.kv_cache import KVCache

    _, gpt = build(model)
    with torch.inference_mode():
        cache = KVCache(gpt.config, DECODED_ROWS, DECODED_LENGTH + 40, torch.bfloat16, "cuda")
        gpt.hidden(torch.randint(0, VOCABULARY, (DECODED_ROWS, DECODED_LENGTH), device="cuda"), cache)
        cache.advance(DECODED_LENGTH)
        column = torch.randint(0, VOCABULARY, (DECODED_ROWS, 1), device="cuda")
        decode = statistics.median([timed(lambda: gpt(column, cache)) for _ in range(24)][4:])
        rows = torch.randint(0, VOCABULARY, (8, LENGTH), device="cuda")
        forward = statistics.median([timed(lambda: gpt(rows)) for _ in range(8)][2:])
    return {
        "d20, one token for each of 64 rows (ms)": round(decode * 1e3, 2),
        "d20, forward pass only (tokens/s)": round(rows.numel() / forward),
    }


def build(model: dict):
    """The model with random weights, on the GPU; beside it the fields without those that are settings of the process."""
    import torch

    from nanochat.determinism import use_deterministic_kernels
    from nanochat.gpt import GPT, GPTConfig

    fields = {"vocab_size": VOCABULARY, "sequence_len": LENGTH, "preset": "nanochat", "dtype": "bfloat16", **model}
    if fields.pop("deterministic", False):
        use_deterministic_kernels()
    dtype = getattr(torch, fields.pop("dtype"))
    torch.manual_seed(0)
    config = GPTConfig.preset(fields.pop("preset"), **fields)
    with torch.device("cuda"):
        gpt = GPT(config)
    gpt.compute_dtype = dtype
    return fields, gpt


def build_optimizer_of(gpt):
    from nanochat.optimizer import build_optimizer

    return build_optimizer(gpt, matrix_lr=0.02, embedding_lr=0.2, unembedding_lr=0.004)


def timed(work) -> float:
    """Seconds of the device."""
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


if __name__ == "__main__":
    main()
