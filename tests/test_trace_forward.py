"""The traced forward pass: that it is the model's own, that it is complete, and what it says of shapes, heads and tokens."""

import base64
import dataclasses
import hashlib
import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import PRESETS, random_model, small_tokenizer

from nanochat import engine, gpt
from nanochat import tokenizer as tokenizer_module
from nanochat.errors import UserError
from nanochat.gpt import GPTConfig
from nanochat.presets import OFF
from nanochat.reports.forward import blocks
from nanochat.sections import MAX_PROMPT_TOKENS
from nanochat.tracing.differences import COMPONENTS, differences
from nanochat.tracing.forward import counterpart, nearest_preset, pieces, trace_forward, untrained, written_out
from nanochat.tracing.lines import LineRecorder, read_source
from nanochat.tracing.pictures import attention_triangle, furthest, picture, summary

PROMPT = "the tale of a 12 é"
GPT_FILE = Path(inspect.getsourcefile(gpt) or "")
HOSTILE = {
    "script": "</script><script>alert(1)</script><img src=x onerror=alert(2)>",
    "escape": "\x1b[31mred\x1b[0m and \x07",
    "bidi": "abc \u202e drow \u2066 end",
    "surrogate": "half \ud83d of it",
    "nul": "a\x00b",
    "lines": "one\ntwo\r\n\tthree\u2028four",
    "emoji": "👩‍🚀 é ñ 漢字",
    "markdown": "| `code` | **bold** $x$ [a](http://b)",
}


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


@pytest.fixture(scope="module")
def traces(tokenizer):
    """(model, its trace) of every preset of small_models."""
    models = {name: random_model(**changes) for name, changes in PRESETS.items()}
    return {name: (model, trace_forward(model, tokenizer, PROMPT, name=name, is_chat=False)) for name, model in models.items()}


def ids_of(trace) -> torch.Tensor:
    return torch.tensor([[token["id"] for token in trace["tokens"]]])


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


# -- it is the model's own ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_the_traced_logits_are_the_models_own(traces, preset):
    model, trace = traces[preset]
    naive = random_model(**PRESETS[preset], attention="naive")
    with torch.no_grad():
        own, written = model(ids_of(trace)), naive(ids_of(trace))
    assert trace["logits_sha256"] == digest(written), "bit for bit, where attention is written out"
    torch.testing.assert_close(written, own, atol=1e-5, rtol=1e-5)
    last = next(step for step in reversed(trace["steps"]) if step["file"] == "nanochat/gpt.py")
    (value,) = last["values"]
    assert (last["function"], value["name"], value["shape"]) == ("GPT.forward", "return", list(own.shape))
    assert value["mean"] == pytest.approx(float(own.mean()), abs=1e-5)
    assert value["max"] == pytest.approx(float(own.max()), rel=1e-4)


def test_other_weights_would_be_noticed(traces):
    _, trace = traces["nanochat"]
    other = random_model(seed=1, attention="naive")
    with torch.no_grad():
        assert trace["logits_sha256"] != digest(other(ids_of(trace)))


def test_the_written_out_model_shares_the_weights_and_leaves_the_model_as_it_was():
    model = random_model()
    traced = written_out(model)
    assert traced.wte.weight.data_ptr() == model.wte.weight.data_ptr()
    assert (traced.config.attention, model.config.attention) == ("naive", "sdpa")
    assert model.blocks[0].attn.attend is gpt.sdpa_attention


def test_a_trace_is_the_same_every_time(tokenizer, traces):
    model, trace = traces["nanochat"]
    again = trace_forward(model, tokenizer, PROMPT, name="nanochat", is_chat=False)
    assert json.dumps(again, allow_nan=False) == json.dumps(trace, allow_nan=False)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_last_block_unembedded_is_what_the_model_says(traces, preset):
    model, trace = traces[preset]
    with torch.no_grad():
        chances = model(ids_of(trace))[0].softmax(dim=1)
    last = trace["lens"][-1]
    assert [token for token, _ in last["top"]] == chances[-1].topk(10).indices.tolist()
    assert last["top"][0][1] == pytest.approx(float(chances[-1].max()), rel=1e-4)
    assert last["positions"]["top"] == chances.argmax(dim=1).tolist()
    assert last["rank"] == 1 and set(last["positions"]["rank"]) == {1}
    assert len(trace["lens"]) == 1 + model.config.n_layer


