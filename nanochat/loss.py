"""The training's loss without its logits: a few hundred tokens at a time go through the output projection and back at once.

The logits of a micro-batch are the largest thing that a small model ever makes: at a vocabulary of 32,768 a token has 128 KB of
them in fp32, and autograd keeps several versions. But a cross-entropy's gradient is known as soon as its scores are,

    d loss / d score_j  =  softmax(score)_j  -  (1 if j is the target, else 0)

so each chunk's scores are made, turned into their gradient, used for both products of the backward pass, and forgotten. The
arithmetic is the same; what was memory traffic stays in the caches (Wijmans et al., arXiv 2411.09009, do it on GPUs).

Letters in the shape comments: N tokens, C the model's width, V vocabulary, R tokens of a chunk.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nanochat.gpt import GPT
from nanochat.planning.memory import LOSS_CHUNK_BYTES

# scores of a chunk, in the dtype of the activations: enough rows to fill the matrix products
CHUNK_BYTES = {"cpu": 2**27, "cuda": LOSS_CHUNK_BYTES}
BLOCK_BYTES = 2**21  # fp32 scores that a CPU works on at once: they stay in its caches from one operation to the next


def chunked_sum_of_losses(model: GPT, inputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats, summed over the targets that are not -1: ids (B, T), targets (B, T) -> a number, fp32.

    `nanochat.train.sum_of_losses` but for rounding.
    """
    hidden = model.hidden(inputs).flatten(0, 1)  # (N, C)
    head = model.lm_head
    cast = head.weight_in(hidden.dtype).detach()
    return LinearCrossEntropy.apply(hidden, head.weight, cast, targets.flatten(), model.config.soft_cap)


class LinearCrossEntropy(torch.autograd.Function):
    """Hidden states (N, C), weight (V, C), targets (N,) of which -1 does not count -> the sum of the losses.

    `cast` is the weight in the dtype of the hidden states; the gradient of `weight` is in its own.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, cast: Tensor, targets: Tensor, soft_cap: float | None) -> Tensor:
        wants_gradients = any(ctx.needs_input_grad)
        hidden_gradient = torch.empty_like(hidden) if wants_gradients else None
        weight_gradient = torch.zeros_like(weight) if wants_gradients else None
        total = torch.zeros((), device=hidden.device)
        for rows in chunks(
            len(hidden), weight.size(0) * hidden.itemsize, CHUNK_BYTES.get(hidden.device.type, LOSS_CHUNK_BYTES)
        ):
            scores = hidden[rows] @ cast.T  # (R, V)
            total += losses_and_gradients_(scores, targets[rows], soft_cap)
            if hidden_gradient is not None and weight_gradient is not None:
                torch.mm(scores, cast, out=hidden_gradient[rows])
                weight_gradient += scores.T @ hidden[rows]  # (V, C)
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return hidden_gradient * gradient, weight_gradient * gradient, None, None, None


def losses_and_gradients_(scores: Tensor, targets: Tensor, soft_cap: float | None) -> Tensor:
    """Replace scores (R, V) by the gradient of their losses; returns the sum of the losses."""
    block_bytes = BLOCK_BYTES if scores.device.type == "cpu" else scores.numel() * 4
    blocks = chunks(len(scores), scores.size(1) * 4, block_bytes)
    return torch.stack([block_losses_and_gradients_(scores[rows], targets[rows], soft_cap) for rows in blocks]).sum()


def block_losses_and_gradients_(scores: Tensor, targets: Tensor, soft_cap: float | None) -> Tensor:
    is_counted = (targets >= 0).float()[:, None]  # (R, 1)
    place = targets.clamp(min=0)[:, None]  # (R, 1)
    z = scores.float()  # (R, V)
    if soft_cap is not None:
        # cap * tanh(z / cap), by the cheaper function of the two: tanh(x) = 2 sigmoid(2 x) - 1
        bend = z.mul_(2 / soft_cap).sigmoid_()  # (R, V)
        z = (bend * (2 * soft_cap)).sub_(soft_cap)  # (R, V)
    wanted = z.gather(1, place)  # (R, 1)
    highest = z.amax(dim=1, keepdim=True)  # (R, 1)
    p = z.sub_(highest).exp_()  # (R, V)
    total = p.sum(dim=1, keepdim=True)  # (R, 1)
    losses = (total.log() + highest - wanted) * is_counted  # (R, 1)
    p.mul_(is_counted / total)
    p.scatter_add_(1, place, -is_counted)
    if soft_cap is not None:
        p.mul_(bend.addcmul_(bend, bend, value=-1)).mul_(4)  # the bend's slope: 1 - tanh^2 = 4 s (1 - s)
    scores.copy_(p)
    return losses.sum()


def chunks(num_rows: int, row_bytes: int, max_bytes: int) -> list[slice]:
    """Consecutive slices of `num_rows` rows, none above `max_bytes` if it has more than one row."""
    step = max(1, max_bytes // row_bytes)
    return [slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]
