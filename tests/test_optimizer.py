"""Which parameter goes to which rule, and at which rate."""

import pytest
from small_models import random_model

from nanochat.optimizer import build_optimizer

RATES = {"matrix_lr": 0.02, "embedding_lr": 0.2, "unembedding_lr": 0.004}


@pytest.mark.parametrize("preset", ["nanochat", "textbook"])
def test_every_parameter_is_in_exactly_one_group(preset):
    model = random_model(preset)
    optimizer = build_optimizer(model, **RATES)
    groups = [optimizer.muon.momenta.keys(), *(adamw.parameters.keys() for adamw in optimizer.adamws.values())]
    names = [name for group in groups for name in group]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_groups_and_rates_of_nanochat():
    model = random_model("nanochat", n_embd=192, n_head=3, n_kv_head=3)
    optimizer = build_optimizer(model, **RATES)
    assert all(name.startswith("blocks.") for name in optimizer.muon.momenta) and len(optimizer.muon.momenta) == 12
    assert list(optimizer.adamws["embedding"].parameters) == ["wte.weight"]
    assert list(optimizer.adamws["unembedding"].parameters) == ["lm_head.weight"]
    # a quarter of the width at which the rates were found: twice the rate
    assert optimizer.adamws["embedding"].lr == pytest.approx(0.4)
    assert optimizer.adamws["unembedding"].lr == pytest.approx(0.008)
    assert optimizer.muon.lr == 0.02


def test_the_small_tables_of_the_textbook_model_move_at_the_rate_of_the_head():
    optimizer = build_optimizer(random_model("textbook"), **RATES)
    assert not optimizer.adamws["embedding"].parameters
    assert {"wte.weight", "wpe.weight"} <= optimizer.adamws["unembedding"].parameters.keys()
