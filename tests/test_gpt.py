"""The model against explicit loops, and the comments in its source against what really flows through it."""

import dataclasses
import inspect
import math
import re
from pathlib import Path

import pytest
import torch

from nanochat import gpt
from nanochat.errors import UserError
from nanochat.gpt import GPT, GPTConfig, naive_attention, sdpa_attention, windowed
from nanochat.kv_cache import KVCache
from nanochat.presets import OFF, PRESETS, layer_windows
from nanochat.tracing.lines import Line, LineRecorder, Statement, read_source

# a different size for every letter, so that no comment can be right by accident
LETTERS = {"B": 2, "T": 5, "C": 48, "H": 6, "G": 3, "D": 8, "V": 71, "F": 192, "S": 7}
SIZES = {"vocab_size": 71, "n_layer": 2, "n_head": 6, "n_kv_head": 3, "n_embd": 48, "sequence_len": 13}
IDS = torch.arange(10).view(2, 5) * 7 % 71


def make_model(preset: str, **changes) -> GPT:
    model = GPT(GPTConfig.preset(preset, **{**SIZES, **changes})).init_weights(1)
    # the head and the output projections start at zero: give them weights, or nothing would be compared
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def test_d20_has_560_988_160_parameters():
    with torch.device("meta"):
        assert GPT(GPTConfig()).num_parameters() == 560_988_160
    assert GPTConfig() == GPTConfig.preset("nanochat")


def loop_attention(q, k, v):
    """Causal attention as the formula says it: one query, one key, one head at a time."""
    B, H, T, D = q.shape
    y = torch.zeros_like(q)
    for b in range(B):
        for h in range(H):
            kv_head = h // (H // k.size(1))
            for t in range(T):
                scores = [float(q[b, h, t] @ k[b, kv_head, s]) / math.sqrt(D) for s in range(t + 1)]
                total = sum(math.exp(score) for score in scores)
                for s, score in enumerate(scores):
                    y[b, h, t] += math.exp(score) / total * v[b, kv_head, s]
    return y


@pytest.mark.parametrize("attend", [naive_attention, sdpa_attention])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_equals_a_loop_over_queries_and_keys(attend, kv_heads):
    generator = torch.Generator().manual_seed(kv_heads)
    q = torch.randn(2, 4, 7, 6, generator=generator)
    k, v = (torch.randn(2, kv_heads, 7, 6, generator=generator) for _ in range(2))
    torch.testing.assert_close(attend(q, k, v, None), loop_attention(q, k, v), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_naive_and_fused_attention_give_the_same_logits(preset):
    naive, fused = make_model(preset, attention="naive"), make_model(preset, attention="sdpa")
    torch.testing.assert_close(naive(IDS), fused(IDS), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_token_never_sees_what_follows_it(preset):
    model = make_model(preset)
    changed = IDS.clone()
    changed[:, 3:] = 5
    torch.testing.assert_close(model(IDS)[:, :3], model(changed)[:, :3], atol=0, rtol=0)
    assert not torch.allclose(model(IDS)[:, 3:], model(changed)[:, 3:])


def test_rope_scores_depend_on_the_distance_alone():
    model = make_model("nanochat")
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, LETTERS["D"], generator=generator) for _ in range(2))

    def score(at_q, at_k):
        turned = [gpt.rotate(x, *model.rope(torch.tensor([[at]]), torch.float32)) for x, at in ((q, at_q), (k, at_k))]
        return float((turned[0] * turned[1]).sum())

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-3)


def test_initial_model_gives_every_token_the_same_score():
    model = GPT(GPTConfig.preset("nanochat", **SIZES)).init_weights(3)
    assert torch.equal(model(IDS), torch.zeros(2, 5, 71))


