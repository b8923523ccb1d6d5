"""The GPT language model: token ids in, a score for every possible next token out.

Read top-down: `GPT` holds the story, a `Block` is two lines of residual stream, then come its two halves `CausalSelfAttention`
and `MLP`, then the small parts. Every choice that distinguishes one Transformer from another is a named component of
`GPTConfig`, so an ablation is one line of configuration. `GPTConfig()` as written is the d20 model of nanochat (October 2025).

Letters in the shape comments (a test checks every one of them):

    B  sequences in the batch       T  tokens in each sequence       S  keys: the cached tokens and the T new ones
    C  n_embd, the model's width    H  n_head                        G  n_kv_head, heads of keys and values
    D  width of one head, C / H     V  vocab_size                    F  width inside the MLP, 4 C
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat.errors import UserError
from nanochat.presets import PRESETS

ROPE_TABLE_FACTOR = 10  # rotations are prepared for 10x the training length, so that a chat may grow longer than a row
NORM_EPS = 1e-6  # given explicitly: PyTorch's default depends on the dtype (0.0078 for bfloat16)


@dataclass(frozen=True)
class GPTConfig:
    """Sizes and components of a model. As written: d20, 560,988,160 parameters."""

    vocab_size: int = 65536
    n_layer: int = 20
    n_head: int = 10
    n_kv_head: int = 10
    n_embd: int = 1280
    sequence_len: int = 2048
    positions: str = "rope"  # rope | learned
    norm: str = "rms"  # rms | layer
    mlp: str = "relu2"  # relu2 | gelu
    attention: str = "sdpa"  # sdpa | naive
    qk_norm: bool = True
    soft_cap: float | None = 15.0
    tied_head: bool = False
    bias: bool = False
    norm_embedding: bool = True
    init: str = "nanochat"  # nanochat | gpt2
    rope_base: float = 10000.0

    def __post_init__(self) -> None:
        if self.n_embd % self.n_head:
            raise UserError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        if self.n_head % self.n_kv_head:
            raise UserError(f"n_head {self.n_head} is not a multiple of n_kv_head {self.n_kv_head}")
        if self.positions == "rope" and self.head_dim % 2:
            raise UserError(f"rope turns pairs of numbers, and the head width {self.head_dim} is odd")

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @classmethod
    def preset(cls, name: str, **sizes) -> "GPTConfig":
        """The components of `nanochat` or `textbook`, with the given sizes (and components) on top."""
        if name not in PRESETS:
            raise UserError(f"model preset {name!r} is unknown; there are {', '.join(sorted(PRESETS))}")
        return cls(**{**PRESETS[name], **sizes})

    def as_dict(self) -> dict:
        return asdict(self)


Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


class Cache(Protocol):
    """Where the new tokens stand in their sequences, and what each of them attends to.

    `nanochat.kv_cache.KVCache`: also to the tokens read before. `nanochat.batching.PackedTrees`: only to those of its sequence.
    """

    wanted: Tensor | None  # (W,) those of the T new tokens whose hidden states are asked for; None: of all

    def positions(self, num_tokens: int) -> Tensor: ...
    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, attention: Attention) -> Tensor: ...


class GPT(nn.Module):
    """A decoder-only Transformer (Vaswani et al. 2017, arXiv 1706.03762; Radford et al. 2019), pre-norm.

    Master weights are fp32; activations are in `compute_dtype`, to which each weight is cast where it is used.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.compute_dtype = torch.float32
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.sequence_len, config.n_embd) if config.positions == "learned" else None
        self.ln_emb = make_norm(config) if config.norm_embedding else nn.Identity()
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = make_norm(config)
        self.lm_head = Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tied_head:
            self.lm_head.weight = self.wte.weight
        self.rope = RotaryEmbedding(config) if config.positions == "rope" else None

    def forward(self, idx: Tensor, cache: Cache | None = None) -> Tensor:
        """Token ids (B, T) -> logits (B, T, V) in fp32. With a cache, `idx` continues the sequences that it holds."""
        x = self.hidden(idx, cache)  # (B, T, C)
        logits = self.logits(x)  # (B, T, V)
        return logits

    def hidden(self, idx: Tensor, cache: Cache | None = None) -> Tensor:
        """Everything below the output projection: token ids (B, T) -> the residual stream after `ln_f`, (B, T, C).

        Where the cache says which tokens are `wanted`, of those alone, (B, W, C): the last block leaves the others out.
        """
        positions = cache.positions(idx.size(1)) if cache else torch.arange(idx.size(1), device=idx.device)[None]
        x = self.embed(idx, positions)  # (B, T, C)
        rotation = self.rope(positions, x.dtype) if self.rope else None
        for block in self.blocks:
            x = block(x, rotation, cache)  # (B, T, C)
        return self.ln_f(x)

    def embed(self, idx: Tensor, positions: Tensor) -> Tensor:
        """A vector for each token, and for its place where places are learned: token ids (B, T) -> (B, T, C)."""
        x = self.wte(idx)  # (B, T, C)
        if self.wpe is not None:
            x = x + self.wpe(positions)  # (B, T, C)
        x = x.to(self.compute_dtype)
        return self.ln_emb(x)

    def logits(self, x: Tensor) -> Tensor:
        """Output projection of any positions: (..., C) -> (..., V), always fp32, soft-capped if the model is."""
        logits = self.lm_head(x).float()
        if self.config.soft_cap is not None:
            # bounds the scores smoothly to (-cap, cap); in fp32, or neighbouring scores would collapse
            logits = self.config.soft_cap * torch.tanh(logits / self.config.soft_cap)
        return logits

    @torch.no_grad()
    def init_weights(self, seed: int) -> "GPT":
        """Fill all weights, the same for a seed on every device: drawn on the CPU in the order of `named_parameters`."""
        generator = torch.Generator().manual_seed(seed)
        draw = {"nanochat": nanochat_init, "gpt2": gpt2_init}[self.config.init]
        for name, parameter in self.named_parameters():
            parameter.copy_(draw(name, parameter.shape, self.config, generator))
        return self

    @property
    def dtype_name(self) -> str:
        """`float32` or `bfloat16`: what the activations are in."""
        return str(self.compute_dtype).removeprefix("torch.")

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


