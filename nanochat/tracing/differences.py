"""What distinguishes two models, component by component: in words, and where in gpt.py it is decided.

The words say what a component does, whichever of the two models has it. `places` name the function and a piece of the line, so
that a page can lead to the step at which the two models part; tests look both up in the source.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from nanochat.presets import OFF


class Component(NamedTuple):
    title: str
    explanation: str
    places: tuple[tuple[str, str], ...]  # (function of gpt.py, part of one of its lines)


COMPONENTS = {
    "positions": Component(
        "Positions",
        "Attention by itself does not know the order of the tokens. `rope` turns every query and key by an angle that grows "
        "with its position, so that a score depends on how far apart two tokens are; `learned` adds a trained vector for "
        "each position to the embedding, and cannot go beyond the length it was trained on.",
        (
            ("GPT.embed", "self.wpe(positions)"),
            ("GPT.hidden", "self.rope(positions"),
            ("CausalSelfAttention.forward", "q = rotate("),
            ("CausalSelfAttention.forward", "k = rotate("),
        ),
    ),
    "norm": Component(
        "Norm",
        "Both bring every token's vector to a standard size before a half of a block reads it. `layer` (LayerNorm) subtracts "
        "the mean, divides by the spread, and has a learned gain and shift; `rms` (RMSNorm) only divides by the root mean "
        "square, and has nothing to learn.",
        (("RMSNorm.forward", "rms_norm(x)"), ("LayerNorm.forward", "F.layer_norm(")),
    ),
    "mlp": Component(
        "Activation",
        "The bend between the two matrices of the MLP, without which they would be one matrix. `gelu` is smooth and lets a "
        "little of small negative numbers through; `relu2` sets every negative number to exactly zero and squares the "
        "others, so that many entries are zero.",
        (("MLP.forward", "self.activation(h)"),),
    ),
    "attention": Component(
        "Attention kernel",
        "The same formula computed in two ways: `naive` writes all scores and weights to memory, `sdpa` is a fused kernel "
        "that never does and is faster. A trace always runs the naive one, since its weights can be looked at.",
        (("CausalSelfAttention.forward", "self.attend("),),
    ),
    "qk_norm": Component(
        "Norm of queries and keys",
        "With it, all queries and keys have the same length, so that no score exceeds the square root of D and attention "
        "cannot lock onto one token by growing numbers alone. Without it, scores may grow as far as training takes them.",
        (
            ("CausalSelfAttention.forward", "if self.qk_norm:"),
            ("CausalSelfAttention.forward", "q = rms_norm(q)"),
            ("CausalSelfAttention.forward", "k = rms_norm(k)"),
        ),
    ),
    "soft_cap": Component(
        "Soft cap of the logits",
        "With a cap, a tanh bends the scores smoothly into (-cap, cap), so that no token's score runs away. Without one they "
        "are used as the head gives them.",
        (("GPT.logits", "if self.config.soft_cap"), ("GPT.logits", "torch.tanh(")),
    ),
    "tied_head": Component(
        "Output projection tied to the embedding",
        "Tied, the table that turns tokens into vectors also scores the next token, which saves V x C parameters. Untied, "
        "the output projection has a matrix of its own and may learn something else.",
        (("GPT.logits", "self.lm_head(x)"), ("GPT.__init__", "self.lm_head.weight = self.wte.weight")),
    ),
    "bias": Component(
        "Biases in linear layers",
        "Whether each matrix of a block also adds a learned constant vector. It costs few parameters, and models without it "
        "train as well.",
        (("Linear.forward", "self.bias"),),
    ),
    "norm_embedding": Component(
        "Norm after the embedding",
        "Whether the token vectors are normalised once as they enter the residual stream. With it every token starts with "
        "the same size, and what the blocks add is measured against that.",
        (("GPT.embed", "self.ln_emb(x)"),),
    ),
    "init": Component(
        "Initial weights",
        "What the weights were before training. `nanochat` starts the output projections at zero, so that every block begins "
        "by adding nothing and all tokens are equally likely; `gpt2` draws small random numbers everywhere, smaller ones "
        "where many blocks add up; `speedrun` is like nanochat, with uniform matrices and smaller tables.",
        (
            ("nanochat_init", "torch.zeros(shape)"),
            ("gpt2_init", "math.sqrt(2 * config.n_layer)"),
            ("speedrun_init", "uniform("),
        ),
    ),
    "rope_base": Component(
        "Base of the rotations",
        "How slowly the slowest pair of a head turns: the larger the base, the further apart two tokens can be before their "
        "angle comes round again.",
        (("RotaryEmbedding.__init__", "config.rope_base"),),
    ),
    "window_pattern": Component(
        "Windows of attention",
        "Which blocks see all tokens (L) and which only the nearest quarter of a row (S). Most of what a token needs is near, "
        "and a window saves the work of looking further; the last block always sees all.",
        (("CausalSelfAttention.forward", "windowed("),),
    ),
    "value_embedding": Component(
        "Value embeddings",
        "In every second block, what a token offers to others (v) gets a learned part that depends on the token alone, through "
        "a gate for each head. The tables are large, and cost no multiplications.",
        (("CausalSelfAttention.forward", "self.add_values("), ("CausalSelfAttention.add_values", "self.value_gate(")),
    ),
    "residual_scales": Component(
        "Scales of the residual stream",
        "Whether each block multiplies the stream by a learned number before it reads it, so that later blocks can forget "
        "what earlier ones wrote.",
        (("GPT.scale", "self.resid_lambdas[layer]"),),
    ),
    "embedding_scales": Component(
        "Scales of the embedding",
        "Whether each block adds the token's own embedding to the stream again, times a learned number.",
        (("GPT.scale", "self.x0_lambdas[layer]"),),
    ),
    "smear": Component(
        "Smear",
        "Whether a share of the token before is mixed into each token's embedding, so that pairs are known before the first "
        "block.",
        (("GPT.hidden", "self.smear("), ("GPT.smear", "self.smear_gate(")),
    ),
    "backout": Component(
        "Backout",
        "Whether a learned share of what the stream held halfway is taken from it before the output, which has no use for it.",
        (("GPT.hidden", "self.back_out("), ("GPT.back_out", "self.backout_lambda")),
    ),
    "qk_scale": Component(
        "Scale of queries and keys",
        "Normalised queries and keys bound every score by the square root of D. Multiplied by a number above 1, both allow "
        "sharper attention.",
        (("CausalSelfAttention.forward", "self.qk_scale**2"),),
    ),
    "n_layer": Component(
        "Blocks", "How many blocks follow one another.", (("GPT.hidden", "for layer, block in enumerate(self.blocks):"),)
    ),
    "n_head": Component(
        "Heads",
        "Into how many heads the queries are cut, each with attention of its own.",
        (("CausalSelfAttention.forward", "q = self.c_q("),),
    ),
    "n_kv_head": Component(
        "Heads of keys and values",
        "With fewer than there are heads of queries, several of those share one head of keys and values.",
        (("naive_attention", "k.repeat_interleave("),),
    ),
    "n_embd": Component(
        "Width", "How many numbers stand for one token in the residual stream.", (("GPT.embed", "self.wte(idx)"),)
    ),
    "vocab_size": Component("Vocabulary", "How many tokens there are to choose from.", (("GPT.logits", "self.lm_head(x)"),)),
    "sequence_len": Component("Length", "How many tokens a row of the training had.", ()),
}


def differences(this: Mapping[str, Any], that: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The components in which two configurations (`GPTConfig.as_dict`) differ, in the order in which COMPONENTS lists them.

    [{"component": "norm", "title": "Norm", "this": "rms", "that": "layer", "explanation": "...",
      "places": [{"function": "RMSNorm.forward", "code": "rms_norm(x)"}, ...]}]
    """
    return [
        {
            "component": name,
            "title": component.title,
            "this": this.get(name, OFF.get(name)),
            "that": that.get(name, OFF.get(name)),
            "explanation": component.explanation,
            "places": [{"function": function, "code": code} for function, code in component.places],
        }
        for name, component in known(this, that).items()
        if this.get(name, OFF.get(name)) != that.get(name, OFF.get(name))
    ]


def known(this: Mapping[str, Any], that: Mapping[str, Any]) -> dict[str, Component]:
    """COMPONENTS, with a plain entry for each key that they lack."""
    others = {key: Component(key, "", ()) for key in [*this, *that] if key not in COMPONENTS}
    return COMPONENTS | others
