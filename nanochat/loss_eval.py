"""How well a model predicts text: mean loss a token, and bits per byte, which compares models whatever their vocabulary."""

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.errors import UserError
from nanochat.gpt import GPT

POSITIONS_AT_ONCE = 4_096  # positions that go through the output projection together: at 65,536 tokens, 1 GB of logits


@torch.inference_mode()
def evaluate_bpb(
    model: GPT,
    rows: Iterable[tuple[Tensor, Tensor]],
    token_bytes: np.ndarray,
    *,
    sum_floats: Callable[..., list[float]] | None = None,
) -> dict[str, float]:
    """Evaluate batches of (x, y), both (B, T): `y` holds the next tokens, -1 where the prediction does not count.

    Returns {"loss": nats a counted token, "bpb": bits a byte, "tokens", "bytes"}. A special token stands for no byte of text
    (`token_bytes` is 0), so it counts in the loss and is left out of both sums of bits per byte. Two tokens of 3 and 1 bytes,
    each predicted with probability 1/4, cost 4 bits: 1 bit per byte.

    Several processes each pass their own share of the rows, and `sum_floats`, which returns its arguments summed over them
    (`Ranks.sum_floats`).
    """
    device = model.wte.weight.device
    bytes_of = torch.as_tensor(np.asarray(token_bytes), dtype=torch.long, device=device)  # (V,)
    sums = torch.zeros(4, dtype=torch.float64)  # nats, counted tokens, nats of tokens with bytes, bytes
    for x, y in rows:
        sums += batch_sums(model, x.to(device), y.to(device), bytes_of)
    totals = sums.tolist() if sum_floats is None else sum_floats(*sums.tolist())
    nats, num_tokens, text_nats, num_bytes = totals
    if num_bytes == 0:
        raise UserError(
            f"evaluation: none of the {int(num_tokens)} counted tokens stands for text, so there is no loss to measure"
        )
    return {
        "loss": nats / num_tokens,
        "bpb": text_nats / (math.log(2) * num_bytes),
        "tokens": int(num_tokens),
        "bytes": int(num_bytes),
    }


def batch_sums(model: GPT, x: Tensor, y: Tensor, bytes_of: Tensor) -> Tensor:
    counted = y >= 0
    targets = y[counted].long()  # (N,)
    hidden = model.hidden(x.long())[counted]  # (N, C)
    num_bytes = bytes_of[targets]  # (N,)
    sums = torch.zeros(4, dtype=torch.float64)
    for start in range(0, len(targets), POSITIONS_AT_ONCE):
        part = slice(start, start + POSITIONS_AT_ONCE)
        losses = F.cross_entropy(model.logits(hidden[part]), targets[part], reduction="none")
        # summed in float64 on the CPU: a float32 sum of ten million losses is wrong in the third digit
        losses, part_bytes = losses.cpu().double(), num_bytes[part].cpu()
        sums += torch.stack([losses.sum(), torch.tensor(len(losses)), losses[part_bytes > 0].sum(), part_bytes.sum()])
    return sums
