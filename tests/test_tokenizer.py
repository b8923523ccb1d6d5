"""The tokenizer against a slow reference, hostile texts, and conversations worked by hand."""

import base64
import hashlib
import json
import os
import random
import subprocess
import sys
import tracemalloc
from functools import cache

import numpy as np
import pyarrow.parquet as pq
import pytest
import reference_bpe
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat import tokenizer as module
from nanochat.dataset import read_documents
from nanochat.errors import UserError
from nanochat.tokenizer import MAX_RUN, SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer, clean_text, split_long_runs

TEXT = """The sparrow's nest was 12 feet up; in 1984 there'd been 3 eggs!  She'll count: 1, 22, 333, 4444.
def area(w, h):
    return w * h   # naïve, für später, площадь, 面積, 🙂🙃

    banana banana bananas, mississippi aaaaaaaaaaaaaaaaaaaaaa abababababab ........ \t\t \r\n\r\n   end
"""
# characters that every Unicode version in use knows, so that the two regex engines agree on their class
KNOWN_CHARACTERS = st.characters(exclude_categories=["Cs", "Cn"], max_codepoint=0x1FFFF)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT], 400)


@pytest.fixture(scope="module")
def real_text(shared_data) -> list[str]:
    documents = list(read_documents(shared_data / "base_data" / "shard_00000.parquet"))
    return [document[:900] for document in documents[::250]]


def train_reference(texts: list[str], vocab_size: int) -> list[tuple[int, int]]:
    return reference_bpe.train(texts, vocab_size - len(SPECIAL_TOKENS) - 256, SPLIT_PATTERN)


# ---- training


@pytest.mark.parametrize("vocab_size", [265, 266, 300, 350, 400])
def test_merges_equal_the_reference(vocab_size):
    expected = reference_bpe.token_strings(train_reference([TEXT], vocab_size))
    assert Tokenizer.train([TEXT], vocab_size).tokens == expected


@pytest.mark.parametrize("vocab_size", [300, 500])
def test_merges_equal_the_reference_on_real_text(real_text, vocab_size):
    expected = reference_bpe.token_strings(train_reference(real_text, vocab_size))
    assert Tokenizer.train(real_text, vocab_size).tokens == expected


@settings(max_examples=60, deadline=None)
@given(st.text("ab c1", min_size=20, max_size=200), st.integers(1, 8))
def test_merges_with_many_ties_equal_the_reference(text, num_merges):
    merges = reference_bpe.train([text], num_merges, SPLIT_PATTERN)
    trained = Tokenizer.train([text], 256 + len(merges) + len(SPECIAL_TOKENS))
    assert trained.tokens == reference_bpe.token_strings(merges)


def test_training_does_not_depend_on_threads_hash_seed_or_order():
    texts = [TEXT[i : i + 60] for i in range(0, len(TEXT), 60)] * 5
    program = (
        "import random, sys; from nanochat.tokenizer import Tokenizer; texts = sys.stdin.read().split('\\0');"
        "random.Random(int(sys.argv[1])).shuffle(texts); print(Tokenizer.train(texts, 330).identity)"
    )
    identities = set()
    for seed, threads in enumerate(["1", "2", "5"]):
        environment = os.environ | {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": str(seed)}
        command = [sys.executable, "-c", program, str(seed)]
        done = subprocess.run(command, input="\0".join(texts).encode(), env=environment, capture_output=True, check=True)
        identities.add(done.stdout)
    assert len(identities) == 1


def test_too_little_text_is_a_clear_error_and_its_advice_works():
    with pytest.raises(UserError, match=r"vocab_size: 1,000 is more than the training text can give.*at most 268"):
        Tokenizer.train(["abcd"], 1000)
    assert Tokenizer.train(["abcd"], 268).vocab_size == 268
    with pytest.raises(UserError, match="After 0 merges"):
        Tokenizer.train([], 300)


@pytest.mark.parametrize("vocab_size", [0, 264, 65_537])
def test_impossible_vocabulary_sizes_are_refused(vocab_size):
    with pytest.raises(UserError, match=r"between 265 .* and 65,536"):
        Tokenizer.train([TEXT], vocab_size)


def test_an_error_while_reading_the_text_is_passed_on():
    def broken():
        yield TEXT
        raise UserError("shard 7 is broken")

    with pytest.raises(UserError, match="shard 7"):
        Tokenizer.train(broken(), 300)


# ---- encoding


def test_encoding_equals_the_reference_on_real_text(real_text):
    merges = train_reference(real_text, 550)
    trained = Tokenizer.train(real_text, 550)
    for text in real_text:
        assert trained.encode(text) == reference_bpe.encode(text, merges, SPLIT_PATTERN)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(KNOWN_CHARACTERS, max_size=60), st.text("ab an'12 \n\r\t!.", max_size=60)))
