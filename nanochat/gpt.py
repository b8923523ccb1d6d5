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
from nanochat.presets import (
    OFF,
    PRESETS,
    SMEAR_CHANNELS,
    VALUE_CHANNELS,
    WINDOW_MULTIPLE,
    has_value_embedding,
    layer_windows,
)

ROPE_TABLE_FACTOR = 10  # rotations are prepared for 10x the training length, so that a chat may grow longer than a row
NORM_EPS = 1e-6  # given explicitly: PyTorch's default depends on the dtype (0.0078 for bfloat16)
WINDOW_BLOCK = WINDOW_MULTIPLE  # queries that share their keys where attention has a window


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
    init: str = "nanochat"  # nanochat | gpt2 | speedrun
    rope_base: float = 10000.0
    # the components of 2026, all off
    window_pattern: str = "L"  # tiled over the blocks. L sees all before it, S a quarter of a row; the last block is always L
    value_embedding: bool = False
    residual_scales: bool = False
    embedding_scales: bool = False
    smear: bool = False
    backout: bool = False
    qk_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.n_embd % self.n_head:
            raise UserError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        if self.n_head % self.n_kv_head:
            raise UserError(f"n_head {self.n_head} is not a multiple of n_kv_head {self.n_kv_head}")
        if self.positions == "rope" and self.head_dim % 2:
            raise UserError(f"rope turns pairs of numbers, and the head width {self.head_dim} is odd")
        if not self.window_pattern or set(self.window_pattern) - set("SL"):
            raise UserError(f"window_pattern {self.window_pattern!r} is not made of S (a short window) and L (a long one)")

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    def has_values(self, layer: int) -> bool:
        return self.value_embedding and has_value_embedding(layer, self.n_layer)

    @classmethod
    def preset(cls, name: str, **sizes) -> "GPTConfig":
        """The components of `nanochat`, `textbook` or `speedrun`, with the given sizes (and components) on top."""
        if name not in PRESETS:
            raise UserError(f"model preset {name!r} is unknown; there are {', '.join(sorted(PRESETS))}")
        return cls(**{**PRESETS[name], **sizes})

    def as_dict(self) -> dict:
        """All fields, but for components of 2026 that are off: so models without them are written as they always were."""
        return {key: value for key, value in asdict(self).items() if key not in OFF or value != OFF[key]}


Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


