"""How fast this machine's CPU trains and runs a model: a few real steps, timed.

Each part is repeated for a second or two, and of its times the lower quartile is taken: on a shared machine a neighbour's burst
makes some of them longer and never shorter, and a training that takes minutes outlasts the bursts. A model that would take long
is not measured: the table of devices has to do for it.

    python -m nanochat.planning.speed '{"model": {...}, "micro_batches": {"base_train": 16}, "cores": 2}'   # prints it as JSON
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from nanochat.attention import choose_attention, use_attention
from nanochat.casts import Casts
from nanochat.distributed import choose_dtype
from nanochat.gpt import GPT, GPTConfig
from nanochat.inference import make_ready
from nanochat.kv_cache import KVCache
from nanochat.loss import chunked_sum_of_losses
from nanochat.optimizer import build_optimizer
from nanochat.planning.predict import Speed, table_speed
from nanochat.train import sum_of_losses

SECONDS_A_PART = 2.0  # of repetitions, for each of the few parts that are timed
LONGEST_S = 2.0  # a single repetition that the table expects to take longer is not tried
DECODING_ROWS = 32


def measure_speeds(model: Mapping[str, Any], *, micro_batches: Mapping[str, int], cores: int) -> dict[str, Speed] | None:
    """The speed of each training on this CPU, given the rows of its forward passes; None if the model is too large to try.

    Stages with equal rows share a measurement. The weights are random: no number that matters depends on their values.
    """
    table = table_speed(model, device=None, num_devices=1, cores=cores)
    if max(micro_batches.values()) * model["sequence_len"] * table.train_token_s > LONGEST_S:
        return None
    gpt = GPT(GPTConfig(**model)).init_weights(0)
    gpt.compute_dtype = choose_dtype("auto", torch.device("cpu"))
    use_attention(gpt, choose_attention("auto", gpt, torch.device("cpu")))
    optimizer = build_optimizer(gpt, matrix_lr=0.0, embedding_lr=0.0, unembedding_lr=0.0)
    by_rows = {rows: train_seconds(gpt, rows) for rows in sorted(set(micro_batches.values()))}
    update_s = typical_seconds(lambda: optimizer.step(step=0, lr_scale=0.0), seconds=SECONDS_A_PART / 2)
    for parameter in gpt.parameters():
        parameter.grad = None
    rows = max(by_rows)
    make_ready(gpt)
    forward_s = forward_seconds(gpt, rows) / (rows * model["sequence_len"])
    decode_s = decode_seconds(gpt) / DECODING_ROWS
    source = f"measured on this machine's CPU, {torch.get_num_threads()} threads"
    return {
        stage: Speed(by_rows[rows] / (rows * model["sequence_len"]), update_s, forward_s, decode_s, source)
        for stage, rows in micro_batches.items()
    }


def train_seconds(gpt: GPT, rows: int) -> float:
    """Forward and backward pass of one micro-batch."""
    x, y = random_rows(gpt, rows), random_rows(gpt, rows)
    with Casts(gpt).made():
        return typical_seconds(lambda: (chunked_sum_of_losses(gpt, x, y) / y.numel()).backward())


@torch.inference_mode()
def forward_seconds(gpt: GPT, rows: int) -> float:
    x, y = random_rows(gpt, rows), random_rows(gpt, rows)
    return typical_seconds(lambda: sum_of_losses(gpt, x, y), seconds=SECONDS_A_PART / 2)


@torch.inference_mode()
def decode_seconds(gpt: GPT) -> float:
    """One step of writing: a token a row, with the keys and values of what came before kept."""
    config = gpt.config
    before = config.sequence_len // 2
    cache = KVCache(config, DECODING_ROWS, before + 1, torch.float32, "cpu")
    token = torch.zeros(DECODING_ROWS, 1, dtype=torch.long)

    def step() -> None:
        cache.lengths = [before] * DECODING_ROWS
        gpt.logits(gpt.hidden(token, cache)[:, -1]).argmax(dim=1)

    return typical_seconds(step, seconds=SECONDS_A_PART / 4)


def random_rows(gpt: GPT, rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randint(0, gpt.config.vocab_size, (rows, gpt.config.sequence_len), generator=generator)


def typical_seconds(work: Callable[[], Any], *, seconds: float = SECONDS_A_PART) -> float:
    """Lower quartile of as many repetitions as fit, at least three; a first one, which also sets things up, is not counted."""
    work()
    took: list[float] = []
    while len(took) < 3 or sum(took) < seconds:
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return sorted(took)[len(took) // 4]


def main() -> None:
    speeds = measure_speeds(**json.loads(sys.argv[1]))
    print(json.dumps(speeds and {stage: speed.as_dict() for stage, speed in speeds.items()}))


if __name__ == "__main__":
    main()