def test_the_lens_after_a_block_is_that_of_a_model_that_ends_there(traces):
    _, trace = traces["nanochat"]
    short = random_model()
    short.blocks = short.blocks[:1]
    with torch.no_grad():
        chances = short(ids_of(trace))[0, -1].softmax(dim=0)
    row = trace["lens"][1]
    assert [token for token, _ in row["top"]] == chances.topk(10).indices.tolist()
    entropy = -(chances * chances.log2()).sum()
    assert row["entropy"] == pytest.approx(float(entropy), rel=1e-3)


# -- it is complete -----------------------------------------------------------------------------------------------------------


def lines_that_run(model, trace) -> set[tuple[str, int]]:
    """(function, line) of every statement of gpt.py that a plain `sys.settrace` sees run in the same forward pass."""
    import sys

    seen = set()

    def on_event(frame, event, _):
        if frame.f_code.co_filename != str(GPT_FILE) or frame.f_code.co_name.startswith("<"):
            return None
        if event == "line":
            seen.add((frame.f_code.co_qualname, frame.f_lineno))
        return on_event

    sys.settrace(on_event)
    try:
        with torch.no_grad():
            model(ids_of(trace))
    finally:
        sys.settrace(None)
    return seen


@pytest.mark.parametrize("preset", PRESETS)
def test_every_line_of_the_forward_pass_appears_and_no_other(traces, preset):
    _, trace = traces[preset]
    naive = random_model(**PRESETS[preset], attention="naive")
    shown = {
        (step["function"], line)
        for step in trace["steps"]
        if step["file"] == "nanochat/gpt.py"
        for line in range(step["line"], step["end_line"] + 1)
    }
    assert lines_that_run(naive, trace) == shown


def test_the_way_goes_from_the_text_through_the_model_to_a_token(traces, tokenizer):
    _, trace = traces["nanochat"]
    files = list(dict.fromkeys(step["file"] for step in trace["steps"]))
    assert files == ["nanochat/tokenizer.py", "nanochat/gpt.py", "nanochat/engine.py"]
    encoded = next(step for step in reversed(trace["steps"]) if step["function"] == "Tokenizer.encode")
    assert encoded["values"][0]["ids"] == tokenizer.encode(PROMPT, bos=True)
    chosen = trace["steps"][-1]
    assert (chosen["function"], chosen["values"][0]["ids"]) == ("choose", [trace["choice"]["token"]])


def test_a_list_is_shown_as_it_was_then_though_later_lines_append_to_it(traces, tokenizer):
    _, trace = traces["nanochat"]
    assert trace["steps"][0]["code"].startswith("ids = [self.bos_id]")
    assert trace["steps"][0]["values"][0]["ids"] == [tokenizer.bos_id]


def test_sources_are_the_files_themselves(traces):
    _, trace = traces["nanochat"]
    for module in (tokenizer_module, gpt, engine):
        name = module.__name__.replace(".", "/") + ".py"
        assert trace["sources"][name] == Path(inspect.getsourcefile(module)).read_text().splitlines()
    for step in trace["steps"]:
        lines = trace["sources"][step["file"]][step["line"] - 1 : step["end_line"]]
        assert [line.strip() for line in step["code"].splitlines()] == [line.strip() for line in lines]


def test_chat_prompts_go_through_the_conversation(traces, tokenizer):
    trace = trace_forward(random_model(), tokenizer, "where is it?", name="chat", is_chat=True)
    ids = tokenizer.render_prompt({"messages": [{"role": "user", "content": "where is it?"}]})
    assert [token["id"] for token in trace["tokens"]] == ids
    assert "Tokenizer.render_prompt" in trace["functions"]
    assert trace["pieces"][0] == {"text": "where", "start": 2, "end": trace["pieces"][1]["start"]}


