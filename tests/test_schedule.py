"""Horizon, rates and sizes against the published figures of nanochat."""

import dataclasses

import pytest
import torch

from nanochat.errors import UserError
from nanochat.gpt import GPT, GPTConfig
from nanochat.presets import OFF, PRESETS
from nanochat.schedule import (
    count_parameters,
    divisor_at_most,
    flops_per_token,
    learning_rate_scale,
    muon_momentum,
    num_training_steps,
    width_scale,
)


def test_d20_takes_21_400_steps():
    steps = num_training_steps(steps=None, tokens_per_parameter=20, num_parameters=560_988_160, total_batch_tokens=524_288)
    assert steps == 21_400


def test_d20_needs_3_49e9_flops_a_token_and_3_92e19_in_all():
    per_token = flops_per_token(GPTConfig().as_dict())
    assert per_token == pytest.approx(3.49e9, rel=0.002)
    assert per_token * 21_400 * 524_288 == pytest.approx(3.92e19, rel=0.002)


def test_given_steps_win_over_the_ratio():
    assert num_training_steps(steps=7, tokens_per_parameter=20, num_parameters=1, total_batch_tokens=1) == 7


def test_a_horizon_of_less_than_one_step_is_refused():
    with pytest.raises(UserError, match="total_batch_tokens"):
        num_training_steps(steps=None, tokens_per_parameter=20, num_parameters=100, total_batch_tokens=524_288)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "changes",
    [{}, {"n_kv_head": 2}, {"n_layer": 4}, {"n_embd": 8}, *({component: off} for component, off in OFF.items())],
    ids=str,
)
def test_counted_parameters_are_those_of_the_model(preset, changes):
    sizes = {"vocab_size": 300, "n_layer": 3, "n_head": 4, "n_kv_head": 4, "n_embd": 32, "sequence_len": 16}
    config = GPTConfig.preset(preset, **{**sizes, **changes})
    with torch.device("meta"):
        assert count_parameters(config.as_dict()) == GPT(config).num_parameters()


def test_operations_are_those_of_the_matrices_and_of_what_attention_sees():
    config = GPTConfig.preset("speedrun", vocab_size=512, n_layer=6, n_head=4, n_kv_head=2, n_embd=64, sequence_len=1024)
    with torch.device("meta"):
        matrices = sum(part.weight.numel() for part in GPT(config).modules() if isinstance(part, torch.nn.Linear))
    seen = [256, 256, 256, 1024, 256, 1024]  # SSSL SS, and the last block sees all
    assert flops_per_token(config.as_dict()) == 6 * matrices + 12 * 64 * sum(seen)
    short = dataclasses.replace(config, sequence_len=64)  # a window is not longer than the row
    assert flops_per_token(short.as_dict()) == 6 * matrices + 12 * 64 * 6 * 64


def test_learning_rate_is_a_trapezoid():
    scales = [learning_rate_scale(step, 100, warmup_ratio=0.1, warmdown_ratio=0.2, final_lr_ratio=0.1) for step in range(100)]
    assert scales[0] == pytest.approx(0.1) and scales[9] == 1.0
    assert set(scales[10:81]) == {1.0}
    assert scales[90] == pytest.approx(0.5 + 0.5 * 0.1)
    assert scales[99] == pytest.approx(0.05 + 0.95 * 0.1)
    assert scales[80:] == sorted(scales[80:], reverse=True)


def test_sft_rate_falls_from_the_first_step_to_zero():
    scales = [learning_rate_scale(step, 4, warmup_ratio=0, warmdown_ratio=1.0, final_lr_ratio=0) for step in range(4)]
    assert scales == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_momentum_rises_over_300_steps():
    assert [muon_momentum(step) for step in (0, 150, 300, 9000)] == pytest.approx([0.85, 0.90, 0.95, 0.95])


def test_adamw_rates_are_those_of_width_768():
    assert width_scale(768) == 1.0
    assert width_scale(1280) == pytest.approx((1280 / 768) ** -0.5)


def test_divisor_at_most():
    assert [divisor_at_most(12, limit) for limit in (0.3, 1, 5, 6.9, 100)] == [1, 1, 4, 6, 12]