def test_initial_weights_depend_on_the_seed_alone():
    one, same, other = (GPT(GPTConfig(**SIZES)).init_weights(seed).wte.weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_soft_cap_bounds_the_logits():
    model = make_model("nanochat", soft_cap=0.5)
    assert model(IDS).abs().max() < 0.5


def test_bfloat16_activations_stay_close_to_fp32():
    model = make_model("nanochat")
    exact = model(IDS)
    model.compute_dtype = torch.bfloat16
    assert model.hidden(IDS).dtype == torch.bfloat16
    assert model(IDS).dtype == torch.float32
    assert (model(IDS) - exact).abs().max() < 0.2 * exact.abs().max()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_head": 5}, "n_embd 48"),
        ({"n_kv_head": 4}, "n_kv_head 4"),
        ({"n_head": 16, "n_kv_head": 16}, "odd"),
        ({"window_pattern": "SSsL"}, "window_pattern 'SSsL'"),
        ({"window_pattern": ""}, "window_pattern ''"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        GPTConfig(**{**SIZES, **changes})


# -- the components of 2026 --------------------------------------------------------------------------------------------------


def plain_speedrun(w, ids, config):
    """The logits of one sequence (T,) by the formulas alone, from the weights by name."""
    T, L, H, G, D = len(ids), config.n_layer, config.n_head, config.n_kv_head, config.head_dim
    angles = torch.arange(T)[:, None, None] * 100_000 ** (-torch.arange(0, D, 2) / D)

    def norm(x):
        return x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()

    def turn(x):  # (T, heads, D)
        one, two = x[..., : D // 2], x[..., D // 2 :]
        return torch.cat([one * angles.cos() + two * angles.sin(), two * angles.cos() - one * angles.sin()], dim=-1)

    embedded = norm(w["wte.weight"][ids])
    x0 = embedded.clone()
    for t in range(1, T):
        x0[t] += w["smear_lambda"] * torch.sigmoid(w["smear_gate.weight"][0] @ embedded[t, :24]) * embedded[t - 1]
    x = x0
    for i in range(L):
        block = {name.removeprefix(f"blocks.{i}."): tensor for name, tensor in w.items() if name.startswith(f"blocks.{i}.")}
        x = w["resid_lambdas"][i] * x + w["x0_lambdas"][i] * x0
        y = norm(x)
        q, k, v = ((y @ block[f"attn.c_{name}.weight"].T).view(T, -1, D) for name in "qkv")
        if i in (L - 1, L - 3, L - 5):
            table = w[f"value_embeds.{i}.weight"][ids].view(T, G, D)
            for t in range(T):
                for g in range(G):
                    v[t, g] += 3 * torch.sigmoid(block["attn.value_gate.weight"][g] @ y[t, :12]) * table[t, g]
        q, k = 1.2 * norm(turn(q)), 1.2 * norm(turn(k))
        found = torch.zeros(T, H, D)
        for t in range(T):
            first = 0 if i in (3, L - 1) else max(0, t - 128)
            for h in range(H):
                scores = k[first : t + 1, h * G // H] @ q[t, h] / math.sqrt(D)
                found[t, h] = scores.softmax(dim=0) @ v[first : t + 1, h * G // H]
        x = x + found.view(T, -1) @ block["attn.c_proj.weight"].T
        x = x + (norm(x) @ block["mlp.c_fc.weight"].T).relu().square() @ block["mlp.c_proj.weight"].T
        if i == L // 2:
            halfway = x
    x = norm(x - w["backout_lambda"] * halfway)
    return 15 * torch.tanh(x @ w["lm_head.weight"].T / 15)


@torch.no_grad()
def test_the_speedrun_is_what_its_formulas_say():
    model = make_model("speedrun", n_layer=6, sequence_len=160)
    ids = torch.randint(71, (150,), generator=torch.Generator().manual_seed(0))
    expected = plain_speedrun(model.state_dict(), ids, model.config)
    torch.testing.assert_close(model(ids[None])[0], expected, atol=1e-4, rtol=1e-4)


def with_other_components(model, **changes):
    """The same weights, as far as they are needed, in a model of other components."""
    other = GPT(dataclasses.replace(model.config, **changes))
    other.load_state_dict({name: model.state_dict()[name] for name in other.state_dict()})
    return other


@pytest.mark.parametrize("preset", ["speedrun", "textbook"])
@pytest.mark.parametrize("component", OFF)
@torch.no_grad()
def test_each_component_is_a_switch_of_its_own(preset, component):
    """Alone, and with all the others, it changes what the model says."""
    ids = torch.randint(71, (1, 140), generator=torch.Generator().manual_seed(0))
    sizes = {**SIZES, "n_layer": 3, "sequence_len": 140}
    model = make_model(preset, **{**sizes, component: PRESETS["speedrun"][component]})
    without = with_other_components(model, **{component: OFF[component]})
    assert not torch.allclose(model(ids), without(ids), atol=1e-4)


def test_every_weight_of_the_speedrun_learns():
    model = make_model("speedrun", n_layer=3)
    model(IDS).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())


def test_the_speedrun_begins_as_said():
    config = GPTConfig.preset("speedrun", vocab_size=500, n_layer=5, n_head=2, n_kv_head=2, n_embd=128, sequence_len=16)
    w = GPT(config).init_weights(0).state_dict()
    torch.testing.assert_close(w["resid_lambdas"], torch.tensor([1.15, 1.125, 1.1, 1.075, 1.05]))
    torch.testing.assert_close(w["x0_lambdas"], torch.tensor([0.2, 0.1625, 0.125, 0.0875, 0.05]))
    assert w["smear_lambda"].item() == 0 and w["backout_lambda"].item() == pytest.approx(0.2)
    for name, std in {"wte": 0.8, "lm_head": 0.001}.items():
        assert w[f"{name}.weight"].std().item() == pytest.approx(std, rel=0.02)
    for name, bound in {"attn.c_q": 1.0, "attn.c_k": 1.0, "attn.c_v": 1.0, "mlp.c_fc": 0.4}.items():
        assert w[f"blocks.0.{name}.weight"].abs().max().item() == pytest.approx(bound * math.sqrt(3 / 128), rel=0.01)
    assert w["value_embeds.0.weight"].abs().max().item() == pytest.approx(math.sqrt(3 / 128), rel=0.01)
    for name in ("smear_gate.weight", "blocks.2.attn.value_gate.weight"):
        assert w[name].min() >= 0 and w[name].max() <= 0.02 and w[name].std() > 0.004
    assert not w["blocks.1.attn.c_proj.weight"].any() and not w["blocks.1.mlp.c_proj.weight"].any()


def test_components_begin_alike_whichever_init_the_others_have():
    one, other = (make_config_model(init) for init in ("speedrun", "gpt2"))
    assert torch.equal(one["resid_lambdas"], other["resid_lambdas"]) and torch.equal(one["x0_lambdas"], other["x0_lambdas"])


def make_config_model(init):
    return GPT(GPTConfig.preset("speedrun", **SIZES, init=init)).init_weights(0).state_dict()


def test_models_without_the_components_are_named_as_before():
    config = GPTConfig(**{**SIZES, "n_layer": 1})
    inside = ("attn.c_q", "attn.c_k", "attn.c_v", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert list(GPT(config).state_dict()) == ["wte.weight", *(f"blocks.0.{name}.weight" for name in inside), "lm_head.weight"]
    assert not set(OFF) & set(config.as_dict())
    speedrun = GPTConfig.preset("speedrun", **SIZES)
    assert set(OFF) <= set(speedrun.as_dict()) and GPTConfig(**speedrun.as_dict()) == speedrun


def test_windows_follow_the_pattern_and_the_last_block_sees_all():
    assert layer_windows("SSSL", 5, 2048) == [512, 512, 512, None, None]
    assert layer_windows("SL", 4, 512) == [128, None, 128, None]
    assert layer_windows("S", 2, 700) == [256, None]
    assert layer_windows("L", 2, 2048) == [None, None]


@pytest.mark.parametrize("attend", [naive_attention, sdpa_attention])
@pytest.mark.parametrize(("num_tokens", "window"), [(128, 128), (129, 128), (130, 128), (400, 128), (400, 256), (300, 384)])
def test_windowed_attention_equals_a_band_of_the_whole(attend, num_tokens, window):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, num_tokens, 6, generator=generator)
    k, v = (torch.randn(2, 2, num_tokens, 6, generator=generator) for _ in range(2))
    band = torch.tensor([[t - window <= s <= t for s in range(num_tokens)] for t in range(num_tokens)])
    torch.testing.assert_close(windowed(attend, q, k, v, window), naive_attention(q, k, v, band), atol=1e-5, rtol=1e-5)


def test_windowed_attention_never_looks_at_all_keys():
    sizes = []

    def attend(q, k, v, visible):
        sizes.append((q.size(2), k.size(2)))
        return q

    windowed(attend, *torch.zeros(3, 1, 1, 2048, 2), 512)
    assert len(sizes) == 16 and set(sizes[4:]) == {(128, 640)}


# -- shape comments ----------------------------------------------------------------------------------------------------------

GPT_FILE = Path(inspect.getsourcefile(gpt))


def commented_lines() -> dict[int, Statement]:
    """Line number -> statement, for every statement of gpt.py that states a shape."""
    functions = read_source(GPT_FILE).functions.values()
    statements = [statement for function in functions for statement in function.statements.values()]
    return {statement.line: statement for statement in statements if statement.letters}


def shapes_seen(model: GPT) -> dict[int, tuple[int, ...]]:
    """Run the model, and note the shape of what each of these statements assigns first."""
    seen = {}

    def note(line: Line) -> None:
        if line.letters:
            seen[line.line] = tuple(next(iter(line.values.values())).shape)

    cache = KVCache(model.config, len(IDS), 7, torch.float32, "cpu")
    model(IDS[:, :2], cache)
    cache.advance(2)  # so that there are more keys (S) than queries (T)
    with LineRecorder([GPT_FILE], note):
        model(IDS)
        model(IDS, cache)
    return seen


def test_every_shape_comment_is_true():
    seen = {}
    for preset in PRESETS:
        for attention in ("naive", "sdpa"):
            seen |= shapes_seen(make_model(preset, attention=attention))
    comments = commented_lines()
    assert len(comments) >= 28
    assert seen.keys() == comments.keys(), "these commented lines never ran: " + str(comments.keys() - seen.keys())
    for number, statement in comments.items():
        expected = tuple(LETTERS[letter] for letter in statement.letters.split(", "))
        assert seen[number] == expected, f"gpt.py:{number}: {statement.code}"


def test_a_wrong_shape_comment_would_be_noticed():
    number, statement = next(iter(commented_lines().items()))
    wrong = tuple(LETTERS[letter] + 1 for letter in statement.letters.split(", "))
    assert shapes_seen(make_model("nanochat"))[number] != wrong


def test_no_shape_comment_is_overlooked():
    """Every comment of gpt.py that looks like one belongs to a statement."""
    text = GPT_FILE.read_text().splitlines()
    written = [number for number, line in enumerate(text, start=1) if re.search(r"# \([A-Z](, [A-Z])*\)$", line)]
    assert written == sorted(statement.end_line for statement in commented_lines().values())