def test_encoding_equals_the_reference_on_any_text(text):
    merges, trained = reference_and_trained()
    ids = trained.encode(text)
    assert ids == reference_bpe.encode(text, merges, SPLIT_PATTERN)
    assert trained.encode_array(text).tolist() == ids
    assert trained.decode(ids) == text


@cache
def reference_and_trained() -> tuple[list[tuple[int, int]], Tokenizer]:
    """For hypothesis, which does not go well with fixtures."""
    return train_reference([TEXT], 400), Tokenizer.train([TEXT], 400)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=[]), max_size=60))
def test_any_text_with_surrogates_round_trips_as_cleaned(text):
    _, trained = reference_and_trained()
    cleaned, _ = clean_text(text)
    assert trained.decode(trained.encode(text)) == cleaned
    assert trained.decode_bytes(trained.encode(text)) == cleaned.encode()


HOSTILE = {
    "empty": "",
    "a million blanks": " " * 1_000_000,
    "a million blanks, then a word": " " * 1_000_000 + "x",
    "a million newlines": "\n" * 1_000_000,
    "tabs and blanks": "\t " * 500_000 + "x",
    "a million letters": "a" * 1_000_000,
    "different letters": "".join(random.Random(0).choices("abcdefgh", k=300_000)),
    "a million dots": "." * 1_000_000,
    "control characters": "\x1c\x1d" * 300_000,
    "NUL": "a\0b\0" * 1000,
    "byte order mark": "\ufeffText",
    "right to left": "\u202eשלום عالم\u202c",
    "combining": "e\u0301" * 5000,
    "emoji": "👩‍👩‍👧‍👦" * 5000,
    "no-break and ideographic blanks": "\u00a0\u3000\u2028" * 10_000,
    "long runs one after another": " " * 25_000 + "a" * 25_000 + "\n" * 25_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_round_trip(tokenizer, name):
    text = HOSTILE[name]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_array(text).tolist() == ids
    if len(ids) > 10:  # and they can be trained on
        Tokenizer.train([text, TEXT], 300)


def test_without_the_cut_of_long_runs_blanks_break_tiktoken(tokenizer, monkeypatch):
    monkeypatch.setattr(module, "split_long_runs", lambda text: [text])
    with pytest.raises(BaseException, match="StackOverflow"):
        tokenizer.encode(" " * 1_000_000)


def test_long_runs_are_cut_and_nothing_else():
    text = "ab " * 20_000 + " " * (2 * MAX_RUN + 5) + "x" * (MAX_RUN + 1) + " y"
    pieces = split_long_runs(text)
    assert "".join(pieces) == text
    assert [len(piece) for piece in pieces] == [60_000 - 1 + MAX_RUN, MAX_RUN, 6 + MAX_RUN, 3]
    assert split_long_runs(TEXT * 100) == [TEXT * 100]


@pytest.mark.parametrize(
    ("text", "cleaned", "count"),
    [
        ("plain", "plain", 0),
        ("a\ud83db", "a\ufffdb", 1),
        ("\udc00\udc00", "\ufffd\ufffd", 2),
        ("\ufffd and \ud800", "\ufffd and \ufffd", 1),
        ("\ud83d\ude42", "🙂", 0),  # two halves that belong together
    ],
)
def test_lone_surrogates_are_replaced_and_counted(text, cleaned, count):
    assert clean_text(text) == (cleaned, count)


def test_surrogates_in_the_training_text_are_logged(caplog):
    Tokenizer.train([TEXT, "x\ud800y\udfff"], 300)
    assert "2 lone surrogates" in caplog.text


@pytest.mark.parametrize("num_threads", [1, 2, 7])
def test_a_batch_equals_one_at_a_time_in_order(tokenizer, num_threads):
    texts = [TEXT[i:] * (i % 3) for i in range(40)]
    batch = tokenizer.encode_batch(texts, num_threads=num_threads, bos=True)
    assert all(ids.dtype == np.uint16 for ids in batch)
    assert [ids.tolist() for ids in batch] == [tokenizer.encode(text, bos=True) for text in texts]
    assert tokenizer.encode_batch([], num_threads=num_threads) == []


def plain(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [tokenizer.encode(text, bos=True) for text in texts]


def test_a_batch_of_hostile_texts_equals_one_at_a_time(tokenizer):
    texts = [*HOSTILE.values(), TEXT, "lone \ud83d", "", "面積" * 9_000, *HOSTILE.values()]
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts, bos=True)] == plain(tokenizer, texts)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.one_of(st.characters(exclude_categories=[]), st.sampled_from("ab an'12 \n\r\t!.")), max_size=40)))
def test_a_batch_of_any_texts_equals_one_at_a_time(texts):
    _, trained = reference_and_trained()
    assert [ids.tolist() for ids in trained.encode_batch(texts, bos=True)] == plain(trained, texts)


