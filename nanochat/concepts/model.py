"""The concepts of the model, in the order in which a token meets them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nanochat.concepts.concept import Concept, at

if TYPE_CHECKING:
    from nanochat.gpt import GPTConfig


# -- from text to the residual stream ------------------------------------------------------------------------------------------


def tokenizer(config: GPTConfig) -> Concept:
    return Concept(
        name="Tokenizer",
        group="model",
        summary="Text becomes token ids. A pattern cuts it into words, numbers and signs; in each piece byte-pair encoding "
        "joins bytes to the longest tokens that it learned. A document begins with the token <|bos|>.",
        equation=r"\text{text} \mapsto (t_1, \dots, t_T), \quad 0 \le t_i \le V - 1",
        places=(
            at("tokenizer.Tokenizer.encode"),
            at("tokenizer.Tokenizer.encode", code="self._encoding.encode_ordinary(piece)"),
            at("tokenizer.SPLIT_PATTERN"),
            at("tokenizer.Tokenizer.train"),
            at("tokenizer.SPECIAL_TOKENS"),
        ),
        change="A larger vocabulary gives fewer tokens for the same text, and larger tables in the model; a smaller one, the "
        "opposite.",
        edits={"tokenizer.vocab_size": config.vocab_size // 2 if config.vocab_size >= 1024 else config.vocab_size * 2},
    )


def token_embedding(config: GPTConfig) -> Concept:
    norm = [at("gpt.GPT.embed", code="self.ln_emb(x)")] if config.norm_embedding else []
    return Concept(
        name="Token embedding",
        group="model",
        summary="Each token id looks up its row in a table of V rows: a vector of C numbers, the beginning of the residual "
        "stream. " + ("The vector is normalised at once." if config.norm_embedding else ""),
        equation=r"x_t = E[\mathrm{idx}_t], \quad E \in \mathbb{R}^{V \times C}",
        places=(
            at("gpt.GPT.embed", code="self.wte(idx)"),
            at("gpt.GPT.__init__", assigns="wte"),
            at("gpt.GPT.embed"),
            *norm,
        ),
        change="With the norm, all tokens enter the first block with the same length; without it, with the length that "
        "training gave them.",
        edits={"base_train.model.norm_embedding": not config.norm_embedding},
        owns=r"wte\.weight",
    )


def smear(config: GPTConfig) -> Concept | None:
    if not config.smear:
        return None
    return Concept(
        name="Smear",
        group="model",
        summary="A share of the token before is mixed into each token's embedding, so that pairs of tokens are known before "
        "the first block. A gate, which reads 24 of its numbers, says how much. A sequence's first token stays as it is.",
        equation=r"x_t \leftarrow x_t + \lambda \sigma(w \cdot x_{t,1:24}) x_{t-1}",
        places=(
            at("gpt.GPT.smear"),
            at("gpt.GPT.hidden", code="self.smear(x, cache)"),
            at("gpt.GPT.smear", assigns="before"),
            at("gpt.GPT.smear", assigns="gate"),
            at("gpt.GPT.smear", code="x + gate * before"),
            at("gpt.GPT.add_components_of_2026", assigns="smear_lambda"),
            at("kv_cache.KVCache.before"),
        ),
        change="Without it, the first block has to find the token before by attention.",
        edits={"base_train.model.smear": False},
        owns=r"smear_gate\.weight|smear_lambda",
    )


def positional_embedding(config: GPTConfig) -> Concept:
    return learned_positions(config) if config.positions == "learned" else rotary_positions(config)


def learned_positions(config: GPTConfig) -> Concept:
    return Concept(
        name="Positional embedding",
        group="model",
        summary="A second table has a learned vector for each position. It is added to the token's vector, so the model "
        "cannot read beyond the last position that it was trained with.",
        equation=r"x_t \leftarrow x_t + P[t], \quad P \in \mathbb{R}^{T \times C}",
        places=(
            at("gpt.GPT.embed", code="x + self.wpe(positions)"),
            at("gpt.GPT.__init__", assigns="wpe"),
            at("gpt.GPT.hidden", assigns="positions"),
        ),
        change="With rope the table is gone, and queries and keys are turned instead: the model may read texts longer than its "
        "training rows.",
        edits={"base_train.model.positions": "rope"},
        owns=r"wpe\.weight",
    )


def rotary_positions(config: GPTConfig) -> Concept:
    return Concept(
        name="Positional embedding",
        group="model",
        summary="There is no table of positions and nothing to learn (RoPE). In every block, queries and keys are turned, pair "
        "by pair of their numbers, by an angle that grows with the position. A product of a query and a key then "
        "depends on how far apart they are, and not on where.",
        equation=r"x'_i = x_i \cos p \theta_i + x_{i + D/2} \sin p \theta_i, \quad "
        r"x'_{i + D/2} = x_{i + D/2} \cos p \theta_i - x_i \sin p \theta_i, \quad \theta_i = b^{-2i/D}",
        places=(
            at("gpt.rotate"),
            at("gpt.rotate", code="torch.cat([x1 * cos + x2 * sin, x2 * cos - x1 * sin], dim=3)"),
            at("gpt.RotaryEmbedding"),
            at("gpt.RotaryEmbedding.__init__", assigns="frequency"),
            at("gpt.GPT.hidden", assigns="rotation"),
            at("gpt.CausalSelfAttention.forward", code="rotate(q, *(at(angles, wanted) for angles in rotation))"),
            at("gpt.CausalSelfAttention.forward", code="rotate(k, *rotation)"),
        ),
        change="With learned, a table wpe of T rows appears, as in GPT-2. Another rope_base turns faster or slower.",
        edits={"base_train.model.positions": "learned", "base_train.model.rope_base": 10 * config.rope_base},
    )


# -- inside the blocks ---------------------------------------------------------------------------------------------------------


def layer_normalization(config: GPTConfig) -> Concept:
    places = [
        at("gpt.make_norm"),
        at("gpt.Block.__init__", assigns="ln_1"),
        at("gpt.Block.__init__", assigns="ln_2"),
        at("gpt.GPT.__init__", assigns="ln_f"),
        *([at("gpt.GPT.__init__", assigns="ln_emb")] if config.norm_embedding else []),
    ]
    shared: dict[str, Any] = {
        "name": "Layer normalization",
        "group": "model",
        "owns": r"(blocks\.\d+\.ln_[12]|ln_f|ln_emb)\.(weight|bias)",
    }
    if config.norm == "layer":
        return Concept(
            **shared,
            summary="Before each half of a block and at the end, every token's vector is shifted to mean 0 and scaled to "
            "variance 1, then multiplied by a learned gain and shifted by a learned bias.",
            equation=r"\mathrm{LN}(x) = g \odot \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + b, \quad "
            r"\mu = \frac{1}{C} \sum_i x_i, \quad \sigma^2 = \frac{1}{C} \sum_i (x_i - \mu)^2",
            places=(at("gpt.LayerNorm"), at("gpt.LayerNorm.forward", code=LAYER_NORM), *places),
            change="With rms there is no mean to subtract and nothing to learn. Compare the validation losses.",
            edits={"base_train.model.norm": "rms"},
        )
    return Concept(
        **shared,
        summary="Before each half of a block and at the end, every token's vector is scaled to a root mean square of "
        "1. No mean is subtracted, and nothing is learned (RMSNorm without gain).",
        equation=r"\mathrm{norm}(x) = \frac{x}{\sqrt{\frac{1}{C} \sum_i x_i^2 + \epsilon}}",
        places=(at("gpt.rms_norm"), at("gpt.rms_norm", code="F.rms_norm(x, (x.size(-1),), eps=NORM_EPS)"), *places),
        change="With layer, each norm has a gain and a bias to learn, as in GPT-2.",
        edits={"base_train.model.norm": "layer"},
    )


LAYER_NORM = "F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)"


def self_attention(config: GPTConfig) -> Concept:
    forward = "gpt.CausalSelfAttention.forward"
    kernel = {
        "naive": (),
        "sdpa": (at("gpt.sdpa_attention"),),
    }[config.attention]
    how = {
        "naive": "Scores, mask, softmax and mean are written out.",
        "sdpa": "One fused kernel computes scores, mask, softmax and mean without writing the scores to memory; "
        "naive_attention writes the same out.",
    }[config.attention]
    groups = "" if config.n_kv_head == config.n_head else " Several heads of queries share a head of keys and values."
    return Concept(
        name="Multi-head self-attention",
        group="model",
        summary="From every token's normalised vector three matrices make a query, a key and a value, cut into H heads "
        "of width D. In each head a query is compared with the keys of all tokens up to its own; softmax makes weights "
        f"of the scores, and the weighted mean of the values is the head's answer. A fourth matrix mixes the heads. "
        f"{how}{groups}",
        equation=r"\mathrm{head}_h = \operatorname{softmax}\left(\frac{q_h k_h^\top}{\sqrt{D}} + M\right) v_h, \quad "
        r"y = W_O [\mathrm{head}_1, \dots, \mathrm{head}_H], \quad q = W_Q x, \quad k = W_K x, \quad v = W_V x",
        places=(
            at(forward),
            at(forward, code="q = self.c_q(at(x, wanted)).view(B, -1, self.n_head, self.head_dim)"),
            at(forward, code="k = self.c_k(x).view(B, T, self.n_kv_head, self.head_dim)"),
            at(forward, code="v = self.c_v(x).view(B, T, self.n_kv_head, self.head_dim)"),
            at(forward, code="self.attend(q, k, v, None)"),
            *kernel,
            at("gpt.naive_attention", code="q @ k.transpose(2, 3) / math.sqrt(q.size(3))"),
            at("gpt.naive_attention", code="scores.softmax(dim=3).to(v.dtype)"),
            at("gpt.naive_attention", code="weights @ v"),
            at(forward, code="y.transpose(1, 2).reshape(B, -1, C)"),
            at(forward, code="self.c_proj(y)"),
        ),
        change="The heads share the width: the more there are, the narrower is each, and the more patterns there are "
        "to attend by. With the other attention the results agree up to rounding; naive shows the weights, sdpa is faster.",
        edits={
            **other_heads(config),
            "base_train.model.attention": "naive" if config.attention == "sdpa" else "sdpa",
        },
        owns=r"blocks\.\d+\.attn\.c_.+",
        attends=True,
    )


def other_heads(config: GPTConfig) -> dict[str, int]:
    """Another number of heads that the width can be shared out to: twice as many, or whatever is nearest to that."""
    width = config.n_embd
    possible = [n for n in range(1, width // 2 + 1) if width % n == 0 and width // n % 2 == 0 and n != config.n_head]
    return {"base_train.heads": min(possible, key=lambda n: abs(n - 2 * config.n_head))} if possible else {}


def qk_norm(config: GPTConfig) -> Concept | None:
    if not config.qk_norm:
        return None
    return Concept(
        name="QK-norm",
        group="model",
        summary="Each head's queries and keys are normalised after they were turned, so that no score exceeds the "
        "square root of D, however large the matrices grow.",
        equation=r"q \leftarrow \mathrm{norm}(q), \quad k \leftarrow \mathrm{norm}(k), \quad "
        r"\left\lvert \frac{q \cdot k}{\sqrt{D}} \right\rvert \le \sqrt{D}",
        places=(
            at("gpt.CausalSelfAttention.forward", code="rms_norm(q)"),
            at("gpt.CausalSelfAttention.forward", code="rms_norm(k)"),
            at("gpt.CausalSelfAttention.__init__", assigns="qk_norm"),
        ),
        change="Without it scores are unbounded, as in GPT-2; large models may then diverge (arXiv 2302.05442).",
        edits={"base_train.model.qk_norm": False},
    )


def qk_scale(config: GPTConfig) -> Concept | None:
    if config.qk_scale == 1.0:
        return None
    return Concept(
        name="QK-scale",
        group="model",
        summary=f"Queries and keys are multiplied by {config.qk_scale:g}: normalised vectors bound the scores, and a larger "
        "bound allows sharper attention. The code multiplies the queries by its square, which gives the same scores.",
        equation=r"q \leftarrow c q, \quad k \leftarrow c k, \quad \left\lvert \frac{q \cdot k}{\sqrt{D}} \right\rvert "
        r"\le c^2 \sqrt{D}",
        places=(
            at("gpt.CausalSelfAttention.forward", code="self.qk_scale**2 * q"),
            at("gpt.CausalSelfAttention.__init__", assigns="qk_scale"),
        ),
        change="1: attention as soft as the norm makes it.",
        edits={"base_train.model.qk_scale": 1.0},
    )


def attention_windows(config: GPTConfig) -> Concept | None:
    if config.window_pattern == "L":
        return None
    return Concept(
        name="Attention windows",
        group="model",
        summary=f"The pattern {config.window_pattern}, repeated over the blocks, says which of them see all tokens (L) and "
        "which a window of w tokens before each, a quarter of a row (S); the last block sees all. With a window, work grows "
        "with the length of the text and not with its square.",
        equation=r"M_{ts} = 0 \text{ for } t - w \le s \le t, \quad M_{ts} = -\infty \text{ for all other } s",
        places=(
            at("gpt.windowed"),
            at("gpt.CausalSelfAttention.forward", code="windowed(self.attend, q, k, v, self.window)"),
            at("gpt.CausalSelfAttention.__init__", assigns="window"),
            at("presets.layer_windows"),
            at("gpt.windowed", assigns="visible"),
            at("kv_cache.KVCache.visible_within"),
        ),
        change="L: every block sees all. More L cost more, and may know more of what is far away.",
        edits={"base_train.model.window_pattern": "L"},
    )


def value_embedding(config: GPTConfig) -> Concept | None:
    if not config.value_embedding:
        return None
    return Concept(
        name="Value embeddings",
        group="model",
        summary="In every second block, a token's values get a part that depends on the token alone: its row in a table of "
        "that block, times a gate for each head that reads 12 numbers of the normalised vector. The tables hold many "
        "parameters and cost no multiplications.",
        equation=r"v \leftarrow v + 3 \sigma(W_g x_{1:12}) E_v[\mathrm{idx}]",
        places=(
            at("gpt.CausalSelfAttention.add_values"),
            at("gpt.CausalSelfAttention.add_values", assigns="gate"),
            at("gpt.CausalSelfAttention.forward", code="self.add_values(v, x, values)"),
            at("gpt.GPT.hidden", assigns="values"),
            at("gpt.GPT.add_components_of_2026", assigns="value_embeds"),
            at("gpt.CausalSelfAttention.__init__", assigns="value_gate"),
            at("presets.has_value_embedding"),
        ),
        change="Without them the model has far fewer parameters, and multiplies nearly as many.",
        edits={"base_train.model.value_embedding": False},
        owns=r"value_embeds\.\d+\.weight|blocks\.\d+\.attn\.value_gate\.weight",
    )


def causal_mask(config: GPTConfig) -> Concept:
    naive = (
        at("gpt.naive_attention", code="torch.ones(q.size(2), k.size(2), dtype=torch.bool, device=q.device).tril()"),
        at("gpt.naive_attention", code='scores.float().masked_fill(~visible, float("-inf"))'),
    )
    fused = (at("gpt.sdpa_attention", code="visible is None"),)
    how = (
        "a triangle of ones is made in each call" if config.attention == "naive" else "the fused kernel is told so (is_causal)"
    )
    return Concept(
        name="Causal mask",
        group="model",
        summary="A token must not see what follows it, or predicting the next one would be copying. The scores of "
        f"later tokens are set to minus infinity, so that softmax gives them weight 0. There is no mask among the "
        f"parameters or buffers: {how}; while generating, keys behind a query's own position are hidden.",
        equation=r"M_{ts} = 0 \text{ for } s \le t, \quad M_{ts} = -\infty \text{ for } s > t",
        places=(
            *(naive if config.attention == "naive" else fused),
            at("gpt.CausalSelfAttention.forward", code="self.attend(q, k, v, None)"),
            at(
                "kv_cache.KVCache.positions",
                code="torch.arange(end, device=device) <= self._positions[:, None, :, None]",
            ),
            *(() if config.attention == "naive" else naive),
        ),
        change="No key removes the mask: a model without it learns to copy (an exercise shows it). naive attention shows the "
        "masked weights in the trace.",
        edits={"base_train.model.attention": "naive" if config.attention == "sdpa" else "sdpa"},
    )


def feed_forward(config: GPTConfig) -> Concept:
    is_relu2 = config.mlp == "relu2"
    bend = "set to 0 where it is negative and squared where it is not" if is_relu2 else "bent by GELU"
    biases = " + b_1" if config.bias else "", " + b_2" if config.bias else ""
    inside = f"W_1 x{biases[0]}"
    activation = rf"\max(0, {inside})^2" if is_relu2 else rf"\mathrm{{GELU}}({inside})"
    also = "" if is_relu2 else r", \quad \mathrm{GELU}(z) = z \Phi(z)"
    return Concept(
        name="Feed-forward",
        group="model",
        summary=f"Each token by itself: its vector is widened to 4 C numbers, each is {bend}, and they are narrowed back to C. "
        "Most of a block's parameters are here.",
        equation=rf"\mathrm{{MLP}}(x) = W_2 {activation}{biases[1]}{also}",
        places=(
            at("gpt.MLP.forward"),
            at("gpt.MLP.forward", code="self.c_fc(x)"),
            at("gpt.MLP.forward", code="self.activation(h)"),
            at("gpt.MLP.forward", code="self.c_proj(h)"),
            at("gpt.MLP.__init__", assigns="activation"),
            *((at("gpt.relu_squared"),) if is_relu2 else ()),
        ),
        change="The other activation: the loss after the same number of steps.",
        edits={"base_train.model.mlp": "gelu" if is_relu2 else "relu2"},
        owns=r"blocks\.\d+\.mlp\..+",
    )


def residual_connection(config: GPTConfig) -> Concept:
    start = (
        "the output projections begin smaller, since 2 L of them add up"
        if config.init == "gpt2"
        else "the output projections begin at 0, so at first every block passes the stream on unchanged"
    )
    return Concept(
        name="Residual connection",
        group="model",
        summary="Neither half of a block replaces the vector that it reads: it adds to it. The sum that runs through "
        f"all blocks, the residual stream, is what carries a token's meaning and, backwards, the gradient. "
        f"{start[0].upper()}{start[1:]}.",
        equation=r"x \leftarrow x + \mathrm{Attention}(\mathrm{norm}_1(x)), \quad "
        r"x \leftarrow x + \mathrm{MLP}(\mathrm{norm}_2(x))",
        places=(
            at("gpt.Block.forward"),
            at("gpt.Block.forward", code="at(x, wanted) + self.attn(self.ln_1(x), rotation, cache, values, wanted)"),
            at("gpt.Block.forward", code="x + self.mlp(self.ln_2(x))"),
            at("gpt.GPT.hidden", code="x = block(x, rotation, cache, values)"),
            at(f"gpt.{config.init}_init"),
        ),
        change="More or fewer blocks add to the same stream; the other init begins them differently. The trace shows how the "
        "stream grows.",
        edits={
            "base_train.depth": config.n_layer * 2 if config.n_layer < 100 else config.n_layer // 2,
            "base_train.model.init": "nanochat" if config.init == "gpt2" else "gpt2",
        },
    )


def residual_scales(config: GPTConfig) -> Concept | None:
    if not config.residual_scales:
        return None
    return Concept(
        name="Residual scales",
        group="model",
        summary="Before each block the stream is multiplied by a learned number of that block, so that what early blocks wrote "
        "can grow or fade.",
        equation=r"x \leftarrow r_i x",
        places=(
            at("gpt.GPT.scale", code="self.resid_lambdas[layer] * x"),
            at("gpt.GPT.hidden", code="self.scale(x, x0, layer)"),
            at("gpt.GPT.add_components_of_2026", assigns="resid_lambdas"),
            at("gpt.component_init"),
        ),
        change="Without them, all that was ever added stays in the stream at its full size.",
        edits={"base_train.model.residual_scales": False},
        owns="resid_lambdas",
    )


def embedding_scales(config: GPTConfig) -> Concept | None:
    if not config.embedding_scales:
        return None
    return Concept(
        name="Embedding scales",
        group="model",
        summary="Before each block the embedding with which the stream began is added to it again, times a learned number of "
        "that block: the token itself is never lost.",
        equation=r"x \leftarrow x + e_i x_0",
        places=(
            at("gpt.GPT.scale", code="x + self.x0_lambdas[layer] * x0"),
            at("gpt.GPT.hidden", assigns="x0"),
            at("gpt.GPT.add_components_of_2026", assigns="x0_lambdas"),
            at("gpt.component_init"),
        ),
        change="Without them, later blocks know of the token what earlier ones left of it.",
        edits={"base_train.model.embedding_scales": False},
        owns="x0_lambdas",
    )


def backout(config: GPTConfig) -> Concept | None:
    if not config.backout:
        return None
    return Concept(
        name="Backout",
        group="model",
        summary="A learned share of what the stream held after the block in the middle is taken from it before the last norm: "
        "what the first blocks wrote for the others to read is of no use to the output projection.",
        equation=r"x \leftarrow x - \lambda x^{(L/2)}",
        places=(
            at("gpt.GPT.back_out"),
            at("gpt.GPT.hidden", code="self.back_out(x, halfway, cache)"),
            at("gpt.GPT.hidden", code="halfway = x"),
            at("gpt.GPT.back_out", code="x - self.backout_lambda.to(x.dtype) * halfway"),
            at("gpt.GPT.add_components_of_2026", assigns="backout_lambda"),
        ),
        change="Without it, the output projection reads all that any block wrote.",
        edits={"base_train.model.backout": False},
        owns="backout_lambda",
    )


# -- from the residual stream to a token ---------------------------------------------------------------------------------------


def output_projection(config: GPTConfig) -> Concept:
    tied = [at("gpt.GPT.__init__", assigns="lm_head.weight")] if config.tied_head else []
    whose = (
        "the embedding table once more, so it has no parameters of its own"
        if config.tied_head
        else "a table of its own, not that of the embedding"
    )
    return Concept(
        name="Output projection",
        group="model",
        summary="After a last norm, the residual stream's vector is compared with one row for each token of the vocabulary: V "
        f"scores, the logits. The matrix is {whose}.",
        equation=r"z_t = W_U \mathrm{norm}_f(x_t), \quad "
        + ("W_U = E" if config.tied_head else r"W_U \in \mathbb{R}^{V \times C}"),
        places=(
            at("gpt.GPT.logits", code="self.lm_head(x).float()"),
            at("gpt.GPT.__init__", assigns="lm_head"),
            *tied,
            at("gpt.GPT.hidden", code="self.ln_f(x)"),
        ),
        change="Tied, the model has V x C parameters less, and one table must serve for reading and for saying."
        if not config.tied_head
        else "Untied, the output gets V x C parameters of its own.",
        edits={"base_train.model.tied_head": not config.tied_head},
        owns=r"lm_head\.weight",
    )


def soft_cap(config: GPTConfig) -> Concept | None:
    if config.soft_cap is None:
        return None
    return Concept(
        name="Soft-cap",
        group="model",
        summary="Logits are bounded smoothly: small ones pass unchanged, and none leaves the range from -c to c, so no "
        f"probability comes too near to 0 or 1. Here c is {config.soft_cap:g}.",
        equation=r"z \leftarrow c \tanh(z / c)",
        places=(at("gpt.GPT.logits", code="self.config.soft_cap * torch.tanh(logits / self.config.soft_cap)"),),
        change="Empty: no cap, as in GPT-2. A small cap forbids the model to be sure.",
        edits={"base_train.model.soft_cap": None},
    )


def softmax(config: GPTConfig) -> Concept:
    return Concept(
        name="Softmax and sampling",
        group="model",
        summary="Softmax makes probabilities of the logits of the last position. The next token is drawn from them, or, at "
        "temperature 0, the likeliest is taken; it is appended, and the model reads on. Softmax is not part of the "
        "model: the loss and the engine each apply it.",
        equation=r"p_i = \frac{\exp(z_i / \tau)}{\sum_j \exp(z_j / \tau)}",
        places=(
            at("engine.choose", code="(logits / temperature).softmax(dim=1).cumsum(dim=1)"),
            at("engine.choose", code="logits.argmax(dim=1).tolist()"),
            at("engine.choose"),
            at("engine.Engine.complete"),
            at("kv_cache.KVCache"),
        ),
        change="A higher temperature flattens the probabilities; top_k leaves out all but the k likeliest tokens.",
        edits={"chat_eval.temperature": 1.0, "chat_eval.top_k": 10},
    )


MODEL: tuple[Callable[[GPTConfig], Concept | None], ...] = (
    tokenizer,
    token_embedding,
    smear,
    positional_embedding,
    layer_normalization,
    self_attention,
    qk_norm,
    qk_scale,
    value_embedding,
    causal_mask,
    attention_windows,
    feed_forward,
    residual_connection,
    residual_scales,
    embedding_scales,
    backout,
    output_projection,
    soft_cap,
    softmax,
)
