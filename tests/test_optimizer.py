"""Which parameter goes to which rule, and at which rate; and the same steps on one rank and on several."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import random_model
from torture import forked

from nanochat.distributed import Ranks
from nanochat.optimizer import Parts, build_optimizer

RATES = {"matrix_lr": 0.02, "embedding_lr": 0.2, "unembedding_lr": 0.004}
JULY_2026 = Parts(
    orthogonalizer="polar_express",
    equilibrate_rows=True,
    renormalize=True,
    normalize_variance=True,
    momentum=(0.85, 0.97, 4),
    final_momentum=0.9,
    matrix_decay=0.28,
    cautious=True,
    matrix_decay_schedule="cosine",
    groups="speedrun",
)


def groups_of(optimizer):
    return {"matrix": optimizer.muon.momenta.keys()} | {
        name: group.parameters.keys() for name, group in optimizer.adamws.items()
    }


@pytest.mark.parametrize("preset", ["nanochat", "textbook", "speedrun"])
def test_every_parameter_is_in_exactly_one_group(preset):
    model = random_model(preset)
    names = [name for group in groups_of(build_optimizer(model, **RATES)).values() for name in group]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_groups_and_rates_of_nanochat():
    model = random_model("nanochat", n_embd=192, n_head=3, n_kv_head=3)
    optimizer = build_optimizer(model, **RATES, weight_decay=0.1)
    assert all(name.startswith("blocks.") for name in optimizer.muon.momenta) and len(optimizer.muon.momenta) == 12
    assert list(optimizer.adamws) == ["embedding", "unembedding"]
    assert list(optimizer.adamws["embedding"].parameters) == ["wte.weight"]
    assert list(optimizer.adamws["unembedding"].parameters) == ["lm_head.weight"]
    # a quarter of the width at which the rates were found: twice the rate
    assert optimizer.adamws["embedding"].lr == pytest.approx(0.4)
    assert optimizer.adamws["unembedding"].lr == pytest.approx(0.008)
    assert optimizer.muon.lr == 0.02
    assert {(group.betas, group.weight_decay) for group in optimizer.adamws.values()} == {((0.8, 0.95), 0.1)}


def test_the_small_tables_of_the_textbook_model_move_at_the_rate_of_the_head():
    optimizer = build_optimizer(random_model("textbook"), **RATES)
    assert not optimizer.adamws["embedding"].parameters
    assert {"wte.weight", "wpe.weight"} <= optimizer.adamws["unembedding"].parameters.keys()


def test_groups_rates_averages_and_decays_of_the_speedrun():
    model = random_model("speedrun", n_embd=192, n_head=3, n_kv_head=3, n_layer=4)
    optimizer = build_optimizer(model, matrix_lr=0.02, embedding_lr=0.3, unembedding_lr=0.008, parts=JULY_2026)
    found = {
        name: (set(group.parameters), pytest.approx(group.lr), group.betas, group.weight_decay)
        for name, group in optimizer.adamws.items()
    }
    assert found == {
        "embedding": ({"wte.weight"}, 0.6, (0.8, 0.995), 0.001),
        "unembedding": ({"lm_head.weight"}, 0.016, (0.8, 0.96), 0.01),
        "value_embedding": ({"value_embeds.1.weight", "value_embeds.3.weight"}, 0.3, (0.8, 0.995), 0.01),
        "residual_scale": ({"resid_lambdas"}, 0.005, (0.8, 0.95), 0.05),
        "embedding_scale": ({"x0_lambdas"}, 0.5, (0.96, 0.95), 0.0),
        "smear_and_backout": ({"smear_gate.weight", "smear_lambda", "backout_lambda"}, 0.2, (0.8, 0.95), 0.0),
    }
    gates = [name for name in optimizer.muon.momenta if name.endswith("gate.weight")]
    assert len(gates) == 2 and len(optimizer.muon.momenta) == 4 * 6 + 2


# -- a step ------------------------------------------------------------------------------------------------------------------


def train(model, optimizer, ranks, steps):
    """Real steps on eight rows, of which each rank has its part. Returns losses and norms."""
    numbers = []
    for step in steps:
        ids = torch.randint(0, model.config.vocab_size, (6, 17), generator=torch.Generator().manual_seed(100 + step))
        x, y = (part.chunk(ranks.world_size)[ranks.rank] for part in (ids[:, :-1], ids[:, 1:]))
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum") / (6 * 16)
        loss.backward()
        whole_loss = loss.detach().clone()
        ranks.sum_([whole_loss])
        numbers += [whole_loss.item(), apply(model, optimizer, step)]
    return numbers


def move(model, optimizer, ranks, steps):
    """Steps by made-up gradients, whose parts on the ranks add up without rounding. Returns norms.

    What a real gradient is, depends on the order of its sums, and AdamW makes a whole step even of 1e-9.
    """
    numbers = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parts = torch.randint(-64, 65, (6, *parameter.shape), generator=generator) / 64
            parameter.grad = parts[ranks.rank :: ranks.world_size].sum(dim=0)
        numbers.append(apply(model, optimizer, step))
    return numbers


def apply(model, optimizer, step, clip=0.5):
    optimizer.sum_gradients()
    norm = optimizer.clip(clip)
    optimizer.step(step=step, lr_scale=1.0, progress=step / 8)
    for parameter in model.parameters():
        parameter.grad = None
    return norm.item()


def build(preset, ranks, parts=None, **sizes):
    """Stacks of 1, 2 and 3 matrices, a table of an odd number of rows, vectors below and above what is shared out."""
    model = random_model(preset, **{"n_layer": 3, "vocab_size": 301, **sizes}).train()
    # caution is a yes or no about numbers near zero: the last bit of one decides
    parts = parts or (replace(JULY_2026, cautious=False) if preset == "speedrun" else Parts())
    optimizer = build_optimizer(model, **RATES, weight_decay=0.1, parts=parts, warmdown_ratio=0.5, ranks=ranks)
    return model, optimizer


def weights_of(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def make_steps(ranks, kind, preset, steps=range(8), weights=None, state=None, parts=None):
    """Begin with `weights` and the whole `state`, if given. Returns numbers, weights, the whole state, the size of its own."""
    model, optimizer = build(preset, ranks, parts)
    if weights:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(weights[name])
        optimizer.load_state(state)
    numbers = kind(model, optimizer, ranks, steps)
    own = sum(tensor.numel() for tensor in optimizer.own_state().values())
    return numbers, {name: parameter.detach().clone() for name, parameter in model.named_parameters()}, optimizer.gather(), own


def on_ranks(world_size, function, *arguments):
    """What `function(ranks, *arguments)` returns on each rank. Tensors travel as arrays."""
    found = forked.run(on_a_rank, function, as_arrays(arguments), world_size=world_size)
    failed = [answer for answer in found if isinstance(answer, forked.Failed)]
    assert not failed, failed[0].trace or failed[0].message
    return as_tensors(found)


def on_a_rank(ranks, function, arguments):
    from nanochat import distributed

    distributed.cpu_has_bf16 = lambda: False  # Muon's rounds in bfloat16 round differently in stacks of other sizes
    return as_arrays(function(ranks, *as_tensors(arguments)))


def as_arrays(value):
    return changed(value, torch.Tensor, lambda tensor: tensor.detach().numpy())


def as_tensors(value):
    return changed(value, np.ndarray, torch.from_numpy)


def changed(value, kind, change):
    if isinstance(value, dict):
        return {name: changed(item, kind, change) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(changed(item, kind, change) for item in value)
    return change(value) if isinstance(value, kind) else value


def assert_all_close(found, expected, atol=1e-6):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            found[name], expected[name], atol=atol, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize(("preset", "world_size"), [("nanochat", 2), ("textbook", 2), ("speedrun", 2), ("speedrun", 3)])
def test_several_ranks_make_the_steps_of_one_and_share_its_state_out(preset, world_size):
    ((norms, weights, state, size),) = on_ranks(1, make_steps, move, preset)
    found = on_ranks(world_size, make_steps, move, preset)
    for its_norms, its_weights, _, its_size in found:
        assert its_norms == pytest.approx(norms, rel=1e-6)
        assert_all_close(its_weights, weights)
        assert all(torch.equal(its_weights[name], found[0][1][name]) for name in weights), "ranks differ"
        assert its_size < 1.3 * size / world_size
    assert_all_close(found[0][2], state)
    assert all(its_state is None for _, _, its_state, _ in found[1:])


@pytest.mark.parametrize("preset", ["nanochat", "textbook", "speedrun"])
def test_two_ranks_train_to_the_losses_of_one(preset):
    (alone,), together = on_ranks(1, make_steps, train, preset), on_ranks(2, make_steps, train, preset)
    for numbers, *_ in together:
        assert numbers == pytest.approx(alone[0], rel=1e-5)


@pytest.mark.parametrize("preset", ["nanochat", "speedrun"])
def test_a_state_goes_on_on_any_number_of_ranks(preset):
    ((expected, last, _, _),) = on_ranks(1, make_steps, move, preset, range(6))
    norms, weights, state = [], None, None
    for world_size, steps in ((2, (0, 1)), (1, (2, 3)), (2, (4, 5))):
        found = on_ranks(world_size, make_steps, move, preset, steps, weights, state)
        norms, (_, weights, state, _) = norms + found[0][0], found[0]
    assert norms == pytest.approx(expected, rel=1e-6)
    assert_all_close(weights, last)


def test_a_state_taken_again_by_as_many_ranks_gives_the_same_bits():
    (_, weights, state, _), _ = on_ranks(2, make_steps, train, "speedrun", range(2))
    resumed, _ = on_ranks(2, make_steps, train, "speedrun", range(2, 4), weights, state)
    whole, _ = on_ranks(2, make_steps, train, "speedrun", range(4))
    assert all(torch.equal(resumed[1][name], whole[1][name]) for name in weights)
    assert all(torch.equal(resumed[2][name], whole[2][name]) for name in state)


def test_gradients_exchanged_in_bfloat16_are_rounded_and_no_more():
    rounded = Parts(comm_dtype="bfloat16")
    (alone,) = on_ranks(1, make_steps, train, "nanochat")
    together = on_ranks(2, make_steps, train, "nanochat", range(8), None, None, rounded)
    assert together[0][0] == together[1][0] == pytest.approx(alone[0], rel=5e-2)
    assert together[0][0] != pytest.approx(alone[0], rel=1e-5)


def test_what_a_commit_must_hold_is_known_without_gathering_it():
    for preset in ("nanochat", "textbook", "speedrun"):
        _, optimizer = build(preset, Ranks())
        empty, state = optimizer.empty_state(), optimizer.gather()
        assert {name: (tensor.shape, tensor.dtype) for name, tensor in empty.items()} == {
            name: (tensor.shape, tensor.dtype) for name, tensor in state.items()
        }


def test_one_rank_sends_and_copies_nothing():
    model, optimizer = build("speedrun", Ranks())
    move(model, optimizer, Ranks(), [0])
    own, gathered = optimizer.own_state(), optimizer.gather()
    assert all(gathered[name].data_ptr() == own[name].data_ptr() for name in own)


def norms(ranks, limit):
    """Before clipping and after it."""
    model, optimizer = build("speedrun", ranks)
    for index, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full(parameter.shape, (index % 5 - 2) / ranks.world_size)
    optimizer.sum_gradients()
    return optimizer.clip(limit).item(), optimizer.clip(0).item()


def test_the_gradient_is_clipped_by_the_norm_of_all_of_it():
    for limit in (0, 0.01, 1e6):
        ((before, after),) = on_ranks(1, norms, limit)
        assert after == pytest.approx(min(before, limit) if limit else before, rel=1e-4)
        for found in on_ranks(2, norms, limit):
            assert found == pytest.approx((before, after), rel=1e-5)


def test_schedules_follow_the_progress_of_the_training():
    model, optimizer = build("speedrun", Ranks())
    seen = []
    optimizer.muon.step = lambda **how: seen.append((how["momentum"], how["weight_decay"]))
    for step, progress in ((0, 0.0), (4, 0.5), (6, 0.75), (8, 1.0)):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step(step=step, lr_scale=1.0, progress=progress)
    expected = [(0.85, 0.28), (0.97, 0.14), (0.935, 0.28 * 0.5 * (1 - 0.5**0.5)), (0.9, 0.0)]
    assert list(itertools.chain(*seen)) == pytest.approx(list(itertools.chain(*expected)), abs=1e-12)
    with pytest.raises(AssertionError, match="progress"):
        optimizer.step(step=0, lr_scale=1.0)
