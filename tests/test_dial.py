"""The dial against nanochat's published figures, and what it does where nanochat's leaves the range."""

import math

import pytest

from nanochat import dial
from nanochat.gpt import GPT, GPTConfig


def model(depth, preset="speedrun"):
    heads = max(1, depth // 2)
    sizes = {"n_layer": depth, "n_embd": 64 * depth, "n_head": heads, "n_kv_head": heads}
    return GPTConfig.preset(preset, **sizes, vocab_size=32_768).as_dict()


@pytest.mark.parametrize("preset", ["nanochat", "speedrun"])
def test_scaling_parameters_are_the_matrices_of_the_blocks_and_the_head(preset):
    built = GPT(GPTConfig(**{**model(4, preset), "vocab_size": 320}))
    counted = [p.numel() for name, p in built.named_parameters() if name.startswith("blocks.") or name == "lm_head.weight"]
    assert dial.scaling_parameters(built.config.as_dict()) == sum(counted)


def test_the_reference_gets_the_reference():
    d12 = model(12)
    assert dial.batch_tokens(d12) == 2**19 and dial.rate_scale(2**19) == 1.0
    assert dial.matrix_decay(d12, 2**19) == 0.28
    assert dial.horizon(d12, 12) == 12 * 110_100_912


def test_d24_is_what_nanochat_computes():
    """By the lines of its rule, written out: 1,048,576 tokens a step, 5,568 steps."""
    d12, d24 = (12 * depth * (64 * depth) ** 2 + 64 * depth * 32_768 + depth // 2 * 12 * depth // 2 for depth in (12, 24))
    batch = 2 ** round(19 + 0.383 * math.log2(d24 / d12))
    assert dial.scaling_parameters(model(24)) == d24
    assert dial.batch_tokens(model(24)) == batch == 2**20
    assert dial.horizon(model(24), 8) // batch == 5568
    assert dial.rate_scale(batch) == pytest.approx(2**0.5)
    assert dial.matrix_decay(model(24), batch) == pytest.approx(0.28 * 2**0.5 * d12 / d24)


def test_small_debug_runs_keep_sane_rates():
    assert dial.rate_scale(16_384) == 0.5  # the rule would give 0.18
    assert dial.matrix_decay(model(4), dial.batch_tokens(model(4))) == 0.28  # and 1.89
    assert dial.rate_scale(2**30) == 2.0
    for depth in (1, 2, 4, 6, 8, 12, 16, 20, 26, 32):
        batch = dial.batch_tokens(model(depth))
        assert 0.5 <= dial.rate_scale(batch) <= 2.0 and 0 < dial.matrix_decay(model(depth), batch) <= 0.28


def test_deeper_is_never_less():
    batches = [dial.batch_tokens(model(depth)) for depth in range(2, 40, 2)]
    decays = [dial.matrix_decay(model(depth), 2**19) for depth in range(2, 40, 2)]
    assert batches == sorted(batches) and decays == sorted(decays, reverse=True)
