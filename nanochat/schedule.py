"""How long to train and at which rates: pure functions of the step and of the model's size."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nanochat.errors import UserError
from nanochat.presets import OFF, SMEAR_CHANNELS, VALUE_CHANNELS, has_value_embedding, layer_windows

MUON_MOMENTUM = (0.85, 0.95, 300)  # from, to, over so many steps: early gradients turn quickly and should be forgotten sooner
NUMBERS_ON_CPU = 3 * 2**19  # in the residual stream of a micro-batch: enough to fill the products, few enough for the caches
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


def muon_momentum(step: int, rise: Sequence[float] | None = None, *, final: float | None = None, fallen: float = 0.0) -> float:
    """Rises linearly at the start of training, then stays; or goes on to `final` while the rates fall.

    `rise`: from, to, over so many steps (none: MUON_MOMENTUM). `fallen`: how much of the warm-down is over, 0 to 1.
    """
    start, end, over = rise or MUON_MOMENTUM
    share = min(step / over, 1.0)
    if share == 1.0 and final is not None:
        return (1 - fallen) * end + fallen * final
    return (1 - share) * start + share * end


def warmdown_done(progress: float, warmdown_ratio: float) -> float:
    """How much of the warm-down is over when `progress` of the training is, both from 0 to 1."""
    return max(0.0, 1 - (1 - progress) / warmdown_ratio) if warmdown_ratio else 0.0


def cosine_to_zero(progress: float) -> float:
    """1 at the start of training, 1/2 in its middle, 0 at its end."""
    return 0.5 * (1 + math.cos(math.pi * progress))


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
    components = components_of_2026(model)
    return tables + n_layer * (matrices + vectors) + num_norms * norms + sum(components.values())


def components_of_2026(model: Mapping[str, Any]) -> dict[str, int]:
    """Parameters of the components that nanochat had not in October 2025, by kind; 0 where they are off."""
    model = {**OFF, **model}
    n_layer, n_embd = model["n_layer"], model["n_embd"]
    num_values = sum(has_value_embedding(layer, n_layer) for layer in range(n_layer)) if model["value_embedding"] else 0
    kv_width = n_embd // model["n_head"] * model["n_kv_head"]
    return {
        "value_tables": num_values * model["vocab_size"] * kv_width,
        "value_gates": num_values * min(VALUE_CHANNELS, n_embd) * model["n_kv_head"],  # matrices of the blocks, as the others
        "smear_gate": model["smear"] * min(SMEAR_CHANNELS, n_embd),
        "scales": (model["residual_scales"] + model["embedding_scales"]) * n_layer + model["smear"] + model["backout"],
    }


def flops_per_token(model: Mapping[str, Any]) -> int:
    """Floating-point operations of a training step for each token, forward and backward (Kaplan et al., arXiv 2001.08361).

    6 for each parameter that is multiplied (tables are looked up, not multiplied), and 12 * H * D * T a layer for the scores
    and the weighted mean of attention; the half that the causal mask hides is counted, as everybody does. Where a layer has a
    window, it is that instead of T.
    """
    n_layer, n_embd = model["n_layer"], model["n_embd"]
    kv_width = n_embd // model["n_head"] * model["n_kv_head"]
    matrices = n_layer * (10 * n_embd * n_embd + 2 * n_embd * kv_width) + model["vocab_size"] * n_embd
    components = components_of_2026(model)
    matrices += components["value_gates"] + components["smear_gate"]
    return 6 * matrices + 12 * n_embd * sum(tokens_attended(model))


def tokens_attended(model: Mapping[str, Any]) -> list[int]:
    """Tokens among which each layer's attention looks for a token: its window, or the row."""
    length = model["sequence_len"]
    windows = layer_windows(model.get("window_pattern", OFF["window_pattern"]), model["n_layer"], length)
    return [length if window is None else min(window, length) for window in windows]


def micro_batch_on_cpu(model: Mapping[str, Any], rows: int) -> int:
    """Rows in a forward pass of a training on a CPU: a divisor of `rows`. Of d6, 4,096 tokens."""
    return divisor_at_most(rows, NUMBERS_ON_CPU / (model["n_embd"] * model["sequence_len"]))


def divisor_at_most(number: int, limit: float) -> int:
    """The largest divisor of `number` that does not exceed `limit`, at least 1."""
    return max(d for d in range(1, max(1, min(number, math.floor(limit))) + 1) if number % d == 0)
