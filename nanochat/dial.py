"""The depth dial: how long to train a model of a depth, in which batches, at which rates; nanochat's rules of July 2026.

Rates and decay were found for a model of 12 blocks in batches of 524,288 tokens, and are carried from there:

    N = parameters in the blocks' matrices and the head                       scaling_parameters
    D = ratio N, tokens to train on; D12: the same of the model of 12 blocks  horizon
    B = 2^19 (D / D12)^0.383, rounded to a power of 2                         batch_tokens     (arXiv 2505.13738)
    all rates times sqrt(B / 2^19)                                            rate_scale
    weight decay 0.28 sqrt(B / 2^19) (D12 / D)                                matrix_decay     (arXiv 2405.13698)

Upwards these rules were tried (to 26 blocks). Below 12 blocks, or in the small batches of a debug run, they leave the range in
which anybody did: 16,384 tokens a step would have 0.18 of the rates, a model of 4 blocks a decay of 1.89. So here the factor on
the rates stays within [1/2, 2], which is batches of 2^17 to 2^21 tokens, and the decay at or below the 0.28 of 12 blocks: a
smaller or shorter training than the one that was tuned is trained like that one, at no less than half its rates.
"""

import math
from collections.abc import Mapping
from typing import Any

from nanochat.schedule import components_of_2026

Model = Mapping[str, Any]  # the fields of GPTConfig

REFERENCE_SIZES = {"n_layer": 12, "n_embd": 768, "n_head": 6, "n_kv_head": 6}
REFERENCE_BATCH = 2**19
REFERENCE_RATES = {"matrix_lr": 0.02, "embedding_lr": 0.3, "unembedding_lr": 0.008, "scalar_lr": 0.5}
REFERENCE_DECAY = 0.28
BATCH_EXPONENT = 0.383
RATE_RANGE = (0.5, 2.0)


def reference(model: Model) -> dict[str, Any]:
    """The model of 12 blocks with the same components, vocabulary and rows."""
    return {**model, **REFERENCE_SIZES}


def scaling_parameters(model: Model) -> int:
    """Parameters in the blocks' matrices and the head: those whose number makes the loss of models of all depths one curve.

    Not the tables, which are looked up and not multiplied, nor the gate of `smear`, which is in no block.
    """
    kv_width = model["n_embd"] // model["n_head"] * model["n_kv_head"]
    matrices = model["n_layer"] * (10 * model["n_embd"] ** 2 + 2 * model["n_embd"] * kv_width)
    return matrices + components_of_2026(model)["value_gates"] + model["vocab_size"] * model["n_embd"]


def horizon(model: Model, ratio: float) -> int:
    """Tokens to train on: so many for each scaling parameter."""
    return int(ratio * scaling_parameters(model))


def batch_tokens(model: Model) -> int:
    """Tokens of a step: a power of 2 that grows with the horizon. d12: 2^19, d24: 2^20."""
    longer = scaling_parameters(model) / scaling_parameters(reference(model))  # the ratio cancels
    return 2 ** round(math.log2(REFERENCE_BATCH * longer**BATCH_EXPONENT))


def rate_scale(batch: int) -> float:
    """The factor on all rates for batches of so many tokens, within RATE_RANGE."""
    low, high = RATE_RANGE
    return min(high, max(low, (batch / REFERENCE_BATCH) ** 0.5))


def matrix_decay(model: Model, batch: int) -> float:
    """Muon's weight decay, at most REFERENCE_DECAY: what a weight forgets over the whole training stays the same."""
    shorter = scaling_parameters(reference(model)) / scaling_parameters(model)
    return REFERENCE_DECAY * min(1.0, (batch / REFERENCE_BATCH) ** 0.5 * shorter)
