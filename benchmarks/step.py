"""One training step on this machine's CPU: tokens/s by micro-batch, with and without the process settings of launch.py.

    python benchmarks/step.py

Each row is the median of three steps in a fresh process, since the settings are read when a process starts.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "workflow" / "scripts"))

SHAPES = {
    "tiny (4 layers of 192, vocabulary 1,024)": {"vocab_size": 1024, "n_head": 3, "n_embd": 192},
    "small (4 layers of 256, vocabulary 8,192)": {"vocab_size": 8192, "n_head": 4, "n_embd": 256},
}
ROWS, LENGTH = 32, 256


def main() -> None:
    from launch import ON_CPUS

    print(f"{ROWS * LENGTH:,} tokens a step; tokens/s with the settings of launch.py, and with the defaults")
    for name, shape in SHAPES.items():
        for micro_batch in (32, 8, 2):
            ours, defaults = (run(shape, micro_batch, settings) for settings in (ON_CPUS, {}))
            print(
                f"{name:45} micro-batch {micro_batch:2}   {ours:8,.0f}   {defaults:8,.0f}   x {ours / defaults:.2f}", flush=True
            )


def run(shape: dict, micro_batch: int, settings: dict[str, str]) -> float:
    command = [sys.executable, __file__, "--child", json.dumps({**shape, "micro_batch": micro_batch})]
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=True)
    return float(done.stdout)


def measure(job: dict) -> None:
    import torch

    from nanochat.distributed import choose_dtype
    from nanochat.gpt import GPT, GPTConfig
    from nanochat.loss import chunked_sum_of_losses
    from nanochat.optimizer import build_optimizer

    micro_batch = job.pop("micro_batch")
    model = GPT(GPTConfig.preset("nanochat", n_layer=4, n_kv_head=job["n_head"], sequence_len=LENGTH, **job)).init_weights(0)
    model.compute_dtype = choose_dtype("auto", torch.device("cpu"))
    optimizer = build_optimizer(model, matrix_lr=0.02, embedding_lr=0.2, unembedding_lr=0.004)
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randint(0, job["vocab_size"], (ROWS, LENGTH), generator=generator) for _ in range(2))
    seconds = []
    for step in range(4):
        began = time.perf_counter()
        for inputs, targets in zip(x.split(micro_batch), y.split(micro_batch), strict=True):
            (chunked_sum_of_losses(model, inputs, targets) / y.numel()).backward()
        optimizer.step(step=step, lr_scale=1.0)
        for parameter in model.parameters():
            parameter.grad = None
        seconds.append(time.perf_counter() - began)
    print(ROWS * LENGTH / statistics.median(seconds[1:]))


if __name__ == "__main__":
    measure(json.loads(sys.argv[2])) if sys.argv[1:2] == ["--child"] else main()