class Block(nn.Module):
    """One layer: each half reads a normalised copy of the residual stream and adds its answer to it."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.is_last = layer == config.n_layer - 1
        self.ln_1 = make_norm(config)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = make_norm(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rotation, cache: Cache | None) -> Tensor:
        wanted = cache.wanted if cache and self.is_last else None
        x = at(x, wanted) + self.attn(self.ln_1(x), rotation, cache, wanted)  # (B, T, C)
        x = x + self.mlp(self.ln_2(x))  # (B, T, C)
        return x


class CausalSelfAttention(nn.Module):
    """Every token asks (q) all tokens up to itself (k) and takes a weighted mean of what they offer (v), H times in parallel.

    With n_kv_head < n_head several query heads share one head of keys and values (grouped queries, arXiv 2305.13245).
    """

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.n_head, self.n_kv_head, self.head_dim = config.n_head, config.n_kv_head, config.head_dim
        # three matrices rather than one fused c_attn: k and v may have fewer heads, and Muon orthogonalises each by itself
        self.c_q = Linear(config.n_embd, config.n_head * config.head_dim, bias=config.bias)
        self.c_k = Linear(config.n_embd, config.n_kv_head * config.head_dim, bias=config.bias)
        self.c_v = Linear(config.n_embd, config.n_kv_head * config.head_dim, bias=config.bias)
        self.c_proj = Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.qk_norm = config.qk_norm
        self.attend: Attention = {"sdpa": sdpa_attention, "naive": naive_attention}[config.attention]

    def forward(self, x: Tensor, rotation, cache: Cache | None, wanted: Tensor | None = None) -> Tensor:
        B, T, C = x.shape
        q = self.c_q(at(x, wanted)).view(B, -1, self.n_head, self.head_dim)  # (B, T, H, D)
        k = self.c_k(x).view(B, T, self.n_kv_head, self.head_dim)  # (B, T, G, D)
        v = self.c_v(x).view(B, T, self.n_kv_head, self.head_dim)  # (B, T, G, D)
        if rotation is not None:
            q = rotate(q, *(at(angles, wanted) for angles in rotation))  # (B, T, H, D)
            k = rotate(k, *rotation)  # (B, T, G, D)
        if self.qk_norm:
            # bounds every score to sqrt(D), so that attention cannot saturate (arXiv 2302.05442)
            q = rms_norm(q)  # (B, T, H, D)
            k = rms_norm(k)  # (B, T, G, D)
        q = q.transpose(1, 2)  # (B, H, T, D)
        k = k.transpose(1, 2)  # (B, G, T, D)
        v = v.transpose(1, 2)  # (B, G, T, D)
        y = cache.attend(self.layer, q, k, v, self.attend) if cache else self.attend(q, k, v, None)  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, -1, C)  # (B, T, C)
        return self.c_proj(y)


class MLP(nn.Module):
    """Each token by itself: widen to 4 C, bend, narrow back. Holds two thirds of a block's parameters."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.activation: Callable[[Tensor], Tensor] = relu_squared if config.mlp == "relu2" else F.gelu

    def forward(self, x: Tensor) -> Tensor:
        h = self.c_fc(x)  # (B, T, F)
        h = self.activation(h)  # (B, T, F)
        x = self.c_proj(h)  # (B, T, C)
        return x


# -- attention ---------------------------------------------------------------------------------------------------------------