# -- shapes, modules, numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_shapes_agree_with_the_comments(traces, preset):
    _, trace = traces[preset]
    assert wrong_comments(trace) == []
    stated = {(step["function"], step["line"]) for step in trace["steps"] if "letters" in step}
    assert len(stated) >= 20


def test_a_wrong_comment_would_be_noticed(traces):
    _, trace = traces["nanochat, grouped"]
    wrong = json.loads(json.dumps(trace))
    step = next(step for step in wrong["steps"] if step.get("letters") == "B, T, G, D")
    step["letters"] = "B, T, H, D"
    for value in step["values"]:
        value["letters"] = "B, T, H, D"
    assert len(wrong_comments(wrong)) == 1


def wrong_comments(trace) -> list[str]:
    sizes = {letter: entry["size"] for letter, entry in trace["letters"].items()}
    wrong = []
    for step in trace["steps"]:
        for value in step["values"]:
            names = value.get("letters", "").split(", ")
            if step["file"] == "nanochat/gpt.py" and "letters" in value and value["shape"] != [sizes[name] for name in names]:
                wrong.append(f"{step['function']}:{step['line']}: {value['shape']} is not ({value['letters']})")
    return wrong


def test_all_letters_of_the_legend_are_explained(traces):
    _, trace = traces["nanochat"]
    assert set(trace["letters"]) == set("BTSCHGDVF")
    assert all(entry["meaning"] for entry in trace["letters"].values())


def test_every_step_inside_a_block_knows_its_layer_and_module(traces):
    _, trace = traces["nanochat"]
    for step in trace["steps"]:
        match = re.match(r"blocks\.(\d+)", step["module"])
        assert step["layer"] == (int(match[1]) if match else None)
    rotations = [step["module"] for step in trace["steps"] if step["function"] == "rotate"]
    assert set(rotations) == {"blocks.0.attn", "blocks.1.attn"}
    linear = next(step for step in trace["steps"] if step["module"] == "blocks.1.mlp.c_fc")
    assert linear["parameters"] == {"weight": [128, 32]}


def test_attention_weights_are_those_of_the_model(traces):
    model, trace = traces["nanochat, grouped"]
    seen = []
    naive = written_out(model)
    with torch.no_grad(), LineRecorder([GPT_FILE], lambda line: seen.append(line.values.get("weights"))):
        naive(ids_of(trace))
    real = [weights[0].numpy() for weights in seen if weights is not None]
    assert len(real) == len(trace["attention"]) == model.config.n_layer
    for weights, entry in zip(real, trace["attention"], strict=True):
        assert entry["is_causal"] and entry["heads"] == model.config.n_head
        shown = np.zeros_like(weights)
        rows, columns = np.tril_indices(weights.shape[1])
        levels = np.frombuffer(base64.b64decode(entry["weights"]), np.uint8).reshape(entry["heads"], -1)
        shown[:, rows, columns] = (levels / 255) ** 2
        np.testing.assert_allclose(shown, weights, atol=0.005)
        np.testing.assert_allclose(shown.sum(axis=2), 1, atol=0.05)


def test_a_model_that_sees_the_future_is_shown_as_one(tokenizer, monkeypatch):
    """An exercise: leave the mask out. The picture must not go on pretending that it is there."""

    def unmasked(q, k, v, visible):
        weights = (q @ k.transpose(2, 3)).softmax(dim=3)
        return weights @ v

    entry = gpt_attention_entry(unmasked)
    assert not entry["is_causal"]
    assert len(base64.b64decode(entry["weights"])) == 4 * 3 * 3


def gpt_attention_entry(attend) -> dict:
    from nanochat.tracing.forward import attention_entry

    q = torch.randn(1, 4, 3, 8, generator=torch.Generator().manual_seed(0))
    return attention_entry((q @ q.transpose(2, 3)).softmax(dim=3)[0])


