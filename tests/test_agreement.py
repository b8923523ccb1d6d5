"""What ranks hold in common, and what each holds alone: added up, compared, told in words. More flips: test_identity.py."""

import pytest
import torch
from small_models import random_model
from torture import forked

from nanochat.agreement import Agreement, RanksDisagree, fingerprint
from nanochat.distributed import Ranks
from nanochat.errors import UserError
from nanochat.optimizer import Parts, build_optimizer

STEPS = 3


def train_and_compare(ranks, spoil, when):
    """Steps with a comparison at the end. `spoil`: rank, name of a weight or a state, value; before a step or after."""
    model = random_model("nanochat", n_layer=3, vocab_size=301).train()
    parts = Parts(normalize_variance=True)
    optimizer = build_optimizer(model, matrix_lr=0.02, embedding_lr=0.2, unembedding_lr=0.004, parts=parts, ranks=ranks)
    weights = dict(model.named_parameters())
    agreement = Agreement(ranks, weights, own=optimizer.own_state(), first_rows=optimizer.first_rows())
    for step in range(STEPS):
        if spoil and (step, "before") == when:
            put(ranks, {**weights, **optimizer.own_state()}, *spoil)
        generator = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.sum_gradients()
        agreement.see()
        optimizer.step(step=step, lr_scale=1.0)
        agreement.keep()
        if spoil and (step, "after") == when:
            put(ranks, {**weights, **optimizer.own_state()}, *spoil)
    try:
        agreed = agreement.require(STEPS)
    except UserError as error:
        return type(error).__name__, str(error)
    state = optimizer.gather()
    return agreed, fingerprint({**{name: tensor.detach() for name, tensor in weights.items()}, **state}) if state else None


def put(ranks, tensors, rank, name, value):
    if ranks.rank == rank:
        tensors[name].detach().view(-1)[-1] = value


def on_ranks(world_size, *arguments):
    found = forked.run(train_and_compare, *arguments, world_size=world_size)
    failed = [answer for answer in found if isinstance(answer, forked.Failed)]
    assert not failed, failed[0].trace or failed[0].message
    return found


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_what_ranks_agree_on_is_the_fingerprint_of_the_whole(world_size):
    """Shares add up: a commit is checked against it, whoever held what."""
    found = on_ranks(world_size, None, None)
    assert found[0][1] == found[0][0]
    assert all(agreed == found[0][0] for agreed, _ in found)


ON_RANK_1 = {
    "its momenta": "muon.blocks.2.mlp.c_fc.weight",
    "its variances": "muon.variance.blocks.2.mlp.c_fc.weight",
    "its rows of a table": "adamw.square.wte.weight",
}


@pytest.mark.parametrize("moment", [(0, "after"), (1, "before"), (2, "before"), (2, "after")], ids=str)
@pytest.mark.parametrize("name", ON_RANK_1.values(), ids=ON_RANK_1)
def test_a_changed_share_of_the_state_is_told_by_all_ranks(name, moment):
    for kind, told in on_ranks(2, (1, name, 0.125), moment):
        assert kind == RanksDisagree.__name__
        assert f"step {STEPS}: of rank 1 (" in told and f"changed between two steps: {name}. " in told
        assert "No commit was made" in told


@pytest.mark.parametrize("name", ["wte.weight", "blocks.0.attn.c_q.weight"])
def test_a_weight_that_differs_is_told_by_all_ranks(name):
    for kind, told in on_ranks(3, (1, name, 0.125), (2, "after")):
        assert kind == RanksDisagree.__name__ and "rank 1 (" in told and f"the numbers of the others: {name}. " in told


def test_a_share_that_is_not_finite_is_told_by_all_ranks():
    for _, told in on_ranks(2, (1, "adamw.mean.wte.weight", float("nan")), (2, "after")):
        assert "adamw.mean.wte.weight" in told and "No commit was made" in told


def test_a_state_that_a_step_made_infinite_is_told():
    weights, own = {"w": torch.ones(2, 2)}, {"adamw.mean.w": torch.full((2, 2), float("inf"))}
    with pytest.raises(UserError, match=r"step 7: adamw\.mean\.w: NaN or infinity"):
        Agreement(Ranks(), weights, own=own).require(7)
