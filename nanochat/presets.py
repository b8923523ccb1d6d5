"""The named models: which component each takes. Plain data, so that a configuration can be checked without PyTorch."""

from collections.abc import Mapping
from typing import Any

PRESETS: dict[str, dict] = {
    # nanochat as of October 2025; `GPTConfig()` is this at depth 20
    "nanochat": {
        "positions": "rope",
        "norm": "rms",
        "mlp": "relu2",
        "attention": "sdpa",
        "qk_norm": True,
        "soft_cap": 15.0,
        "tied_head": False,
        "bias": False,
        "norm_embedding": True,
        "init": "nanochat",
        "rope_base": 10000.0,
    },
    # the GPT of the textbooks (GPT-2): learned positions, LayerNorm, GELU, attention written out
    "textbook": {
        "positions": "learned",
        "norm": "layer",
        "mlp": "gelu",
        "attention": "naive",
        "qk_norm": False,
        "soft_cap": None,
        "tied_head": True,
        "bias": True,
        "norm_embedding": False,
        "init": "gpt2",
        "rope_base": 10000.0,
    },
}

# components of 2026. Where a model's fields do not name them, they are off
OFF: dict[str, Any] = {
    "window_pattern": "L",
    "value_embedding": False,
    "residual_scales": False,
    "embedding_scales": False,
    "smear": False,
    "backout": False,
    "qk_scale": 1.0,
}

# nanochat as of July 2026, with what the record runs of modded-nanogpt found
PRESETS["speedrun"] = {
    **PRESETS["nanochat"],
    "init": "speedrun",
    "rope_base": 100000.0,
    "window_pattern": "SSSL",
    "value_embedding": True,
    "residual_scales": True,
    "embedding_scales": True,
    "smear": True,
    "backout": True,
    "qk_scale": 1.2,
}

COMPONENTS = frozenset(component for preset in PRESETS.values() for component in preset)  # the other fields are sizes
WINDOW_MULTIPLE = 128
SMEAR_CHANNELS, VALUE_CHANNELS = 24, 12  # of a token's numbers those that its gates read


def layer_windows(pattern: str, n_layer: int, sequence_len: int) -> list[int | None]:
    """How many tokens before itself a token sees in each block; None: all.

    The pattern is repeated over the blocks: L sees all, S a quarter of a row, rounded up to 128. The last block sees all.
    SSSL, 5 blocks, rows of 2048  ->  512 512 512 None None
    """
    short = -(-sequence_len // (4 * WINDOW_MULTIPLE)) * WINDOW_MULTIPLE
    return [short if pattern[layer % len(pattern)] == "S" and layer < n_layer - 1 else None for layer in range(n_layer)]


def has_value_embedding(layer: int, n_layer: int) -> bool:
    """Every second block, the last one included."""
    return (n_layer - 1 - layer) % 2 == 0


def nearest_preset(config: Mapping[str, Any]) -> str:
    """The preset from which a model (`GPTConfig.as_dict`) differs in the fewest components."""
    return min(PRESETS, key=lambda name: len(changed_components(config, name)))


def changed_components(config: Mapping[str, Any], name: str) -> list[str]:
    """The components in which a model differs from a preset."""
    expected = {**OFF, **PRESETS[name]}
    return [key for key, value in expected.items() if config.get(key, OFF.get(key, value)) != value]