def test_the_residual_stream_is_followed_through_both_halves_of_every_block(traces):
    model, trace = traces["textbook"]
    assert [(row["layer"], row["half"]) for row in trace["residual"]] == [
        (None, "embedding"), (0, "attn"), (0, "mlp"), (1, "attn"), (1, "mlp"),
    ]  # fmt: skip
    with torch.no_grad():
        ids = ids_of(trace)
        x = model.embed(ids, torch.arange(ids.size(1))[None])
        after = model.blocks[0](x, None, None)
    assert trace["residual"][0]["rms"] == pytest.approx(x[0].square().mean(dim=1).sqrt().tolist(), rel=1e-3)
    assert trace["residual"][2]["rms"] == pytest.approx(after[0].square().mean(dim=1).sqrt().tolist(), rel=1e-3)


def test_what_changes_the_stream_between_the_blocks_is_followed_too(traces):
    model, trace = traces["speedrun, grouped, 5 blocks"]
    within = [(layer, half) for layer in range(5) for half in ("scales", "attn", "mlp")]
    found = [(row["layer"], row["half"]) for row in trace["residual"]]
    assert found == [(None, "embedding"), (None, "smear"), *within, (4, "backout")]
    given = {}
    parts = {f"block {i}": block for i, block in enumerate(model.blocks)} | {"end": model.ln_f}
    hooks = [
        part.register_forward_pre_hook(lambda _, inputs, name=name: given.update({name: inputs[0]}))
        for name, part in parts.items()
    ]
    with torch.no_grad():
        x = model.embed(ids_of(trace), torch.arange(len(trace["tokens"]))[None])
        model(ids_of(trace))
    for hook in hooks:
        hook.remove()
    rows = dict(zip(found, trace["residual"], strict=True))
    smeared = given["block 0"] / (model.resid_lambdas[0] + model.x0_lambdas[0]).detach()
    assert rows[None, "smear"]["rms"] == pytest.approx(rms(smeared), rel=1e-3)
    assert rows[None, "smear"]["added"] == pytest.approx(rms(smeared - x), rel=1e-3, abs=1e-4)
    for layer in range(5):
        assert rows[layer, "scales"]["rms"] == pytest.approx(rms(given[f"block {layer}"]), rel=1e-3)
    assert rows[4, "backout"]["rms"] == pytest.approx(rms(given["end"]), rel=1e-3)


def rms(x):
    return x[0].square().mean(dim=1).sqrt().tolist()


def test_masked_scores_are_counted_and_left_out_of_the_statistics(traces):
    _, trace = traces["nanochat"]
    T = len(trace["tokens"])
    step = next(step for step in trace["steps"] if "masked_fill" in step["code"])
    (value,) = step["values"]
    assert value["num_infinite"] == 4 * T * (T - 1) // 2
    assert value["min"] is not None and abs(value["mean"]) < 100


def test_everything_is_plain_json_with_finite_numbers(traces):
    for _, trace in traces.values():
        json.dumps(trace, allow_nan=False)


# -- tokens -------------------------------------------------------------------------------------------------------------------


def test_tokens_show_their_bytes_and_halves_of_characters(traces):
    _, trace = traces["nanochat"]
    assert trace["tokens"][0] == {"id": 291, "text": "<|bos|>", "bytes": "", "is_special": True}
    assert [token["text"] for token in trace["tokens"][-2:]] == ["<c3>", "<a9>"]
    shown = bytes.fromhex("".join(token["bytes"] for token in trace["tokens"]))
    assert shown.decode() == PROMPT


def test_pieces_hold_all_tokens_of_the_text(traces):
    _, trace = traces["nanochat"]
    assert "".join(piece["text"] for piece in trace["pieces"]) == PROMPT
    assert [piece["start"] for piece in trace["pieces"][1:]] == [piece["end"] for piece in trace["pieces"][:-1]]
    assert (trace["pieces"][0]["start"], trace["pieces"][-1]["end"]) == (1, len(trace["tokens"]))