def test_a_batch_of_real_text_equals_one_at_a_time(real_text, monkeypatch):
    trained = Tokenizer.train(real_text, 2_000)
    monkeypatch.setattr(module, "BATCH_CHARACTERS", 5_000)
    assert [ids.tolist() for ids in trained.encode_batch(real_text, num_threads=2, bos=True)] == plain(trained, real_text)


def test_a_batch_with_the_separator_of_words_written_out_equals_one_at_a_time(tokenizer):
    texts = [TEXT, "a<|bos|>b", "<|bos|>", "<|bos|", "|bos|>", "<|", "<|user_start|><|bos|"]
    batch = tokenizer.encode_batch(texts, bos=True)
    assert [ids.tolist() for ids in batch] == plain(tokenizer, texts)
    assert not any((ids[1:] >= tokenizer.bos_id).any() for ids in batch)


def test_a_batch_with_another_pattern_equals_one_at_a_time():
    """This one joins words that are cut apart: a vocabulary for the other pattern would not do for it."""
    joining = Tokenizer([b"e ", b"e t", b"d."], pattern=r"[\s\S]+")
    assert [ids.tolist() for ids in joining.encode_batch(["the the end."], bos=True)] == plain(joining, ["the the end."])
    assert len(joining.encode("the the end.")) < len("the the end.") - 3


def test_a_batch_encodes_each_different_word_once(tokenizer, monkeypatch):
    encode_words, seen = tokenizer._encode_words, []
    monkeypatch.setattr(tokenizer, "_encode_words", lambda words: seen.append(words.to_pylist()) or encode_words(words))
    tokenizer.encode_batch(["one two one two"] * 1000)
    (words,) = seen
    assert sorted(words) == [b" one", b" two", b"one"]


