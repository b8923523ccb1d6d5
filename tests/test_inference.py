"""Models made ready to answer, against the same models as they were trained."""

import pytest
import torch
from small_models import PRESETS, random_model

from nanochat.attention import choose_attention, use_attention
from nanochat.inference import ReadyLinear, make_ready

IDS = torch.randint(0, 300, (3, 20), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("sizes", PRESETS.values(), ids=PRESETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_ready_model_says_what_it_said(sizes, dtype):
    model = random_model(**sizes)
    model.compute_dtype = dtype
    use_attention(model, choose_attention("auto", model, IDS.device))  # as it is trained
    expected = model(IDS)
    table = model.wte.weight.clone()
    found = make_ready(model)(IDS)
    if dtype == torch.bfloat16:
        assert torch.equal(found, expected)  # the same products of the same numbers
    else:
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(model.wte.weight, table)  # also where the head is tied to it


def test_every_matrix_is_ready_and_nothing_is_left_to_train():
    model = make_ready(random_model("textbook"))
    assert sum(isinstance(module, ReadyLinear) for module in model.modules()) == 2 * 6 + 1  # four of attention, two of the MLP
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training
