"""Loss and bits per byte against sums by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import random_model
from torch import nn

from nanochat.errors import UserError
from nanochat.loss_eval import evaluate_bpb


class FixedModel(nn.Module):
    """Predicts the same probabilities everywhere."""

    def __init__(self, probabilities):
        super().__init__()
        self.scores = torch.tensor(probabilities).log()
        self.wte = nn.Embedding(1, 1)

    def hidden(self, idx):
        return torch.zeros(*idx.shape, 1)

    def logits(self, hidden):
        return self.scores.expand(*hidden.shape[:-1], -1)


def test_bits_per_byte_of_a_worked_example():
    # token 0 is special; 1, 2, 3 stand for 3, 1, 2 bytes and are predicted with 1/4, 1/4, 3/8
    model = FixedModel([1 / 8, 1 / 4, 1 / 4, 3 / 8])
    token_bytes = np.array([0, 3, 1, 2], dtype=np.int32)
    x = torch.zeros(2, 3, dtype=torch.long)
    y = torch.tensor([[1, 2, -1], [0, -1, 3]])
    found = evaluate_bpb(model, [(x, y)], token_bytes)
    text_bits = 2 + 2 + math.log2(8 / 3)
    assert found["bpb"] == pytest.approx(text_bits / 6)
    assert found["loss"] == pytest.approx((text_bits + 3) * math.log(2) / 4)
    assert (found["tokens"], found["bytes"]) == (4, 6)


def random_rows(seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randint(300, (2, 3, 20), generator=generator)
    y[torch.rand(y.shape, generator=generator) < 0.3] = -1
    return x, y


def test_loss_equals_cross_entropy_over_all_counted_tokens(monkeypatch):
    monkeypatch.setattr("nanochat.loss_eval.POSITIONS_AT_ONCE", 16)  # several parts a batch
    model = random_model()
    token_bytes = np.array([*[1 + i % 5 for i in range(200)], *[0] * 100])
    batches = [random_rows(seed) for seed in range(3)]
    found = evaluate_bpb(model, batches, token_bytes)
    with torch.no_grad():
        losses = torch.cat(
            [F.cross_entropy(model(x).transpose(1, 2), y, reduction="none", ignore_index=-1)[y >= 0] for x, y in batches]
        )
    tokens = torch.cat([y[y >= 0] for _, y in batches])
    is_text = tokens < 200
    assert 0 < is_text.sum() < len(tokens)
    num_bytes = sum(int(token_bytes[token]) for token in tokens)
    assert found["loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert found["bpb"] == pytest.approx(losses[is_text].sum().item() / math.log(2) / num_bytes, rel=1e-5)


def test_the_size_of_the_batches_changes_nothing():
    model, token_bytes = random_model(), np.ones(300)
    x, y = random_rows(0)
    one = evaluate_bpb(model, [(x, y)], token_bytes)
    assert evaluate_bpb(model, [(x[:1], y[:1]), (x[1:], y[1:])], token_bytes) == pytest.approx(one, rel=1e-6)


def test_processes_that_share_the_rows_agree_with_one():
    model, token_bytes = random_model(), np.array([*[2] * 291, *[0] * 9])
    batches = [random_rows(seed) for seed in range(4)]
    parts = []
    for rank in range(2):

        def record(*values):
            parts.append(values)
            return list(values)

        evaluate_bpb(model, batches[rank::2], token_bytes, sum_floats=record)
    shared = evaluate_bpb(
        model, batches[:1], token_bytes, sum_floats=lambda *_: [sum(pair) for pair in zip(*parts, strict=True)]
    )
    assert shared == pytest.approx(evaluate_bpb(model, batches, token_bytes), rel=1e-9)


@pytest.mark.parametrize("target", [-1, 299])
def test_rows_without_any_text_are_an_error(target):
    x = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(UserError, match="no loss to measure"):
        evaluate_bpb(random_model(), [(x, torch.full_like(x, target))], np.array([*[1] * 291, *[0] * 9]))