def test_a_huge_text_takes_no_more_memory_in_a_batch(tokenizer):
    text, peaks = "a b " * (module.HUGE_BATCH // 4 + 1), []
    for encode in (tokenizer.encode_array, lambda text: tokenizer.encode_batch([text])[0]):
        tracemalloc.start()
        encode(text)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


def test_a_text_of_a_batch_keeps_nothing_of_the_others_in_memory(tokenizer):
    for ids in tokenizer.encode_batch(["a", "the quick brown fox " * 100], bos=True):
        assert ids.base is None


def test_token_bytes_count_the_bytes_of_any_text(tokenizer):
    lengths = tokenizer.token_bytes()
    assert lengths.shape == (tokenizer.vocab_size,) and lengths.dtype == np.int32
    assert lengths[tokenizer.encode(TEXT, bos=True)].sum() == len(TEXT.encode())
    assert [lengths[tokenizer.special_id(name)] for name in SPECIAL_TOKENS] == [0] * 9


def test_ids_are_bytes_then_merges_then_specials(tokenizer):
    assert tokenizer.encode("A") == [65]
    assert [tokenizer.special_id(name) for name in SPECIAL_TOKENS] == list(range(400 - 9, 400))
    assert tokenizer.vocab_size == 400 and tokenizer.bos_id == 391
    assert tokenizer.decode([391, 65, 392]) == "<|bos|>A<|user_start|>"
    assert tokenizer.decode(np.array([391, 65, 392], np.uint16), skip_special=True) == "A"


# ---- the file


def test_a_saved_tokenizer_is_the_same_when_loaded(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    loaded = Tokenizer.load(path)
    assert loaded.tokens == tokenizer.tokens and loaded.specials == tokenizer.specials
    assert loaded.encode(TEXT) == tokenizer.encode(TEXT)
    assert loaded.identity == tokenizer.identity == hashlib.sha256(path.read_bytes()).hexdigest()
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_tokenizers_of_one_size_have_different_identities(tokenizer):
    assert Tokenizer.train([TEXT.upper()], 400).identity != tokenizer.identity


MALFORMED = {
    "not JSON": lambda content: "{",
    "a list": lambda content: "[]",
    "another format": lambda content: content | {"format": "x"},
    "no pattern": lambda content: content | {"pattern": None},
    "a broken pattern": lambda content: content | {"pattern": "("},
    "a special token missing": lambda content: content | {"special_tokens": SPECIAL_TOKENS[1:]},
    "merges are a text": lambda content: content | {"merges": "abc"},
    "a merge is a number": lambda content: content | {"merges": [1]},
    "not base64": lambda content: content | {"merges": ["?"]},
    "a merge twice": lambda content: content | {"merges": content["merges"][:1] * 2},
    "a merge lost": lambda content: content | {"merges": content["merges"][1:]},
    "a merge of one byte": lambda content: content | {"merges": [base64.b64encode(b"a").decode()]},
    "an empty merge": lambda content: content | {"merges": [""]},
    "cut off": lambda content: json.dumps(content)[:500],
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_a_clear_error(tokenizer, tmp_path, name):
    path = tmp_path / "tokenizer.json"
    content = MALFORMED[name](json.loads(tokenizer.to_json()))
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=r"tokenizer.json: not a tokenizer file"):
        Tokenizer.load(path)


def test_a_missing_or_binary_file_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="cannot read the tokenizer: No such file"):
        Tokenizer.load(tmp_path / "absent.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"binary.json: not a tokenizer file"):
        Tokenizer.load(tmp_path / "binary.json")


# ---- conversations


def show(tokenizer: Tokenizer, ids: list[int], mask: list[int]) -> str:
    """The text, with [...] around what is supervised."""
    out, previous = "", 0
    for token, value in zip(ids, mask, strict=True):
        out += ("[" if value > previous else "]" if value < previous else "") + tokenizer.decode([token])
        previous = value
    return out + "]" * previous


def test_a_conversation_worked_by_hand(tokenizer):
    conversation = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "2+2?"},
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "It is "},
                    {"type": "python", "text": "2+2"},
                    {"type": "python_output", "text": "4"},
                    {"type": "text", "text": "4."},
                ],
            },
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": "Yes."},
        ]
    }
    ids, mask = tokenizer.render_conversation(conversation)
    assert show(tokenizer, ids, mask) == (
        "<|bos|><|user_start|>Be brief.\n\n2+2?<|user_end|><|assistant_start|>"
        "[It is <|python_start|>2+2<|python_end|>]<|output_start|>4<|output_end|>[4.<|assistant_end|>]"
        "<|user_start|>Sure?<|user_end|><|assistant_start|>[Yes.<|assistant_end|>]"
    )
    assert set(mask) == {0, 1}
    assert (ids[:9], mask[:9]) == tokenizer.render_conversation(conversation, max_tokens=9)

    prompt = tokenizer.render_prompt(conversation)
    assert tokenizer.decode(prompt).endswith(
        "[4.<|assistant_end|><|user_start|>Sure?<|user_end|><|assistant_start|>".replace("[", "")
    )
    assert tokenizer.render_prompt({"messages": conversation["messages"][:-1]}) == prompt
    assert len(conversation["messages"]) == 5 and conversation["messages"][1]["content"] == "2+2?"  # unchanged


USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "hello"}
SYSTEM = {"role": "system", "content": "be kind"}
WRONG = [
    (None, "at least one message"),
    ([USER], "at least one message"),
    ({}, "at least one message"),
    ({"messages": []}, "at least one message"),
    ({"messages": "hi"}, "at least one message"),
    ({"messages": {"role": "user"}}, "at least one message"),
    ({"messages": [ASSISTANT]}, "message 0 has the role 'assistant', expected 'user'"),
    ({"messages": [USER, USER]}, "message 1 has the role 'user', expected 'assistant'"),
    ({"messages": [USER, ASSISTANT, ASSISTANT]}, "message 2 has the role 'assistant', expected 'user'"),
    ({"messages": [SYSTEM]}, "message 0 is from the system and no user message follows"),
    ({"messages": [SYSTEM, ASSISTANT]}, "message 1 has the role 'assistant', expected 'user'"),
    ({"messages": [SYSTEM, SYSTEM, USER]}, "message 1 has the role 'system', expected 'user'"),
    ({"messages": [USER, ASSISTANT, SYSTEM]}, "message 2 has the role 'system', expected 'user'"),
    ({"messages": [USER, {"role": "bot", "content": "x"}]}, "message 1 has the role 'bot'"),
    ({"messages": [USER, {"content": "x"}]}, "message 1 has the role None"),
    ({"messages": [USER, "hello"]}, "message 1 has no message"),
    ({"messages": [USER, None]}, "message 1 has no message"),
    ({"messages": [{"role": "user"}]}, "content of message 0 must be a text, found NoneType"),
    ({"messages": [{"role": "user", "content": 7}]}, "content of message 0 must be a text, found int"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, "content of message 0 must be a text"),
    ({"messages": [{"role": "system", "content": None}, USER]}, "content of message 0 must be a text"),
    ({"messages": [USER, {"role": "assistant", "content": None}]}, "content of message 1 must be a text"),
    ({"messages": [USER, {"role": "assistant", "content": ["x"]}]}, "part 0 of message 1"),
    ({"messages": [USER, {"role": "assistant", "content": [{"type": "image", "text": "x"}]}]}, "part 0 of message 1"),
    ({"messages": [USER, {"role": "assistant", "content": [{"type": "text", "text": 1}]}]}, "part 0 of message 1"),
]


