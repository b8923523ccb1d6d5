"""One training step, recorded: the same bits as without a recorder, and numbers that add up."""

import copy
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import SIZES, random_model, small_tokenizer

from nanochat.dataloader import Loader, PackedRows
from nanochat.errors import UserError
from nanochat.gpt import GPT, GPTConfig
from nanochat.loss_eval import evaluate_bpb
from nanochat.muon import orthogonalize
from nanochat.optimizer import build_optimizer
from nanochat.reports import step as report
from nanochat.tracing.step import RATES, Excerpt, fingerprint, make_step, schedule_of, trace_step
from nanochat.tracing.step_code import CHAPTER_OF, FILES, describe
from nanochat.tracing.step_matrices import singular_values
from nanochat.train import sum_of_losses

NUM_TOKENS = 40
LENGTH = 64
SPECIFICATION = {
    "seed": 3,
    "total_batch_tokens": 4 * LENGTH,
    "matrix_lr": 0.02,
    "embedding_lr": 0.2,
    "unembedding_lr": 0.004,
    "weight_decay": 0.0,
    "grad_clip": 1.0,
    "warmup_ratio": 0.0,
    "warmdown_ratio": 0.4,
    "final_lr_ratio": 0.0,
}
METRICS = [{"step": step, "loss": 5.0 - step / 10, "grad_norm": 1.0, "lr_scale": 1.0, "tokens": 256} for step in range(20)]
METRICS.append({"step": 20, "validation_loss": 3.0, "validation_bpb": 1.5})
HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e&amp;</td>\n"


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


@pytest.fixture(scope="module")
def rows(tokenizer, tmp_path_factory) -> PackedRows:
    return packed(tokenizer, tmp_path_factory.mktemp("rows"))


def packed(tokenizer, folder: Path, *, masked_until: int | None = None) -> PackedRows:
    """Rows of words, and of text that must not be obeyed; the first `masked_until` tokens of each are not supervised."""
    rng = np.random.default_rng(0)
    words = ["the ", "cat ", "sat ", "on ", "a ", "mat ", HOSTILE]
    ids = [tokenizer.encode("".join(rng.choice(words, 90)), bos=True)[: LENGTH + 1] for _ in range(9)]
    np.save(folder / "rows.npy", np.array(ids, dtype=np.uint16))
    if masked_until is None:
        return PackedRows([folder / "rows.npy"])
    mask = np.broadcast_to(np.arange(LENGTH + 1) >= masked_until, (9, LENGTH + 1))
    np.save(folder / "mask.npy", mask.astype(np.uint8))
    return PackedRows([folder / "rows.npy"], [folder / "mask.npy"])


def traced(model, tokenizer, rows, *, num_tokens=NUM_TOKENS, metrics=METRICS, **changes):
    specification = SPECIFICATION | changes
    return trace_step(model, tokenizer, rows, rows, specification, metrics, num_tokens=num_tokens, name="tiny/base_train")


@pytest.fixture(scope="module", params=["nanochat", "textbook", "speedrun"])
def model(request):
    return random_model(request.param)


@pytest.fixture(scope="module")
def step(model, tokenizer, rows):
    return traced(model, tokenizer, rows)


def unrecorded(model, rows, *, num_tokens=NUM_TOKENS, **changes):
    """The same two steps, nobody watching: the stepped model, the loss and the gradient's norm of the second."""
    specification = SPECIFICATION | changes
    model = copy.deepcopy(model)
    optimizer = build_optimizer(model, **{rate: specification[rate] for rate in RATES})
    excerpt = Excerpt(Loader(rows, 4, specification["seed"]), 10, num_tokens)
    scale = schedule_of(specification, METRICS).scale(10)
    make_step(model, optimizer, excerpt, 0, scale, specification["grad_clip"])
    loss, grad_norm = make_step(model, optimizer, excerpt, 1, scale, specification["grad_clip"])
    return model, excerpt, loss, grad_norm


# -- the step itself ---------------------------------------------------------------------------------------------------------


def test_a_recorded_step_ends_in_the_same_bits_as_an_unrecorded_one(model, rows, step):
    stepped, _, loss, grad_norm = unrecorded(model, rows)
    assert step["weights"]["sha256"] == fingerprint(stepped)
    assert step["loss"]["before"] == pytest.approx(loss, rel=1e-5)
    assert step["gradient"]["norm"] == pytest.approx(grad_norm, rel=1e-5)


