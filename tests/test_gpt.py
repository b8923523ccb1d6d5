"""The model against explicit loops, and the comments in its source against what really flows through it."""

import inspect
import math
import re
from pathlib import Path

import pytest
import torch

from nanochat import gpt
from nanochat.errors import UserError
from nanochat.gpt import GPT, GPTConfig, naive_attention, sdpa_attention
from nanochat.kv_cache import KVCache
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


@pytest.mark.parametrize("preset", ["nanochat", "textbook"])
def test_naive_and_fused_attention_give_the_same_logits(preset):
    naive, fused = make_model(preset, attention="naive"), make_model(preset, attention="sdpa")
    torch.testing.assert_close(naive(IDS), fused(IDS), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("preset", ["nanochat", "textbook"])
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
    [({"n_head": 5}, "n_embd 48"), ({"n_kv_head": 4}, "n_kv_head 4"), ({"n_head": 16, "n_kv_head": 16}, "odd")],
)
def test_sizes_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        GPTConfig(**{**SIZES, **changes})


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
    for preset in ("nanochat", "textbook"):
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