@pytest.mark.parametrize(("conversation", "message"), WRONG)
def test_a_wrong_conversation_is_a_clear_error(tokenizer, conversation, message):
    with pytest.raises(UserError, match=message):
        tokenizer.render_conversation(conversation)
    with pytest.raises(UserError):
        tokenizer.render_prompt(conversation)


def test_a_wrong_conversation_among_many_is_named_by_its_number(tokenizer):
    good = {"messages": [USER, ASSISTANT]}
    with pytest.raises(UserError, match="conversation 12: message 1 has the role 'user'"):
        tokenizer.render_conversations([good, good, {"messages": [USER, USER]}], num_threads=2, first_number=10)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_many_conversations_equal_one_at_a_time(tokenizer, num_threads):
    conversations = [{"messages": [USER, ASSISTANT] * i} for i in range(1, 30)]
    many = tokenizer.render_conversations(conversations, num_threads=num_threads)
    expected = [tokenizer.render_conversation(conversation) for conversation in conversations]
    assert [(ids.tolist(), mask.tolist()) for ids, mask in many] == expected


PLACES = ["system", "user", "text", "python", "python_output"]


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(SPECIAL_TOKENS),
    place=st.sampled_from(PLACES),
    before=st.text(max_size=8),
    after=st.text(max_size=8),
    max_tokens=st.one_of(st.none(), st.integers(1, 60)),
)
def test_special_tokens_in_text_never_become_special_ids(name, place, before, after, max_tokens):
    check_special_in_text(name, place, before + name + after, max_tokens)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", SPECIAL_TOKENS)
def test_each_special_token_in_each_place_stays_text(name, place):
    check_special_in_text(name, place, f"{name} and {name * 2}", None)


def check_special_in_text(name: str, place: str, text: str, max_tokens: int | None) -> None:
    _, tokenizer = reference_and_trained()

    def conversation(content: str) -> dict:
        texts = dict.fromkeys(PLACES, "x") | {place: content}
        parts = [{"type": kind, "text": texts[kind]} for kind in ("text", "python", "python_output")]
        return {
            "messages": [
                {"role": "system", "content": texts["system"]},
                {"role": "user", "content": texts["user"]},
                {"role": "assistant", "content": parts},
            ]
        }

    def specials(ids: list[int]) -> list[int]:
        return [i for i in ids if i >= tokenizer.specials["<|bos|>"]]

    ids, mask = tokenizer.render_conversation(conversation(text), max_tokens)
    template = specials(tokenizer.render_conversation(conversation("x"))[0])
    assert specials(ids) == template[: len(specials(ids))]
    assert len(mask) == len(ids)
    if max_tokens is None:
        assert specials(ids) == template
        assert clean_text(text)[0] in tokenizer.decode(ids)
    assert specials(tokenizer.render_prompt(conversation(text)))[1:3] == template[1:3]
    assert not specials(tokenizer.encode(text))
    assert not specials(tokenizer.encode_batch([text])[0].tolist())


def test_real_conversations_render_and_decode_back(shared_data, tokenizer):
    path = shared_data / "hub/HuggingFaceTB/smol-smoltalk/data/test-00000-of-00001.parquet"
    for conversation in pq.read_table(path).slice(0, 100).to_pylist():
        ids, mask = tokenizer.render_conversation(conversation)
        answers = [message["content"] for message in conversation["messages"] if message["role"] == "assistant"]
        supervised = tokenizer.decode([token for token, value in zip(ids, mask, strict=True) if value])
        assert supervised == "".join(answer + "<|assistant_end|>" for answer in answers)