@pytest.mark.parametrize("prompt", HOSTILE.values(), ids=HOSTILE)
def test_hostile_prompts_are_shown_as_text(tokenizer, prompt):
    trace = trace_forward(random_model(sequence_len=512), tokenizer, prompt, name="\x1b[2J", is_chat=False)
    text = json.dumps(trace, ensure_ascii=False, allow_nan=False)
    text.encode()  # no lone surrogate
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028]", text.replace("\n", ""))
    assert trace["name"] == "␛[2J"
    assert "".join(piece["text"] for piece in trace["pieces"]).replace("␊", "\n") or not trace["pieces"]
    assert all(isinstance(block, str) for block in blocks({"forward": trace}))


@pytest.mark.parametrize("prompt", ["", "  \n "])
def test_an_empty_prompt_is_refused(tokenizer, prompt):
    with pytest.raises(UserError, match="the prompt is empty"):
        trace_forward(random_model(), tokenizer, prompt, name="x", is_chat=False)


def test_a_long_prompt_is_refused_by_its_number_of_tokens(tokenizer):
    with pytest.raises(UserError, match=rf"the prompt has 201 tokens, and at most {MAX_PROMPT_TOKENS} can be shown"):
        trace_forward(random_model(), tokenizer, "é" * 100, name="x", is_chat=False)
    with pytest.raises(UserError, match="at most 16 can be shown"):
        trace_forward(random_model("textbook", sequence_len=16), tokenizer, "0 1 2 3 4 5 6 7 8 9", name="x", is_chat=False)


def test_pieces_are_left_out_where_they_are_not_the_prompts(tokenizer):
    assert pieces(tokenizer, "some text", [1, 2, 3]) == []


# -- pictures -----------------------------------------------------------------------------------------------------------------


def test_a_cell_shows_the_number_furthest_from_zero():
    values = np.array([[1.0, -3.0, 2.0, 0.5, np.nan, np.nan]])
    assert furthest(values, np.array([0, 2, 4]), axis=1)[0].tolist()[:2] == [-3.0, 2.0]
    assert np.isnan(furthest(values, np.array([0, 2, 4]), axis=1)[0, 2])


def test_pictures_are_small_and_can_be_read_back():
    x = torch.randn(1, 100, 1280, generator=torch.Generator().manual_seed(0))
    drawn = picture(x, 100, "B, T, C")
    assert (drawn["rows"], drawn["columns"], drawn["row_step"], drawn["column_step"]) == (50, 64, 2, 20)
    levels = np.frombuffer(base64.b64decode(drawn["data"]), np.uint8).reshape(50, 64)
    cell = x[0, :2, :20]
    largest = float(cell.flatten()[cell.abs().argmax()])
    assert drawn["scale"] * (int(levels[0, 0]) - 128) / 127 == pytest.approx(largest, abs=drawn["scale"] / 100)


def test_no_cell_reaches_over_two_heads():
    drawn = picture(torch.randn(1, 5, 10, 128), 5, "B, T, H, D")
    assert (drawn["heads"], drawn["columns"], drawn["column_step"]) == (10, 60, 22)


def test_turned_and_unturned_heads_give_the_same_picture():
    q = torch.randn(1, 5, 4, 5)
    assert picture(q, 5, "B, T, H, D") == picture(q.transpose(1, 2), 5, "B, H, T, D")


def test_statistics_are_those_of_the_tensor():
    x = torch.tensor([1.0, 2.0, 3.0, float("-inf")])
    assert summary(x) == {
        "shape": [4],
        "dtype": "float32",
        "mean": 2.0,
        "std": 0.816497,
        "min": 1.0,
        "max": 3.0,
        "num_infinite": 1,
    }
    assert summary(torch.tensor([float("nan")])) == {"shape": [1], "dtype": "float32", "num_infinite": 1}


