"""Sequences of different lengths in one forward pass: batches of similar length, padded on the right.

Padding on the right needs no mask: attention only looks back, so no true token ever sees the padding behind it. What the model
computes at the padding is thrown away.

Letters in the shape comments: B sequences, T tokens of the longest one, C the model's width, N positions asked for.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from nanochat.gpt import GPT, ROPE_TABLE_FACTOR, GPTConfig

Tokens = Sequence[int] | np.ndarray

# tokens in one padded forward pass; more fills no CPU any better, and a GPU's memory holds the activations of many more
BATCH_TOKENS = {"cpu": 8_192, "cuda": 65_536}


def context_limit(config: GPTConfig) -> int:
    """The longest sequence that a model can take at all: its table of positions ends there."""
    return config.sequence_len * (ROPE_TABLE_FACTOR if config.positions == "rope" else 1)


def default_batch_tokens(device: torch.device) -> int:
    return BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"])


def batches_by_tokens(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices of sequences in batches whose padded size is at most `max_tokens`.

    The longest come first, so that memory runs out at once or never.
    lengths [3, 9, 4], max_tokens 10  ->  [1], [2, 0].  A sequence longer than `max_tokens` is a batch of its own.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def pad_right(sequences: Sequence[Tokens], *, pad_id: int, device: torch.device) -> Tensor:
    """Token sequences -> one tensor (B, T) of int64, `pad_id` behind the shorter ones."""
    padded = np.full((len(sequences), max(map(len, sequences))), pad_id, dtype=np.int64)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    return torch.from_numpy(padded).to(device)


def hidden_at(model: GPT, sequences: Sequence[Tokens], positions: Sequence[Sequence[int]], *, pad_id: int) -> Tensor:
    """One forward pass; the model's hidden states at the `positions` of each sequence, one after the other: (N, C).

    The vocabulary is as wide as fifty layers of a small model, so only the positions that are read go on to `model.logits`.
    """
    device = model.wte.weight.device
    x = model.hidden(pad_right(sequences, pad_id=pad_id, device=device))  # (B, T, C)
    rows = [row for row, wanted in enumerate(positions) for _ in wanted]
    columns = [position for wanted in positions for position in wanted]
    return x[torch.tensor(rows, device=device), torch.tensor(columns, device=device)]  # (N, C)
