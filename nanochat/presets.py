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


def nearest_preset(config: Mapping[str, Any]) -> str:
    """The preset from which a model (`GPTConfig.as_dict`) differs in the fewest components."""
    return min(PRESETS, key=lambda name: len(changed_components(config, name)))


def changed_components(config: Mapping[str, Any], name: str) -> list[str]:
    """The components in which a model differs from a preset."""
    return [key for key, value in PRESETS[name].items() if key in config and config[key] != value]
