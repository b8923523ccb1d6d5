"""From parquet shard and conversations to row files, on real and on small data."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.dataloader import Loader, PackedRows
from nanochat.dataset import iterate_training_text, read_documents
from nanochat.errors import UserError
from nanochat.packing import pack_documents
from nanochat.tokenizer import Tokenizer
from nanochat.tokens import RowWriter, encode_documents, tokenize_conversations, tokenize_shard

WORDS = "the quick brown fox jumps over the lazy dog and then it sleeps for a very long time "


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([WORDS * 10], 300)


@pytest.fixture
def shard(tmp_path):
    texts = [WORDS * (1 + i % 5) + str(i) for i in range(200)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "shard.parquet", row_group_size=64)
    return tmp_path / "shard.parquet"


def test_a_shard_becomes_rows_that_hold_its_documents(shard, tokenizer, tmp_path):
    counts = tokenize_shard(shard, tmp_path / "rows.npy", tokenizer, sequence_len=64)
    rows = np.load(tmp_path / "rows.npy", allow_pickle=False)
    assert rows.dtype == np.uint16 and rows.shape == (counts["rows"], 65)
    assert (rows[:, 0] == tokenizer.bos_id).all()
    expected = [tokenizer.encode(text) for text in read_documents(shard)]
    assert counts["documents"] == 200 and counts["tokens_in"] == sum(len(ids) + 1 for ids in expected)
    in_rows = np.bincount(rows[rows != tokenizer.bos_id], minlength=300)
    in_text = np.bincount(np.concatenate(expected), minlength=300)
    assert (in_rows <= in_text).all() and in_text.sum() - in_rows.sum() <= counts["tokens_lost"] <= 64


def test_the_same_bytes_for_any_number_of_threads(shard, tokenizer, tmp_path):
    for threads in (1, 2, 5):
        tokenize_shard(shard, tmp_path / f"{threads}.npy", tokenizer, sequence_len=64, num_threads=threads)
    assert len({(tmp_path / f"{threads}.npy").read_bytes() for threads in (1, 2, 5)}) == 1


def test_rows_of_a_real_shard_are_the_bytes_of_encoding_document_by_document(shared_data, tmp_path, monkeypatch):
    """Rows that exist keep their manifests, however encoding is made faster."""
    path = shared_data / "base_data" / "shard_00006.parquet"
    documents = list(read_documents(path))[:600]
    pq.write_table(pa.table({"text": documents}), tmp_path / "shard.parquet")
    tokenizer = Tokenizer.train(documents[:200], 1024)
    monkeypatch.setattr("nanochat.tokens.BATCH_CHARACTERS", 300_000)
    tokenize_shard(tmp_path / "shard.parquet", tmp_path / "rows.npy", tokenizer, sequence_len=512, num_threads=2)
    ids = [np.array([tokenizer.bos_id, *tokenizer.encode(document)], np.uint16) for document in documents]
    blocks = pack_documents(ids, sequence_len=512, bos_id=tokenizer.bos_id)
    np.save(tmp_path / "plain.npy", np.concatenate(list(blocks)))
    assert (tmp_path / "rows.npy").read_bytes() == (tmp_path / "plain.npy").read_bytes()


def test_documents_are_read_as_they_are_encoded(tokenizer, monkeypatch):
    """So that memory does not grow with the shard: one batch more than there are threads."""
    monkeypatch.setattr("nanochat.tokens.BATCH_CHARACTERS", 1_000)
    read = 0

    def documents():
        nonlocal read
        for _ in range(100):
            read += 1
            yield "x" * 1_000

    encoded = encode_documents(documents(), tokenizer, num_threads=2)
    for number in range(1, 101):
        assert len(next(encoded)) > 1 and read <= number + 2
    assert next(encoded, None) is None


def test_an_error_in_a_thread_is_raised_and_leaves_nothing(shard, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer, "encode_batch", lambda texts, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tokenize_shard(shard, tmp_path / "rows.npy", tokenizer, sequence_len=64, num_threads=2)
    assert [path.name for path in tmp_path.iterdir()] == ["shard.parquet"]


def test_a_shard_too_small_for_a_row_is_a_clear_error_and_leaves_nothing(shard, tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"shard.parquet: its .* tokens fill no row of 100,001"):
        tokenize_shard(shard, tmp_path / "rows.npy", tokenizer, sequence_len=100_000)
    assert [path.name for path in tmp_path.iterdir()] == ["shard.parquet"]


def test_a_broken_shard_leaves_nothing(tokenizer, tmp_path):
    (tmp_path / "shard.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError):
        tokenize_shard(tmp_path / "shard.parquet", tmp_path / "rows.npy", tokenizer, sequence_len=64)
    assert [path.name for path in tmp_path.iterdir()] == ["shard.parquet"]


def conversation(number: int) -> dict:
    return {
        "messages": [
            {"role": "user", "content": f"What is {number}?"},
            {"role": "assistant", "content": f"It is {number}, " + WORDS[: number % 60]},
        ]
    }


def test_conversations_become_rows_whose_targets_are_the_answers(tokenizer, tmp_path):
    conversations = [conversation(i) for i in range(300)]
    paths = tmp_path / "train.npy", tmp_path / "train_mask.npy"
    counts = tokenize_conversations(iter(conversations), *paths, tokenizer, sequence_len=128, mask_user=True, num_threads=2)
    assert counts["conversations"] == 300 and counts["truncated"] == 0
    rows = PackedRows([paths[0]], [paths[1]])
    _, y = rows.inputs_and_targets(np.arange(len(rows)))
    answers = tokenizer.decode(y[y != -1]).split("<|assistant_end|>")
    assert sorted(answers) == sorted(["", *(item["messages"][1]["content"] for item in conversations)])
    assert counts["tokens_supervised"] == (y != -1).sum() == rows.supervised_tokens(np.arange(len(rows)))


def test_without_mask_user_every_token_but_the_padding_is_a_target(tokenizer, tmp_path):
    paths = tmp_path / "train.npy", tmp_path / "train_mask.npy"
    counts = tokenize_conversations([conversation(i) for i in range(50)], *paths, tokenizer, sequence_len=128, mask_user=False)
    masks = np.load(paths[1])
    assert masks.sum() == counts["tokens_in"] - counts["rows"] == counts["tokens_supervised"]


def test_a_wrong_conversation_is_named_and_leaves_nothing(tokenizer, tmp_path):
    conversations = [conversation(i) for i in range(3000)]
    conversations[2500] = {"messages": [{"role": "assistant", "content": "hi"}]}
    with pytest.raises(UserError, match="conversation 2500: message 0 has the role 'assistant'"):
        tokenize_conversations(
            conversations, tmp_path / "a.npy", tmp_path / "b.npy", tokenizer, sequence_len=64, mask_user=True
        )
    assert not list(tmp_path.iterdir())


def test_no_conversations_is_a_clear_error(tokenizer, tmp_path):
    with pytest.raises(UserError, match="none of the 0 has a supervised token"):
        tokenize_conversations([], tmp_path / "a.npy", tmp_path / "b.npy", tokenizer, sequence_len=64, mask_user=True)


@pytest.mark.parametrize("sizes", [[], [0], [1], [7, 1, 30], [1000] * 120])
def test_a_file_written_in_blocks_equals_numpys(tmp_path, sizes):
    blocks = [np.random.default_rng(i).integers(0, 60_000, (size, 9)).astype(np.uint16) for i, size in enumerate(sizes)]
    with RowWriter(tmp_path / "a.npy", 9, np.uint16) as writer:
        for block in blocks:
            writer.append(block)
    whole = np.concatenate([np.empty((0, 9), np.uint16), *blocks])
    np.save(tmp_path / "b.npy", whole)
    assert np.array_equal(np.load(tmp_path / "a.npy"), whole)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_real_shard_loses_almost_nothing_and_loads(shared_data, tmp_path):
    path = shared_data / "base_data" / "shard_00006.parquet"
    tokenizer = Tokenizer.train(iterate_training_text([path], 2_000_000, 10_000), 2048)
    counts = tokenize_shard(path, tmp_path / "rows.npy", tokenizer, sequence_len=1024, num_threads=2)
    assert counts["tokens_lost"] + counts["bos_added"] < 0.002 * counts["tokens_in"]
    loader = Loader(PackedRows([tmp_path / "rows.npy"]), batch_rows=8, seed=0)
    x, y = loader.batch(0)
    assert (x[:, 0] == tokenizer.bos_id).all() and x.max() < 2048 and (y >= 0).all()


def test_real_conversations_pack_with_little_padding(shared_data, tmp_path):
    conversations = (
        pq.read_table(shared_data / "hub/HuggingFaceTB/smol-smoltalk/data/train-00000-of-00001.parquet")
        .slice(0, 3000)
        .to_pylist()
    )
    texts = (message["content"] for item in conversations[:500] for message in item["messages"])
    tokenizer = Tokenizer.train(texts, 2048)
    paths = tmp_path / "train.npy", tmp_path / "train_mask.npy"
    counts = tokenize_conversations(conversations, *paths, tokenizer, sequence_len=2048, mask_user=True, num_threads=2)
    assert counts["conversations"] + counts["without_target"] == 3000
    assert counts["tokens_padding"] < 0.02 * counts["tokens_in"]
