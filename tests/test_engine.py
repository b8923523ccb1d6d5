"""The engine against a full forward pass for every token, and against itself one prompt at a time."""

import random
from collections import Counter

import pytest
import torch
from small_models import PRESETS, random_model, random_prompts, small_tokenizer
from torch import nn

from nanochat.batching import Tree, flat_tokens
from nanochat.engine import Batch, Engine, choose
from nanochat.errors import UserError
from nanochat.gpt import GPTConfig, at
from nanochat.kv_cache import KVCache, Prefill

TOKENIZER = small_tokenizer()


def cache_for(model, batch_size, capacity):
    return KVCache(model.config, batch_size, capacity, torch.float32, "cpu")


def read(model, idx, cache):
    logits = model(idx, cache)
    cache.advance(idx.size(1))
    return logits


def greedy_by_full_forward(model, prompt, *, num_tokens, stop_ids=()):
    """The slow way: the whole sequence again for every token."""
    sequence = list(prompt)
    while len(sequence) < len(prompt) + num_tokens:
        token = int(model(torch.tensor([sequence]))[0, -1].argmax())
        if token in stop_ids:
            break
        sequence.append(token)
    return sequence[len(prompt) :]


@pytest.mark.parametrize("sizes", PRESETS.values(), ids=PRESETS)
@torch.inference_mode()
def test_cached_decoding_equals_full_forward(sizes):
    model = random_model(**sizes)
    idx = torch.randint(300, (3, 40), generator=torch.Generator().manual_seed(1))
    expected = model(idx)
    cache = cache_for(model, 3, 40)
    parts = [read(model, part, cache) for part in idx.split([7, 1, 1, 12, 1, 18], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sizes", PRESETS.values(), ids=PRESETS)
@torch.inference_mode()
def test_rows_of_different_lengths_decode_as_each_alone(sizes):
    model = random_model(**sizes)
    prompts = random_prompts(TOKENIZER, [3, 20, 9])
    following = torch.randint(256, (3, 6), generator=torch.Generator().manual_seed(2))
    compare_with_alone(model, prompts, following.split([1, 1, 3, 1], dim=1))


def compare_with_alone(model, prompts, columns):
    """Rows that are read into a cache and go on in these columns, (B, T) each, against each row read by itself."""
    following = torch.cat(columns, dim=1)
    cache = cache_for(model, len(prompts), max(map(len, prompts)) + following.size(1))
    trees = [Tree(prompt) for prompt in prompts]
    model(flat_tokens(trees, torch.device("cpu")), Prefill(trees, cache, [[slot] for slot in range(len(prompts))]))
    cache.lengths = [len(prompt) for prompt in prompts]
    logits = torch.cat([read(model, column, cache) for column in columns], dim=1)  # (B, T, V)
    for row, prompt in enumerate(prompts):
        alone = model(torch.tensor([prompt + following[row].tolist()]))[0, len(prompt) :]
        torch.testing.assert_close(logits[row], alone, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_windows_look_back_as_far_from_a_cache():
    model = random_model("speedrun", n_layer=4)
    assert [block.attn.window for block in model.blocks] == [128, 128, 128, None]
    prompts = random_prompts(TOKENIZER, [3, 300, 127, 140])
    following = torch.randint(256, (4, 12), generator=torch.Generator().manual_seed(2))
    compare_with_alone(model, prompts, following.split([1, 1, 7, 3], dim=1))


@torch.inference_mode()
def test_decoding_reads_no_more_keys_than_a_window_where_all_rows_allow_it():
    model, sizes = random_model("speedrun", n_layer=2), []
    cache = cache_for(model, 2, 320)
    read(model, torch.zeros(2, 300, dtype=torch.long), cache)

    def attend(q, k, v, visible):
        sizes.append(k.size(2))
        return q

    for block in model.blocks:
        block.attn.attend = attend
    read(model, torch.zeros(2, 1, dtype=torch.long), cache)
    assert sizes == [129, 301]


@torch.inference_mode()
def test_long_prompts_of_the_speedrun_are_answered_in_a_batch_as_by_the_full_forward():
    model = random_model("speedrun", n_layer=4)
    engine = Engine(model, TOKENIZER, max_rows=3)
    prompts = random_prompts(TOKENIZER, [125, 2, 300, 140, 126, 40])
    answers = engine.generate_batch(prompts, max_new_tokens=10)
    assert answers == [greedy_by_full_forward(model, prompt, num_tokens=10, stop_ids=engine.stop_ids) for prompt in prompts]


@pytest.mark.parametrize("preset", ["nanochat", "speedrun"])
@torch.inference_mode()
def test_a_cache_of_another_size_goes_on_with_the_rows_it_kept(preset):
    model = random_model(preset)
    idx = torch.randint(300, (4, 20), generator=torch.Generator().manual_seed(1))
    cache = cache_for(model, 4, 20)
    read(model, idx[:, :12], cache)
    smaller = cache.resized([3, 1], 2, 25)
    torch.testing.assert_close(model(idx[[3, 1], 12:], smaller), model(idx[[3, 1]])[:, 12:], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_slot_that_begins_again_remembers_no_token():
    model = random_model("speedrun")
    idx = torch.randint(300, (2, 10), generator=torch.Generator().manual_seed(1))
    cache = cache_for(model, 2, 20)
    read(model, idx, cache)
    cache.lengths[0] = 0
    together = read(model, idx[:, :1], cache)
    torch.testing.assert_close(together[0, 0], model(idx[:1, :1])[0, 0], atol=1e-4, rtol=1e-4)
    continued = torch.cat([idx, idx[:, :1]], dim=1)
    torch.testing.assert_close(together[1, 0], model(continued[1:])[0, -1], atol=1e-4, rtol=1e-4)


def test_a_full_cache_refuses_more():
    model = random_model()
    cache = cache_for(model, 1, 4)
    with pytest.raises(ValueError, match="holds 4 tokens a row, and 5"):
        model(torch.zeros(1, 5, dtype=torch.long), cache)


@pytest.mark.parametrize("sizes", PRESETS.values(), ids=PRESETS)
@torch.inference_mode()
def test_greedy_answers_equal_the_full_forward(sizes):
    model = random_model(**sizes)
    engine = Engine(model, TOKENIZER)
    prompts = random_prompts(TOKENIZER, [1, 30, 2, 17])
    answers = engine.generate_batch(prompts, max_new_tokens=25)
    expected = [greedy_by_full_forward(model, prompt, num_tokens=25, stop_ids=engine.stop_ids) for prompt in prompts]
    assert answers == expected


@pytest.mark.parametrize("sizes", PRESETS.values(), ids=PRESETS)
def test_a_prompt_in_a_mixed_batch_is_answered_as_alone(sizes):
    model = random_model(**sizes)
    engine = Engine(model, TOKENIZER)
    engine.stop_ids = set(range(0, 300, 12))  # rows end at different times, so that finished ones stay and leave
    rng = random.Random(3)
    prompts = random_prompts(TOKENIZER, [rng.randint(1, 64) for _ in range(200)])
    together = engine.generate_batch(prompts, max_new_tokens=30)
    assert together == [engine.generate_batch([prompt], max_new_tokens=30)[0] for prompt in prompts]
    assert len(Counter(map(len, together))) > 10


def test_answers_do_not_depend_on_the_size_of_the_batches():
    model = random_model()
    prompts = random_prompts(TOKENIZER, [5, 9, 30, 2, 17, 11])
    sampling = {"max_new_tokens": 12, "temperature": 1.0, "seed": 7}
    expected = Engine(model, TOKENIZER).generate_batch(prompts, **sampling)
    assert Engine(model, TOKENIZER, max_rows=2).generate_batch(prompts, **sampling) == expected
    assert Engine(model, TOKENIZER, cache_bytes=1).generate_batch(prompts, **sampling) == expected


def test_sampling_follows_from_the_seed_and_the_key_of_the_row():
    engine = Engine(random_model(), TOKENIZER)
    prompts = random_prompts(TOKENIZER, [5, 9, 30, 2])
    sampling = {"max_new_tokens": 20, "temperature": 1.0, "top_k": 50}
    first = engine.generate_batch(prompts, seed=1, **sampling)
    assert engine.generate_batch(prompts, seed=1, **sampling) == first
    assert engine.generate_batch(prompts, seed=2, **sampling) != first
    assert engine.generate_batch(prompts[::-1], seed=1, keys=[3, 2, 1, 0], **sampling) == first[::-1]
    same_prompt = engine.generate_batch([prompts[0]] * 3, seed=1, **sampling)
    assert len(set(map(tuple, same_prompt))) == 3


def test_sampling_leaves_the_global_random_state_alone():
    engine = Engine(random_model(), TOKENIZER)
    state = torch.get_rng_state()
    engine.generate_batch([[1, 2]], max_new_tokens=5, temperature=1.0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [None, 0, 4, 100])
def test_tokens_are_drawn_with_their_probabilities(temperature, top_k):
    logits = torch.tensor([2.0, -1.0, 0.5, 0.0, 1.0, -3.0])
    num_draws = 10_000
    draws = [(i + 0.5) / num_draws for i in range(num_draws)]  # evenly spread, so the shares are exact to 1 / num_draws
    tokens = choose(logits.expand(num_draws, -1), draws, temperature, top_k)
    shares = torch.bincount(torch.tensor(tokens), minlength=6) / num_draws
    expected = (logits / temperature).softmax(dim=0)
    if top_k == 4:
        expected[[1, 5]] = 0
        expected /= expected.sum()
    torch.testing.assert_close(shares, expected, atol=3e-4, rtol=0)


def test_the_ends_of_the_draw_give_tokens_that_can_be_drawn():
    logits = torch.tensor([[float("-inf"), 1.0, 1.0, float("-inf")]] * 2)
    assert choose(logits, [0.0, 1.0 - 2**-53], 1.0, None) == [1, 2]


def test_top_k_1_and_temperature_0_take_the_likeliest():
    logits = torch.randn(20, 300, generator=torch.Generator().manual_seed(0))
    likeliest = logits.argmax(dim=1).tolist()
    assert choose(logits, [0.99] * 20, 0.0, None) == likeliest
    assert choose(logits, [0.99] * 20, 5.0, 1) == likeliest


def test_a_stream_gives_the_tokens_of_a_batch_as_they_come():
    engine = Engine(random_model(), TOKENIZER)
    prompt = random_prompts(TOKENIZER, [12])[0]
    stream = engine.stream(prompt, max_new_tokens=15, temperature=1.0, seed=4)
    first = next(stream)
    assert [first, *stream] == engine.generate_batch([prompt], max_new_tokens=15, temperature=1.0, seed=4)[0]


def test_completed_texts_are_those_of_their_tokens():
    engine = Engine(random_model(), TOKENIZER)
    prompts = [TOKENIZER.encode(text, bos=True) for text in ("the sun", "")]
    expected = [TOKENIZER.decode(tokens) for tokens in engine.generate_batch(prompts, max_new_tokens=8)]
    assert engine.complete(["the sun", ""], max_new_tokens=8) == expected


def test_bfloat16_generates():
    model = random_model()
    model.compute_dtype = torch.bfloat16
    prompts = random_prompts(TOKENIZER, [5, 9])
    assert [len(answer) for answer in Engine(model, TOKENIZER).generate_batch(prompts, max_new_tokens=6)] == [6, 6]


# -- where an answer ends ----------------------------------------------------------------------------------------------------


class ScriptedModel(nn.Module):
    """Says after position p what the script has at p + 1."""

    def __init__(self, script):
        super().__init__()
        self.config = GPTConfig.preset("nanochat", vocab_size=300, n_layer=1, n_head=1, n_kv_head=1, n_embd=8, sequence_len=8)
        self.wte = nn.Embedding(1, 1)
        self.compute_dtype = torch.float32
        self.script = torch.tensor([*script, 0])

    def hidden(self, idx, cache):
        positions = cache.positions(idx.size(1))
        return at(nn.functional.one_hot(self.script[positions + 1], 300).float(), cache.wanted)

    def logits(self, hidden):
        return hidden


def says(text):
    """Token ids of a text in which special tokens are special."""
    ids = []
    for part in text.replace("<|", "\0<|").replace("|>", "|>\0").split("\0"):
        ids += [TOKENIZER.special_id(part)] if part.startswith("<|") else TOKENIZER.encode(part)
    return ids


def answer_of(script, prompt="<|bos|>hi", **sampling):
    engine = Engine(ScriptedModel(says(prompt) + says(script)), TOKENIZER)
    (answer,) = engine.generate_batch([says(prompt)], **{"max_new_tokens": 60, **sampling})
    return TOKENIZER.decode(answer)


@pytest.mark.parametrize("stop", ["<|assistant_end|>", "<|bos|>"])
def test_an_answer_ends_at_a_stop_token_which_is_not_part_of_it(stop):
    assert answer_of(f"hello{stop}and more") == "hello"
    assert answer_of(stop) == ""


def test_an_answer_ends_after_max_new_tokens():
    engine = Engine(random_model(), TOKENIZER)
    engine.stop_ids = set()
    prompts = random_prompts(TOKENIZER, [5, 9])
    assert [len(answer) for answer in engine.generate_batch(prompts, max_new_tokens=1)] == [1, 1]
    assert [len(answer) for answer in engine.generate_batch(prompts, max_new_tokens=40)] == [40, 40]


@pytest.mark.parametrize(("preset", "limit"), [("textbook", 64), ("nanochat", 640)])
def test_an_answer_ends_where_the_positions_of_the_model_end(preset, limit):
    engine = Engine(random_model(preset), TOKENIZER)
    engine.stop_ids = set()
    prompts = random_prompts(TOKENIZER, [limit, limit - 3, limit - 40])
    # the last token is said and not read, so it may stand just behind the end
    assert [len(answer) for answer in engine.generate_batch(prompts, max_new_tokens=20)] == [1, 4, 20]
    assert [len(answer) for answer in engine.generate_batch(prompts, max_new_tokens=2_000)] == [1, 4, 41]


@pytest.mark.parametrize(
    ("prompt", "sampling", "message"),
    [
        ([1] * 65, {}, "65 tokens; this model reads 1 to 64"),
        ([], {}, "0 tokens"),
        ([1], {"max_new_tokens": 0}, "max_new_tokens 0"),
        ([1], {"temperature": -1.0}, "temperature -1.0"),
    ],
)
def test_what_cannot_be_generated_is_an_error_in_words(prompt, sampling, message):
    engine = Engine(random_model("textbook"), TOKENIZER)
    with pytest.raises(UserError, match=message):
        engine.generate_batch([[1, 2], prompt], **{"max_new_tokens": 5, **sampling})


def test_a_tokenizer_of_another_model_is_refused():
    with pytest.raises(UserError, match="300 tokens and the model knows 280"):
        Engine(random_model(vocab_size=280), TOKENIZER)


def test_no_prompts_give_no_answers():
    assert Engine(random_model(), TOKENIZER).generate_batch([], max_new_tokens=5) == []


# -- the calculator ----------------------------------------------------------------------------------------------------------


def test_the_result_of_the_calculator_is_put_into_the_answer():
    forced = "<|output_start|>48<|output_end|>"
    garbage = "x" * len(says(forced))  # what the model would have said meanwhile
    answer = answer_of(f"so <|python_start|>12*4<|python_end|>{garbage} it is 48<|assistant_end|>")
    assert answer == f"so <|python_start|>12*4<|python_end|>{forced} it is 48"


def test_a_model_that_would_stop_meanwhile_does_not():
    forced = "<|output_start|>48<|output_end|>"
    stops = "<|assistant_end|>" * len(says(forced))
    assert answer_of(f"<|python_start|>12*4<|python_end|>{stops} ok<|assistant_end|>").endswith(f"{forced} ok")


def test_the_calculator_is_used_as_often_as_the_model_asks():
    one, two = "<|output_start|>3<|output_end|>", "<|output_start|>3<|output_end|>"
    script = (
        f"<|python_start|>1+2<|python_end|>{one}<|python_start|>'strawberry'.count('r')<|python_end|>{two}<|assistant_end|>"
    )
    assert answer_of(script) == script.removesuffix("<|assistant_end|>")


@pytest.mark.parametrize(
    "script", ["<|python_start|>import os<|python_end|>no", "<|python_end|>no", "<|python_start|><|python_end|>no"]
)
def test_an_expression_without_a_result_gets_none(script):
    assert answer_of(f"{script}<|assistant_end|>") == script


def test_forced_tokens_draw_no_random_numbers():
    """With and without the tool's result in between, the row's random numbers are used for what the model says alone."""
    engine = Engine(ScriptedModel(says("<|bos|>") + says("<|python_start|>12*4<|python_end|>") + says("x" * 30)), TOKENIZER)
    row = engine.row(says("<|bos|>"), max_new_tokens=12, temperature=1e-3, top_k=None, seed="0/0")
    batch = Batch(engine, [row])
    while batch:
        batch.step()
    num_forced = len(says("<|output_start|>48<|output_end|>"))
    reference = random.Random("0/0")
    for _ in range(12 - num_forced):
        reference.random()
    assert row.random.random() == reference.random()


# -- rows that enter and leave -----------------------------------------------------------------------------------------------


def finish(batch):
    while batch:
        batch.step()


def test_rows_that_enter_a_running_batch_say_what_they_say_alone():
    engine = Engine(random_model(), TOKENIZER, max_rows=3)
    engine.stop_ids = set()
    prompts = random_prompts(TOKENIZER, [5, 40, 3, 22, 9, 30, 11])
    how = {"temperature": 1.0, "top_k": 20}
    rows = [engine.row(prompt, max_new_tokens=4 + 3 * i, seed=str(i), **how) for i, prompt in enumerate(prompts)]
    batch, together = Batch(engine), []
    for row in rows:
        batch.add(row)
        batch.step()
        together.append(len(batch.running))
    finish(batch)
    assert max(together) == 3
    for i, prompt in enumerate(prompts):
        (alone,) = engine.generate_batch([prompt], max_new_tokens=4 + 3 * i, seed=i, keys=[i], **how)
        again = engine.row(prompt, max_new_tokens=4 + 3 * i, seed=str(i), **how)
        finish(Batch(engine, [again]))
        assert rows[i].tokens == again.tokens
        assert len(alone) == len(again.tokens)


def test_rows_of_a_batch_may_be_drawn_differently():
    engine = Engine(random_model(), TOKENIZER)
    engine.stop_ids = set()
    prompt = random_prompts(TOKENIZER, [12])[0]
    kinds = [(0.0, None), (1.0, None), (1.0, 5), (0.0, None), (0.7, 5)]
    rows = [engine.row(prompt, max_new_tokens=15, temperature=t, top_k=k, seed="x") for t, k in kinds]
    finish(Batch(engine, rows))
    for (temperature, top_k), row in zip(kinds, rows, strict=True):
        alone = engine.row(prompt, max_new_tokens=15, temperature=temperature, top_k=top_k, seed="x")
        finish(Batch(engine, [alone]))
        assert row.tokens == alone.tokens


def test_a_row_that_nobody_wants_leaves_and_the_others_go_on():
    engine = Engine(random_model(), TOKENIZER, max_rows=2)
    engine.stop_ids = set()
    rows = [
        engine.row(prompt, max_new_tokens=10, temperature=0.0, top_k=None, seed=0)
        for prompt in random_prompts(TOKENIZER, [5, 9, 7])
    ]
    expected = engine.generate_batch([row.prompt for row in rows], max_new_tokens=10)
    batch = Batch(engine, rows)
    for _ in range(3):
        batch.step()
    batch.drop(rows[0])
    finish(batch)
    assert rows[0].tokens == expected[0][:3]
    assert [row.tokens for row in rows[1:]] == expected[1:]


def test_equal_prompts_are_read_once(monkeypatch):
    model = random_model()
    engine = Engine(model, TOKENIZER)
    read = []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda idx, cache: read.append(idx.numel()) or hidden(idx, cache))
    prompt, other = random_prompts(TOKENIZER, [20, 7])
    answers = engine.generate_batch([prompt] * 5 + [other], max_new_tokens=4, temperature=1.0)
    assert read[0] == 27
    assert len(set(map(tuple, answers))) > 3
    assert answers[0] == engine.generate_batch([prompt], max_new_tokens=4, temperature=1.0)[0]


def test_the_cache_takes_no_more_memory_than_it_may():
    model = random_model()
    prompts = random_prompts(TOKENIZER, [60, 3, 8, 4, 30, 5, 6])
    engine = Engine(model, TOKENIZER)
    engine.stop_ids = set()
    expected = engine.generate_batch(prompts, max_new_tokens=5)
    engine.cache_bytes = 2 * 64 * engine.token_bytes  # two rows of the longest
    batch = Batch(engine, [engine.row(prompt, max_new_tokens=5, temperature=0.0, top_k=None, seed=0) for prompt in prompts])
    rows, most = list(batch.waiting), 0
    while batch:
        batch.step()
        most = max(most, batch.cache.k.nbytes + batch.cache.v.nbytes)
    assert [row.tokens for row in rows] == expected
    assert 0 < most <= engine.cache_bytes


def test_a_share_of_what_is_done_is_told_before_each_step():
    engine = Engine(random_model(), TOKENIZER)
    engine.stop_ids = set()
    told = []
    engine.generate_batch(random_prompts(TOKENIZER, [4, 9]), max_new_tokens=6, poll=told.append)
    assert told == [0.0] * 6


def test_a_poll_that_raises_ends_the_generation():
    engine = Engine(random_model(), TOKENIZER)

    def stop(share):
        raise KeyError("asked to stop")

    with pytest.raises(KeyError):
        engine.generate_batch(random_prompts(TOKENIZER, [4]), max_new_tokens=6, poll=stop)
