"""How long to train and at which rates: pure functions of the step and of the model's size."""

import math
from collections.abc import Mapping
from typing import Any

from nanochat.errors import UserError

MUON_MOMENTUM = (0.85, 0.95, 300)  # from, to, over so many steps: early gradients turn quickly and should be forgotten sooner
LOGIT_BYTES_ON_CPU = 2**26  # fp32 logits of a micro-batch, of which the backward pass holds about three
REFERENCE_WIDTH = 768  # the width at which nanochat's AdamW rates were found


def learning_rate_scale(
    step: int, num_steps: int, *, warmup_ratio: float, warmdown_ratio: float, final_lr_ratio: float
) -> float:
    """Trapezoid: linear rise over the first `warmup_ratio` of the steps, 1, linear fall to `final_lr_ratio` over the last part.

    `step` counts from 0. Without warm-up the first step already has the full rate.
    """
    warmup, warmdown = round(warmup_ratio * num_steps), round(warmdown_ratio * num_steps)
    if step < warmup:
        return (step + 1) / warmup
    if step <= num_steps - warmdown:
        return 1.0
    left = (num_steps - step) / warmdown
    return left + (1 - left) * final_lr_ratio


def muon_momentum(step: int) -> float:
    """Rises linearly at the start of training, then stays."""
    start, end, over = MUON_MOMENTUM
    share = min(step / over, 1.0)
    return (1 - share) * start + share * end


def width_scale(n_embd: int) -> float:
    """AdamW's rates fall with the square root of the width."""
    return (n_embd / REFERENCE_WIDTH) ** -0.5


def num_training_steps(*, steps: int | None, tokens_per_parameter: float, num_parameters: int, total_batch_tokens: int) -> int:
    """`steps` if given, or as many as show the model `tokens_per_parameter` tokens for each of its parameters.

    20 is the ratio that Chinchilla found compute-optimal (arXiv 2203.15556). d20: 20 * 560,988,160 / 524,288 = 21,400 steps.
    """
    if steps is not None:
        return steps
    num_steps = int(tokens_per_parameter * num_parameters // total_batch_tokens)
    if num_steps < 1:
        raise UserError(
            f"base_train: {tokens_per_parameter} tokens for each of {num_parameters:,} parameters are fewer than one batch of "
            f"{total_batch_tokens:,}; lower base_train.total_batch_tokens or give base_train.steps"
        )
    return num_steps


def count_parameters(model: Mapping[str, Any]) -> int:
    """Parameters of a model given the fields of its GPTConfig, without building it."""
    vocab_size, n_layer, n_embd = model["vocab_size"], model["n_layer"], model["n_embd"]
    kv_width = n_embd // model["n_head"] * model["n_kv_head"]
    matrices = 2 * n_embd * n_embd + 2 * n_embd * kv_width + 8 * n_embd * n_embd
    vectors = (2 * n_embd + 2 * kv_width + 5 * n_embd) if model["bias"] else 0
    norms = 2 * n_embd if model["norm"] == "layer" else 0  # gain and bias
    tables = vocab_size * n_embd * (1 if model["tied_head"] else 2)
    tables += model["sequence_len"] * n_embd if model["positions"] == "learned" else 0
    num_norms = 2 * n_layer + 1 + (1 if model["norm_embedding"] else 0)
    return tables + n_layer * (matrices + vectors) + num_norms * norms


def flops_per_token(model: Mapping[str, Any]) -> int:
    """Floating-point operations of a training step for each token, forward and backward (Kaplan et al., arXiv 2001.08361).

    6 for each parameter that is multiplied (tables are looked up, not multiplied), and 12 * H * D * T a layer for the scores
    and the weighted mean of attention; the half that the causal mask hides is counted, as everybody does.
    """
    n_layer, n_embd = model["n_layer"], model["n_embd"]
    kv_width = n_embd // model["n_head"] * model["n_kv_head"]
    matrices = n_layer * (10 * n_embd * n_embd + 2 * n_embd * kv_width) + model["vocab_size"] * n_embd
    return 6 * matrices + 12 * n_layer * n_embd * model["sequence_len"]


def micro_batch_on_cpu(model: Mapping[str, Any], rows: int) -> int:
    """Rows in a forward pass of a training on a CPU: a divisor of `rows` whose logits stay near the caches."""
    return divisor_at_most(rows, LOGIT_BYTES_ON_CPU / (4 * model["vocab_size"] * model["sequence_len"]))


def divisor_at_most(number: int, limit: float) -> int:
    """The largest divisor of `number` that does not exceed `limit`, at least 1."""
    return max(d for d in range(1, max(1, min(number, math.floor(limit))) + 1) if number % d == 0)