class Cache(Protocol):
    """Where the new tokens stand in their sequences, which token is before each of them, and what each of them attends to.

    `nanochat.kv_cache.KVCache`: also to the tokens read before. `nanochat.batching.PackedTrees`: only to those of its sequence.
    """

    wanted: Tensor | None  # (W,) those of the T new tokens whose hidden states are asked for; None: of all

    def positions(self, num_tokens: int) -> Tensor: ...
    def before(self, x: Tensor) -> Tensor: ...
    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, attention: Attention, window: int | None = None
    ) -> Tensor: ...


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
        self.add_components_of_2026(config)

    def add_components_of_2026(self, config: GPTConfig) -> None:
        """What a model has beyond its tables, blocks and head; without any of them, its weights are those it always had."""
        with_values, width = filter(config.has_values, range(config.n_layer)), config.n_kv_head * config.head_dim
        self.value_embeds = nn.ModuleDict({str(layer): nn.Embedding(config.vocab_size, width) for layer in with_values})
        if config.residual_scales:
            self.resid_lambdas = nn.Parameter(torch.ones(config.n_layer))
        if config.embedding_scales:
            self.x0_lambdas = nn.Parameter(torch.zeros(config.n_layer))
        if config.smear:
            self.smear_gate = Linear(min(SMEAR_CHANNELS, config.n_embd), 1, bias=False)
            self.smear_lambda = nn.Parameter(torch.zeros(1))
        if config.backout:
            self.backout_lambda = nn.Parameter(torch.zeros(1))

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
        if self.config.smear:
            x = self.smear(x, cache)  # (B, T, C)
        rotation = self.rope(positions, x.dtype) if self.rope else None
        x0 = x
        for layer, block in enumerate(self.blocks):
            if self.config.residual_scales or self.config.embedding_scales:
                x = self.scale(x, x0, layer)  # (B, T, C)
            values = self.value_embeds[str(layer)](idx) if str(layer) in self.value_embeds else None
            x = block(x, rotation, cache, values)  # (B, T, C)
            if layer == len(self.blocks) // 2:
                halfway = x
        if self.config.backout:
            x = self.back_out(x, halfway, cache)  # (B, T, C)
        return self.ln_f(x)

    def embed(self, idx: Tensor, positions: Tensor) -> Tensor:
        """A vector for each token, and for its place where places are learned: token ids (B, T) -> (B, T, C)."""
        x = self.wte(idx)  # (B, T, C)
        if self.wpe is not None:
            x = x + self.wpe(positions)  # (B, T, C)
        x = x.to(self.compute_dtype)
        return self.ln_emb(x)

    def smear(self, x: Tensor, cache: Cache | None) -> Tensor:
        """Mix the token before into each one's embedding: x_t + lambda sigmoid(w x_t[:24]) x_{t-1}; (B, T, C) -> (B, T, C).

        Pairs of tokens are known before the first block, which need not look back for them. A sequence's first token stays as
        it is. From modded-nanogpt.
        """
        before = cache.before(x) if cache else F.pad(x, (0, 0, 1, -1))  # (B, T, C)
        gate = self.smear_lambda.to(x.dtype) * torch.sigmoid(self.smear_gate(x[..., :SMEAR_CHANNELS]))
        return x + gate * before

    def scale(self, x: Tensor, x0: Tensor, layer: int) -> Tensor:
        """What a block reads and adds to: r_i x + e_i x_0, of the stream x and the embedding x_0, each (B, T, C).

        Residual scales (r) let the stream forget what early blocks wrote, embedding scales (e) bring the token itself back.
        Two numbers a block. From modded-nanogpt.
        """
        if self.config.residual_scales:
            x = self.resid_lambdas[layer] * x  # (B, T, C)
        if self.config.embedding_scales:
            x = x + self.x0_lambdas[layer] * x0  # (B, T, C)
        return x

    def back_out(self, x: Tensor, halfway: Tensor, cache: Cache | None) -> Tensor:
        """Take back a share of what the stream held after the block in the middle: x - lambda x_half; (B, T, C) -> (B, T, C).

        What the first blocks wrote for the others to read is of no use to the output projection. From modded-nanogpt.
        """
        if halfway.size(1) > x.size(1):  # the last block left out those that are not wanted
            halfway = at(halfway, cache.wanted if cache else None)
        return x - self.backout_lambda.to(x.dtype) * halfway

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
        draw = {"nanochat": nanochat_init, "gpt2": gpt2_init, "speedrun": speedrun_init}[self.config.init]
        for name, parameter in self.named_parameters():
            begin = component_init if is_of_2026(name) else draw
            parameter.copy_(begin(name, parameter.shape, self.config, generator))
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

    def forward(self, x: Tensor, rotation, cache: Cache | None, values: Tensor | None = None) -> Tensor:
        wanted = cache.wanted if cache and self.is_last else None
        x = at(x, wanted) + self.attn(self.ln_1(x), rotation, cache, values, wanted)  # (B, T, C)
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
        self.qk_scale = config.qk_scale
        self.window = layer_windows(config.window_pattern, config.n_layer, config.sequence_len)[layer]
        if config.has_values(layer):
            self.value_gate = Linear(min(VALUE_CHANNELS, config.n_embd), config.n_kv_head, bias=False)
        self.attend: Attention = {"sdpa": sdpa_attention, "naive": naive_attention}[config.attention]

    def forward(
        self, x: Tensor, rotation, cache: Cache | None, values: Tensor | None = None, wanted: Tensor | None = None
    ) -> Tensor:
        B, T, C = x.shape
        q = self.c_q(at(x, wanted)).view(B, -1, self.n_head, self.head_dim)  # (B, T, H, D)
        k = self.c_k(x).view(B, T, self.n_kv_head, self.head_dim)  # (B, T, G, D)
        v = self.c_v(x).view(B, T, self.n_kv_head, self.head_dim)  # (B, T, G, D)
        if values is not None:
            v = self.add_values(v, x, values)  # (B, T, G, D)
        if rotation is not None:
            q = rotate(q, *(at(angles, wanted) for angles in rotation))  # (B, T, H, D)
            k = rotate(k, *rotation)  # (B, T, G, D)
        if self.qk_norm:
            # bounds every score to sqrt(D), so that attention cannot saturate (arXiv 2302.05442)
            q = rms_norm(q)  # (B, T, H, D)
            k = rms_norm(k)  # (B, T, G, D)
        if self.qk_scale != 1.0:
            # sharper attention than unit vectors allow: the scores are as if q and k were both multiplied by it
            q = self.qk_scale**2 * q  # (B, T, H, D)
        q = q.transpose(1, 2)  # (B, H, T, D)
        k = k.transpose(1, 2)  # (B, G, T, D)
        v = v.transpose(1, 2)  # (B, G, T, D)
        if cache:
            y = cache.attend(self.layer, q, k, v, self.attend, self.window)  # (B, H, T, D)
        elif self.window is not None:
            y = windowed(self.attend, q, k, v, self.window)  # (B, H, T, D)
        else:
            y = self.attend(q, k, v, None)  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, -1, C)  # (B, T, C)
        return self.c_proj(y)

    def add_values(self, v: Tensor, x: Tensor, values: Tensor) -> Tensor:
        """v + 3 sigmoid(W x[:12]) E[token], a gate for each head: values (B, T, G D) that a token brings by being itself.

        Value embeddings: what a token has to say need not pass through the stream. They add parameters that cost no
        multiplications. From modded-nanogpt, after ResFormer (arXiv 2410.17897).
        """
        gate = 3 * torch.sigmoid(self.value_gate(x[..., :VALUE_CHANNELS]))  # (B, T, G)
        return v + gate[..., None] * values.to(v.dtype).view_as(v)


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