def naive_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """Softmax attention written out: scores, mask, softmax, weighted mean. The reference for every faster one.

    `visible` (..., T, S) says which keys each query sees; None: those up to its own place.
    """
    if visible is None:
        visible = torch.ones(q.size(2), k.size(2), dtype=torch.bool, device=q.device).tril()
    k = k.repeat_interleave(q.size(1) // k.size(1), dim=1)  # (B, H, S, D)
    v = v.repeat_interleave(q.size(1) // v.size(1), dim=1)  # (B, H, S, D)
    scores = q @ k.transpose(2, 3) / math.sqrt(q.size(3))  # (B, H, T, S)
    scores = scores.float().masked_fill(~visible, float("-inf"))  # (B, H, T, S)
    weights = scores.softmax(dim=3).to(v.dtype)  # (B, H, T, S)
    y = weights @ v  # (B, H, T, D)
    return y


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """The same through PyTorch's fused kernels, which never write the (T, S) scores to memory."""
    y = F.scaled_dot_product_attention(
        q, k, v, attn_mask=visible, is_causal=visible is None, enable_gqa=q.size(1) != k.size(1)
    )  # (B, H, T, D)
    return y


class RotaryEmbedding(nn.Module):
    """RoPE (arXiv 2104.09864): position p turns the i-th pair of a head by the angle p * base^(-2i/D)."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: GPTConfig):
        super().__init__()
        pairs = torch.arange(0, config.head_dim, 2, dtype=torch.float32)
        frequency = config.rope_base ** (-pairs / config.head_dim)
        angle = torch.arange(ROPE_TABLE_FACTOR * config.sequence_len, dtype=torch.float32)[:, None] * frequency
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Positions (B or 1, T) -> cosine and sine, each (B or 1, T, 1, D/2): one angle a pair, the same in all heads."""
        return self.cos[positions].to(dtype)[:, :, None], self.sin[positions].to(dtype)[:, :, None]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    # a pair is (i, i + D/2); both halves must use the same angle, or attention depends on absolute position
    x1, x2 = x.chunk(2, dim=3)
    return torch.cat([x1 * cos + x2 * sin, x2 * cos - x1 * sin], dim=3)


# -- small parts -------------------------------------------------------------------------------------------------------------


class Linear(nn.Linear):
    """`nn.Linear` whose fp32 weight is cast to the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` (arXiv 1607.06450) whose fp32 gain and bias are cast to the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class RMSNorm(nn.Module):
    """Root-mean-square norm (arXiv 1910.07467) without a learned gain: the next matrix can scale as well."""

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x)


def at(x: Tensor, wanted: Tensor | None) -> Tensor:
    """Of a row's tokens those that are wanted: (B, T, ...) -> (B, W, ...)."""
    return x if wanted is None else x[:, wanted]


def rms_norm(x: Tensor) -> Tensor:
    """Divide each vector (..., C) by the root of the mean of its squares."""
    if x.device.type == "cpu" and not torch.is_grad_enabled():
        # reads x twice where PyTorch's goes over it five times: a third of the time
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square()  # (..., 1)
        return torch.mul(x, (squares / x.size(-1) + NORM_EPS).rsqrt(), out=torch.empty_like(x))
    return F.rms_norm(x, (x.size(-1),), eps=NORM_EPS)


def relu_squared(x: Tensor) -> Tensor:
    """Cheap and sparse, and slightly better than GELU at equal cost (Primer, arXiv 2109.08668)."""
    return F.relu(x).square()


def make_norm(config: GPTConfig) -> nn.Module:
    return RMSNorm() if config.norm == "rms" else LayerNorm(config.n_embd)


# -- initial weights ---------------------------------------------------------------------------------------------------------


def nanochat_init(name: str, shape: torch.Size, config: GPTConfig, generator: torch.Generator) -> Tensor:
    """Every block starts as the identity (its output projections are zero) and all tokens as equally likely (zero head)."""
    if name.endswith("c_proj.weight") or name == "lm_head.weight":
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape) if is_gain(name) else torch.zeros(shape)
    if name in ("wte.weight", "wpe.weight"):
        return torch.randn(shape, generator=generator)
    fan_out, fan_in = shape
    return torch.randn(shape, generator=generator) * min(1.0, math.sqrt(fan_out / fan_in)) / math.sqrt(fan_in)


def gpt2_init(name: str, shape: torch.Size, config: GPTConfig, generator: torch.Generator) -> Tensor:
    """N(0, 0.02); output projections smaller by sqrt(2 L), since 2 L of them add up in the residual stream."""
    if len(shape) == 1:
        return torch.ones(shape) if is_gain(name) else torch.zeros(shape)
    std = 0.02 / math.sqrt(2 * config.n_layer) if name.endswith("c_proj.weight") else 0.02
    return torch.randn(shape, generator=generator) * std


def is_gain(name: str) -> bool:
    """Whether a vector scales (a norm's weight) rather than shifts (a bias)."""
    return name.endswith(".weight")