def test_small_weights_keep_their_differences():
    weights = torch.tensor([[[1.0, 0.0], [0.999, 0.001]]])
    assert list(base64.b64decode(attention_triangle(weights))) == [255, 255, 8]


# -- presets and differences --------------------------------------------------------------------------------------------------


def test_the_counterpart_is_the_other_preset_at_the_same_sizes():
    config = random_model(n_kv_head=2).config
    other = counterpart(config)
    assert nearest_preset(other) == "textbook"
    assert (other.n_kv_head, other.vocab_size, other.positions) == (2, 300, "learned")
    assert counterpart(other) == config
    assert counterpart(random_model("speedrun").config) == random_model().config
    assert nearest_preset(dataclasses.replace(config, mlp="gelu")) == "nanochat"


def test_heads_too_odd_to_be_turned_have_learned_positions_in_the_counterpart_too():
    config = GPTConfig.preset("textbook", vocab_size=300, n_layer=1, n_head=2, n_kv_head=2, n_embd=30, sequence_len=64)
    other = counterpart(config)
    assert (nearest_preset(other), other.positions, other.norm) == ("nanochat", "learned", "rms")
    even = dataclasses.replace(config, n_embd=32)
    assert counterpart(even).positions == "rope"


def test_every_component_and_size_has_words_and_a_place_in_the_source():
    assert set(COMPONENTS) == {field.name for field in dataclasses.fields(GPTConfig)}
    source = read_source(GPT_FILE)
    for component in COMPONENTS.values():
        assert component.explanation
        for function, code in component.places:
            statements = source.functions[function].statements.values()
            assert any(code in statement.code for statement in statements), f"{function} has no line with {code!r}"


def test_differences_name_what_differs_and_nothing_else():
    this, that = GPTConfig.preset("nanochat").as_dict(), GPTConfig.preset("textbook").as_dict()
    found = {entry["component"]: (entry["this"], entry["that"]) for entry in differences(this, that)}
    assert found == {key: (this[key], that[key]) for key in this if this[key] != that[key]}
    assert {"positions", "norm", "mlp", "qk_norm", "soft_cap", "tied_head", "bias", "norm_embedding", "init"} <= set(found)
    assert differences(this, this) == []
    speedrun = GPTConfig.preset("speedrun").as_dict()
    assert {entry["component"]: entry["this"] for entry in differences(this, speedrun)} == {
        **OFF, "init": "nanochat", "rope_base": 10000.0,
    }  # fmt: skip


def test_an_untrained_nanochat_says_nothing_yet_and_the_trace_still_works(tokenizer):
    model = untrained(GPTConfig.preset("nanochat", **dataclasses.asdict(random_model().config) | {"n_layer": 1}))
    trace = trace_forward(model, tokenizer, PROMPT, name="new", is_chat=False, is_trained=False)
    assert trace["lens"][-1]["entropy"] == pytest.approx(np.log2(300), rel=1e-3)
    assert not trace["is_trained"]


# -- the report ---------------------------------------------------------------------------------------------------------------


def test_the_reports_section_tells_tokens_lines_lens_and_differences(traces):
    model, forward = traces["nanochat"]
    other, beside = traces["textbook"]
    trace = {"forward": forward, "beside": beside, "differences": differences(model.config.as_dict(), other.config.as_dict())}
    text = "\n\n".join(blocks(trace))
    assert f"is {len(forward['tokens'])} tokens" in text
    assert "`CausalSelfAttention.forward:" in text and "(B, H, T, S)" in text
    assert "| block 2 |" in text and "QK" not in text
    assert "Norm of queries and keys: `yes` here, `no` there." in text


def test_the_reports_section_names_what_a_trace_lacks(traces):
    _, forward = traces["nanochat"]
    assert blocks({}) == ["The trace holds no forward pass."]
    without = {key: value for key, value in forward.items() if key != "lens"}
    assert any("does not tell all about `lens`" in block for block in blocks({"forward": without}))