def windowed(attend: Attention, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Attention in which a token sees itself and the `window` before it: q (B, H, T, D), k and v (B, G, T, D) -> (B, H, T, D).

    Queries go in blocks, each with the keys that any of them sees, so work grows with T and not with its square. Most of what
    matters is near, and the blocks that see all carry the rest (Longformer, arXiv 2004.05150; modded-nanogpt). A back end that
    knows windows by itself (`nanochat.flash`) gets the whole.
    """
    if own := getattr(attend, "windowed", None):
        return own(q, k, v, window)
    if q.size(2) <= window + 1:
        return attend(q, k, v, None)
    keys, values = k.split(WINDOW_BLOCK, dim=2), v.split(WINDOW_BLOCK, dim=2)
    distance = torch.arange(WINDOW_BLOCK, device=q.device)[:, None] - torch.arange(-window, WINDOW_BLOCK, device=q.device)
    visible = (distance >= 0) & (distance <= window)
    pieces = []
    for number, queries in enumerate(q.split(WINDOW_BLOCK, dim=2)):
        first, num_queries = max(0, number - window // WINDOW_BLOCK), queries.size(2)
        seen = visible[:num_queries, window - (number - first) * WINDOW_BLOCK : window + num_queries]
        k, v = torch.cat(keys[first : number + 1], dim=2), torch.cat(values[first : number + 1], dim=2)
        pieces.append(attend(queries, k, v, seen))
    return torch.cat(pieces, dim=2)


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

    cast: Tensor | None = None  # the weight in that dtype, where it was cast for several uses (`nanochat.casts`)

    def weight_in(self, dtype: torch.dtype) -> Tensor:
        return self.weight.to(dtype) if self.cast is None else self.cast

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight_in(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


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


def speedrun_init(name: str, shape: torch.Size, config: GPTConfig, generator: torch.Generator) -> Tensor:
    """As nanochat's, with uniform matrices, quieter tables and MLPs, and a head that already tells tokens apart."""
    if name.endswith("c_proj.weight"):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape) if is_gain(name) else torch.zeros(shape)
    if name in ("wte.weight", "wpe.weight", "lm_head.weight"):
        return torch.randn(shape, generator=generator) * (0.001 if name == "lm_head.weight" else 0.8)
    return uniform(shape, 0.4 if name.endswith("c_fc.weight") else 1.0, config, generator)


def component_init(name: str, shape: torch.Size, config: GPTConfig, generator: torch.Generator) -> Tensor:
    """The components of 2026, whichever `init` the others have: scales that fall with depth, gates slightly open."""
    depth = torch.arange(config.n_layer) / max(config.n_layer - 1, 1)  # 0 in the first block, 1 in the last
    if name.endswith("gate.weight"):
        return torch.rand(shape, generator=generator) * 0.02
    if name.startswith("value_embeds."):
        return uniform(shape, 1.0, config, generator)
    return {
        "resid_lambdas": 1.15 - 0.10 * depth,
        "x0_lambdas": 0.20 - 0.15 * depth,
        "smear_lambda": torch.zeros(1),
        "backout_lambda": torch.full((1,), 0.2),
    }[name]


def is_of_2026(name: str) -> bool:
    return name.endswith(("_lambda", "_lambdas", "_gate.weight")) or name.startswith("value_embeds.")


def uniform(shape: torch.Size, scale: float, config: GPTConfig, generator: torch.Generator) -> Tensor:
    """Of variance scale^2 / C, without the outliers of a normal distribution."""
    bound = scale * math.sqrt(3 / config.n_embd)
    return (2 * torch.rand(shape, generator=generator) - 1) * bound


def is_gain(name: str) -> bool:
    """Whether a vector scales (a norm's weight) rather than shifts (a bias)."""
    return name.endswith(".weight")