def test_another_rate_ends_in_other_bits(model, rows, step):
    """Negative control of the test above."""
    stepped, *_ = unrecorded(model, rows, matrix_lr=0.021)
    assert step["weights"]["sha256"] != fingerprint(stepped)


def test_the_given_model_is_not_changed(tokenizer, rows):
    model = random_model()
    before = fingerprint(model)
    traced(model, tokenizer, rows)
    assert fingerprint(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_two_traces_are_equal_and_plain_json(model, tokenizer, rows, step):
    text = json.dumps(step, allow_nan=False, sort_keys=True)
    assert json.dumps(traced(model, tokenizer, rows), allow_nan=False, sort_keys=True) == text
    assert len(text) < 600_000


def test_the_rows_are_those_that_the_training_had_in_its_middle(rows, step):
    batch = Loader(rows, 4, SPECIFICATION["seed"]).step_rows(10).tolist()
    assert [step["setting"]["row_before"], step["setting"]["row"]] == batch[:2]
    assert step["setting"]["step"] == 10


# -- losses ------------------------------------------------------------------------------------------------------------------


def test_losses_of_the_tokens_add_up_to_the_loss_of_the_step(step):
    losses = [token["loss"] for token in step["tokens"] if "loss" in token]
    assert len(losses) == step["setting"]["num_supervised"] == NUM_TOKENS
    assert sum(losses) / len(losses) == pytest.approx(step["loss"]["before"], rel=1e-5)
    assert step["loss"]["sum"] == pytest.approx(sum(losses), rel=1e-5)


def test_probabilities_are_those_of_the_losses_and_the_first_preferred_is_the_likeliest(step):
    for token in step["tokens"][1:]:
        assert -math.log(token["p"]) == pytest.approx(token["loss"], rel=1e-3, abs=1e-5)
        shares = [share for _, share in token["preferred"]]
        assert shares == sorted(shares, reverse=True) and shares[0] >= token["p"]
        assert (token["rank"] == 1) == (shares[0] == token["p"])


def test_the_loss_after_is_that_of_the_stepped_model(model, rows, step):
    stepped, excerpt, *_ = unrecorded(model, rows)
    with torch.no_grad():
        loss = float(sum_of_losses(stepped, *excerpt.batch(1))) / NUM_TOKENS
    assert step["loss"]["after"] == pytest.approx(loss, rel=1e-5)
    assert step["loss"]["after"] < step["loss"]["before"]


def test_tokens_of_the_user_are_shown_and_cost_nothing(tokenizer, tmp_path):
    masked = packed(tokenizer, tmp_path, masked_until=30)
    step = traced(random_model(), tokenizer, masked)
    has_loss = ["loss" in token for token in step["tokens"]]
    assert has_loss == [False] * 30 + [True] * (NUM_TOKENS + 1 - 30)
    assert step["setting"]["num_supervised"] == NUM_TOKENS + 1 - 30
    assert "".join(token["text"] for token in step["bpb"]["tokens"])
    assert [("nats" in token) for token in step["bpb"]["tokens"]] == has_loss


def test_control_characters_of_the_rows_are_shown_instead_of_written(step):
    text = "".join(token["text"] for token in step["tokens"] + step["bpb"]["tokens"])
    assert "script" in text.replace("\u2026", "")
    assert not {"\x1b", "\u202e", "\n"} & set(text)


# -- gradients ---------------------------------------------------------------------------------------------------------------


def test_gradients_of_the_components_combine_to_the_whole(model, step):
    components = step["components"]
    assert math.hypot(*(c["gradient"] for c in components)) == pytest.approx(step["gradient"]["norm"], rel=1e-5)
    assert math.hypot(*(c["clipped"] for c in components)) == pytest.approx(step["gradient"]["clipped"], rel=1e-5)
    assert sum(c["num_parameters"] for c in components) == model.num_parameters()
    assert step["gradient"]["clipped"] == pytest.approx(min(1.0, step["gradient"]["norm"]), rel=1e-4)


def test_each_component_moved_as_far_as_its_weights_did(model, rows, step):
    before, excerpt = copy.deepcopy(model), None
    optimizer = build_optimizer(before, **{rate: SPECIFICATION[rate] for rate in RATES})
    excerpt = Excerpt(Loader(rows, 4, SPECIFICATION["seed"]), 10, NUM_TOKENS)
    make_step(before, optimizer, excerpt, 0, 1.0, 1.0)
    after, *_ = unrecorded(model, rows)
    moved = {c["name"]: c["moved"] for c in step["components"]}
    for name in ("wte", "blocks.1.attn.c_q", "blocks.0.mlp.c_proj"):
        distance = (after.get_parameter(f"{name}.weight") - before.get_parameter(f"{name}.weight")).detach()
        reference = float(distance.norm())
        biases = [key for key, _ in model.named_parameters() if key == f"{name}.bias"]
        for key in biases:
            reference = math.hypot(reference, float((after.get_parameter(key) - before.get_parameter(key)).detach().norm()))
        assert moved[name] == pytest.approx(reference, rel=1e-4)


def test_every_parameter_is_moved_by_one_optimizer_at_its_rate(step):
    rates = {c["name"]: (c["optimizer"], c["rate"]) for c in step["components"]}
    assert rates["blocks.1.attn.c_q"] == ("Muon", 0.02)
    assert rates["blocks.1.mlp.c_fc"] == ("Muon", 0.04)  # four times as many rows as columns: twice the rate
    optimizer, rate = rates["wte"]
    given = 0.004 if step["config"]["init"] == "gpt2" else 0.2
    assert optimizer == "AdamW" and rate == pytest.approx(given * (32 / 768) ** -0.5, rel=1e-5)
    listed = step["schedule"]["rates"]
    assert sum(row["num_parameters"] for row in listed) == step["num_parameters"]
    assert all(row["given"] * row["width_scale"] == pytest.approx(row["rate"], rel=1e-4) for row in listed)
    if step["config"]["init"] == "speedrun":
        given_of = {tuple(row["parameters"]): (row["key"], row["rate"]) for row in listed}
        assert given_of[("x0_lambdas",)] == ("optimizer.scalar_lr", 0.5)
        assert given_of[("value_embeds.*",)] == ("embedding_lr", pytest.approx(0.1 * (32 / 768) ** -0.5, rel=1e-5))


# -- the optimizers ----------------------------------------------------------------------------------------------------------


def test_singular_values_are_those_of_a_full_decomposition():
    for shape in [(24, 24), (48, 12), (12, 48)]:
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(singular_values(matrix).float(), torch.linalg.svdvals(matrix), rtol=1e-4, atol=1e-4)


def test_muon_lifts_every_direction(step):
    names = [matrix["name"] for matrix in step["muon"]]
    assert names == ["blocks.1.attn.c_q.weight", "blocks.1.mlp.c_fc.weight", "blocks.1.mlp.c_proj.weight"]
    for matrix in step["muon"]:
        stages = {stage["stage"]: stage for stage in matrix["stages"]}
        rounds = [f"round {number}" for number in range(1, 6)]
        assert list(stages) == ["gradient", "momentum", "look-ahead", *rounds, "update"]
        assert stages["update"]["directions"] > 2 * stages["gradient"]["directions"]
        assert 0.6 < stages["update"]["largest"] < 1.4
        medians = [stages[name]["median"] for name in rounds]
        assert medians[-1] > medians[0]
        # what the weights moved by is the rate times the update
        assert matrix["rms"]["moved"] == pytest.approx(matrix["rate"] * matrix["rms"]["update"], rel=1e-3)


def test_the_update_is_what_orthogonalize_makes_of_the_look_ahead(step):
    """Singular values of the recorded rounds follow the polynomial of Muon, up to bfloat16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    for matrix in step["muon"]:
        stages = {stage["stage"]: stage for stage in matrix["stages"]}
        values = np.array(stages["look-ahead"]["singular"]) / stages["look-ahead"]["norm"]
        for number in range(1, 6):
            values = np.abs(a * values + b * values**3 + c * values**5)
            recorded = np.array(stages[f"round {number}"]["singular"])
            assert np.abs(np.sort(values)[::-1] - recorded).max() < 0.15
    assert orthogonalize(torch.eye(4)[None]).shape == (1, 4, 4)


def test_one_number_of_adamw_by_hand(step):
    for table in step["adamw"]:
        one = table["one"]
        mean = one["beta1"] * one["mean_before"] + (1 - one["beta1"]) * one["gradient"]
        square = one["beta2"] * one["square_before"] + (1 - one["beta2"]) * one["gradient"] ** 2
        assert mean == pytest.approx(one["mean"], rel=1e-4, abs=1e-12)
        assert square == pytest.approx(one["square"], rel=1e-4, abs=1e-20)
        spread = math.sqrt(square / one["square_bias"]) + one["eps"]
        move = -one["lr"] * mean / one["mean_bias"] / spread
        assert move == pytest.approx(one["moved"], rel=1e-3, abs=2e-7)
        assert one["weight"] - one["weight_before"] == pytest.approx(one["moved"], abs=2e-5)  # six digits are shown


def test_embedding_rows_without_a_token_have_no_gradient_and_those_of_the_step_before_still_move(tokenizer, rows):
    step = traced(random_model("nanochat"), tokenizer, rows)
    embedding, head = step["adamw"]
    assert [table["name"] for table in step["adamw"]] == ["wte.weight", "lm_head.weight"]
    ids = {token["id"] for token in step["tokens"][:-1]}
    assert embedding["num_rows"]["with_gradient"] == len(ids)
    assert embedding["num_rows"]["moved"] == len(ids) + embedding["num_rows"]["moved_without_gradient"]
    assert head["num_rows"]["with_gradient"] == head["shape"][0]  # every token's probability is pushed up or down
    # moves are nearly alike, whatever the gradients
    assert head["spread"]["moved"]["decades"] < head["spread"]["gradient"]["decades"]
    assert head["spread"]["moved"]["high"] <= 1.6 * head["one"]["lr"]


def test_a_tied_head_is_one_table(tokenizer, rows):
    step = traced(random_model("textbook"), tokenizer, rows)
    assert [table["name"] for table in step["adamw"]] == ["wte.weight"]


@pytest.mark.parametrize("is_trained", [False, True])
def test_rates_of_zero_move_nothing(tokenizer, rows, is_trained):
    untrained = GPT(GPTConfig.preset("nanochat", **SIZES)).init_weights(0)  # most of its gradients are zero
    step = traced(
        random_model() if is_trained else untrained, tokenizer, rows, matrix_lr=0.0, embedding_lr=0.0, unembedding_lr=0.0
    )
    assert all(c["moved"] == 0 for c in step["components"])
    assert step["loss"]["after"] == step["loss"]["before"]
    json.dumps(step, allow_nan=False)
    assert "does not tell all" not in "\n".join(report.blocks({"step": step}))


# -- bits per byte and the schedule ------------------------------------------------------------------------------------------


def test_bits_per_byte_by_hand_are_those_of_evaluate_bpb(model, tokenizer, rows, step):
    x, y = (part[:, :NUM_TOKENS] for part in rows.inputs_and_targets(np.array([0])))
    found = evaluate_bpb(model, [(x, y)], tokenizer.token_bytes())
    bpb = step["bpb"]
    assert bpb["by_hand"] == pytest.approx(found["bpb"], rel=1e-5) == bpb["bpb"]
    assert (bpb["bytes"], bpb["num_tokens"]) == (found["bytes"], found["tokens"])
    counted = [token for token in bpb["tokens"] if "nats" in token]
    nats = sum(token["nats"] for token in counted if token["bytes"])
    assert nats / (math.log(2) * sum(token["bytes"] for token in counted)) == pytest.approx(found["bpb"], rel=1e-4)


def test_the_schedule_is_that_of_the_training(step):
    schedule = step["schedule"]
    assert schedule["steps"] == list(range(20))
    assert schedule["scale"][:13] == [1.0] * 13 and schedule["scale"][19] == pytest.approx(1 / 8)
    assert schedule["this"]["step"] == step["setting"]["step"] and schedule["evaluated"]["validation_bpb"] == 1.5
    assert sum(rate["num_parameters"] for rate in schedule["rates"]) == step["num_parameters"]


@pytest.mark.parametrize("metrics", [[], METRICS[:1]])
def test_a_training_of_one_step_can_be_shown(tokenizer, rows, metrics):
    step = traced(random_model(), tokenizer, rows, metrics=metrics)
    assert (step["setting"]["step"], step["setting"]["num_steps"]) == (0, 1)


# -- the code ----------------------------------------------------------------------------------------------------------------


def test_every_shown_function_ran_and_its_lines_are_those_of_the_file(step):
    assert [code["function"] for code in step["code"]] == list(CHAPTER_OF)
    for code in step["code"]:
        file = next(path for path in FILES if "/".join(path.parts[-2:]) == code["file"])
        lines = file.read_text().splitlines()
        end = code["line"] + len(code["code"]) - 1
        assert lines[code["line"] - 1 : end] == code["code"]
        assert code["events"] and all(code["line"] < event["line"] <= event["end_line"] <= end for event in code["events"])


def values_of(step, function, name):
    code = next(code for code in step["code"] if code["function"] == function)
    return [value for event in code["events"] for value in event["values"] if value["name"] == name]


def test_lines_show_the_values_of_this_step(step):
    assert values_of(step, "update", "grad_norm")[0]["number"] == pytest.approx(step["gradient"]["norm"])
    assert values_of(step, "sum_of_losses", "return")[0]["number"] == pytest.approx(step["loss"]["sum"], rel=1e-5)
    assert values_of(step, "GPT.forward", "logits")[0]["shape"] == [1, NUM_TOKENS, 300]
    assert values_of(step, "learning_rate_scale", "return")[0]["number"] == step["setting"]["lr_scale"]
    assert values_of(step, "muon_momentum", "return")[0]["number"] == step["setting"]["momentum"]
    assert len(values_of(step, "orthogonalize", "gram")) == 5
    followed = step["muon"][1]
    assert values_of(step, "Muon.step", "lr")[0]["number"] == followed["rate"]
    assert values_of(step, "Muon.step", "name")[0]["text"] == repr(followed["name"])
    assert values_of(step, "AdamW.step", "name")[0]["text"] == repr(step["adamw"][-1]["name"])
    assert values_of(step, "AdamW.step", "lr")[0]["number"] == step["adamw"][-1]["one"]["lr"]
    assert values_of(step, "batch_sums", "sums")[-1]["numbers"][0] == pytest.approx(step["bpb"]["nats"], rel=1e-5)


def test_whole_numbers_are_shown_to_the_last_digit():
    assert describe("num_parameters", 560_988_160) == {"name": "num_parameters", "number": 560_988_160}
    assert describe("loss", 1 / 3) == {"name": "loss", "number": 0.333333}


# -- wrong input -------------------------------------------------------------------------------------------------------------


def test_rows_without_anything_to_learn_are_refused_in_words(tokenizer, tmp_path):
    masked = packed(tokenizer, tmp_path, masked_until=NUM_TOKENS + 5)
    with pytest.raises(UserError, match=r"Raise trace\.step_tokens"):
        traced(random_model(), tokenizer, masked)


def test_rows_of_another_vocabulary_are_refused_in_words(tokenizer, rows):
    with pytest.raises(UserError, match="not its own rows"):
        traced(random_model(vocab_size=100), tokenizer, rows)


def test_more_tokens_than_a_row_has_are_cut_to_the_row(tokenizer, rows):
    step = traced(random_model(), tokenizer, rows, num_tokens=4 * LENGTH)
    assert step["setting"]["num_tokens"] == LENGTH


# -- the report --------------------------------------------------------------------------------------------------------------


def test_the_report_tells_the_step_in_numbers(step):
    text = "\n\n".join(report.blocks({"step": step}))
    assert f"{step['loss']['before']:.4f}" in text and f"{step['bpb']['by_hand']:.4f}" in text
    assert "blocks.1.mlp.c_fc" in text and "does not tell all" not in text
    assert "<script>" not in text


def test_the_report_says_why_other_text_got_worse_or_better(step):
    bpb = step["bpb"]

    def told(after: float) -> str:
        return "\n".join(report.blocks({"step": {**step, "bpb": {**bpb, "after": {**bpb["after"], "bpb": after}}}}))

    assert "forgets a little of everything else" in told(bpb["bpb"] + 0.1)
    assert "helps a little with other text" in told(bpb["bpb"] - 0.1)
    assert not re.search("forgets a little|helps a little", told(bpb["bpb"]))


def test_the_report_says_what_a_trace_does_not_hold(step):
    assert "no training step" in report.blocks({})[0]
    for key in ("setting", "tokens", "components", "muon", "adamw", "schedule", "bpb"):
        damaged = {"step": {other: value for other, value in step.items() if other != key}}
        assert f"`{key}`" in "\n".join(report.blocks(damaged))
