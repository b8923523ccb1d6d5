"""The back ends of fused attention, and the one for CPUs: blocks of queries, each with the keys up to its own end.

PyTorch's kernel for CPUs multiplies at a fraction of what the matrix library reaches. Here that library does the work, and most
of what the causal mask hides is never computed. Scores are in the dtype of q and k, as in `nanochat.gpt.naive_attention`; the
softmax and what the backward pass subtracts are computed in fp32.

Where nothing is to be trained, heads go one by one, whose tensors then need no copies, and PyTorch's kernel has the short
sequences: it starts sooner. Measured for 3 heads of 128 and 2,750 tokens on 2 cores: 24 ms; PyTorch 46, all heads at once 28.

Letters in the shape comments: N sequences times heads, T tokens, D width of a head, Q queries of a block, S keys that they see.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nanochat.errors import UserError
from nanochat.flash import KERNELS, check_kernel, open_kernel
from nanochat.gpt import GPT, Attention, CausalSelfAttention, sdpa_attention

BLOCK = 256  # queries; 128 skip more of the hidden half in products that are less efficient: equal at 512 tokens
SHORT = 128  # queries, up to which PyTorch's kernel is the faster one without gradients


def blocked_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """q (B, H, T, D), k and v (B, G, S, D) -> (B, H, T, D). `visible` (T, S): a mask of its own; None: the causal one.

    A mask with more dimensions is that of a cache, for models that write: PyTorch's kernel has that.
    """
    if visible is not None and visible.dim() > 2:
        return sdpa_attention(q, k, v, visible)
    is_trained = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if not is_trained and not torch.compiler.is_compiling():  # which would unroll its loops
        return attend_by_head(q, k, v, visible)
    groups = q.size(1) // k.size(1)
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    return BlockedAttention.apply(q, k, v, visible)


def attend_by_head(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """The same without gradients; nothing is kept."""
    num_sequences, num_heads, num_tokens, width = q.shape
    if num_tokens <= SHORT:
        return sdpa_attention(q, k, v, visible)
    y = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    group = num_heads // k.size(1)
    mask = added_mask(visible if visible is not None else ~hidden_inside(BLOCK, q.device), q.dtype)
    for sequence in range(num_sequences):
        for head in range(num_heads):
            queries = (q[sequence, head] * width**-0.5).contiguous()  # (T, D)
            keys, values = (x[sequence, head // group].contiguous() for x in (k, v))  # (S, D)
            for start, end, num_keys in blocks(num_tokens, k.size(2), is_causal=visible is None):
                scores = queries[start:end] @ keys[:num_keys].T  # (Q, S)
                if visible is None:
                    scores[:, start:] += mask[: end - start, : end - start]
                else:
                    scores += mask
                torch.mm(scores.softmax(dim=1), values[:num_keys], out=y[sequence, head, start:end])
    return y


def added_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores: 0 where a query sees a key, else minus infinity. Adding takes half as long as filling."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))


class BlockedAttention(torch.autograd.Function):
    """Attention of q (B, H, T, D), k and v (B, H, S, D). Keeps its weights for the backward pass."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        shape, scale = q.shape, q.size(3) ** -0.5
        q, k, v = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v))  # (N, T, D), (N, S, D)
        y, kept = torch.empty_like(q), []
        for start, end, num_keys in blocks(q.size(1), k.size(1), is_causal=visible is None):
            scores = torch.bmm(q[:, start:end] * scale, k[:, :num_keys].mT)  # (N, Q, S)
            if visible is None:
                scores[:, :, start:].masked_fill_(hidden_inside(end - start, q.device), float("-inf"))
            else:
                scores.masked_fill_(~visible, float("-inf"))
            kept.append(scores.softmax(dim=2))  # (N, Q, S)
            y[:, start:end] = torch.bmm(kept[-1], v[:, :num_keys])
        ctx.save_for_backward(q, k, v, y, *kept)
        ctx.is_causal = visible is None
        return y.view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, y, *kept = ctx.saved_tensors  # (N, T, D) and (N, S, D); (N, Q, S) each
        g, scale = gradient.reshape(q.shape), q.size(2) ** -0.5
        q_gradient, k_gradient, v_gradient = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        mean = (g.float() * y).sum(dim=2, keepdim=True)  # (N, T, 1), of the weights' gradients, weighted by them
        for weights, (start, end, num_keys) in zip(kept, blocks(q.size(1), k.size(1), is_causal=ctx.is_causal), strict=True):
            mine, seen = slice(start, end), slice(0, num_keys)
            v_gradient[:, seen] += torch.bmm(weights.mT, g[:, mine])
            slopes = torch.bmm(g[:, mine], v[:, seen].mT) - mean[:, mine]  # (N, Q, S), fp32
            slopes = slopes.mul_(weights).mul_(scale).to(q.dtype)
            q_gradient[:, mine] = torch.bmm(slopes, k[:, seen])
            k_gradient[:, seen] += torch.bmm(slopes.mT, q[:, mine])
        batch = gradient.shape[:2]
        q_gradient, k_gradient, v_gradient = (x.view(*batch, *x.shape[1:]) for x in (q_gradient, k_gradient, v_gradient))
        return q_gradient, k_gradient, v_gradient, None


def blocks(num_tokens: int, num_keys: int, *, is_causal: bool) -> list[tuple[int, int, int]]:
    """From query, to query, and how many keys they see:  [(0, 256, 256), (256, 300, 300)] for 300 tokens."""
    if not is_causal:
        return [(0, num_tokens, num_keys)]
    ends = [min(start + BLOCK, num_tokens) for start in range(0, num_tokens, BLOCK)]
    return [(start, end, end) for start, end in zip(range(0, num_tokens, BLOCK), ends, strict=True)]


def hidden_inside(num_queries: int, device: torch.device) -> Tensor:
    """Which keys of its own block each query must not see: those behind it, (Q, Q)."""
    return torch.ones(num_queries, num_queries, dtype=torch.bool, device=device).triu(1)


BACKENDS: dict[str, Attention] = {"sdpa": sdpa_attention, "blocked": blocked_attention}


def choose_attention(name: str, model: GPT, device: torch.device) -> str:
    """The back end for a model's fused attention: `auto` is blocked on CPUs in bfloat16, where it is the faster one, else sdpa.

    A model of written-out attention (`attention: naive`) keeps that.
    """
    if model.config.attention == "naive":
        return "naive"
    if name != "auto":
        return name
    return "blocked" if device.type == "cpu" and model.compute_dtype == torch.bfloat16 else "sdpa"


def use_attention(model: GPT, name: str) -> None:
    """Have all blocks of a model use this back end. UserError if it is not there; one of `nanochat.flash` is checked first."""
    if name == "naive" and model.config.attention == "naive":
        return
    if name in KERNELS:
        device = model.wte.weight.device
        kernel = open_kernel(name, device)
        check_kernel(kernel, model, device)
        attend: Attention = kernel
    elif name in BACKENDS:
        attend = BACKENDS[name]
    else:
        raise UserError(f"attention {name!r} is unknown; there are {', '.join((*BACKENDS, *KERNELS))}")
    for module in model.modules():
        if isinstance(module, CausalSelfAttention):
            module.attend = attend
