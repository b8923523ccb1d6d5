import base64

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_models import small_tokenizer

from nanochat.errors import UserError
from nanochat.tokenizer_eval import compare_compression, load_vocabulary


@pytest.fixture
def shard(tmp_path):
    pq.write_table(pa.table({"text": ["one two three", "äöü and so on"]}), tmp_path / "s.parquet")
    return tmp_path / "s.parquet"


def write_byte_vocabulary(path):
    """The smallest vocabulary in the file format of the published ones: a token a byte."""
    path.write_bytes(b"".join(base64.b64encode(bytes([i])) + f" {i}\n".encode() for i in range(256)))
    return path


def test_bytes_per_token_by_hand(shard, tmp_path):
    tokenizer = small_tokenizer()
    found = compare_compression(tokenizer, {"train": shard}, {"gpt2_bpe": write_byte_vocabulary(tmp_path / "v")})
    num_bytes = len(b"one two three") + len("äöü and so on".encode())
    num_tokens = len(tokenizer.encode("one two three")) + len(tokenizer.encode("äöü and so on"))
    assert found["ours_train"] == pytest.approx(num_bytes / num_tokens)
    assert found["gpt2_train"] == 1.0
    assert found["cl100k_train"] is None, "absent ones are said to be absent"


def test_a_file_that_is_no_vocabulary_is_refused(tmp_path):
    (tmp_path / "v").write_text("<html>")
    with pytest.raises(UserError, match="not a vocabulary"):
        load_vocabulary("gpt2_bpe", tmp_path / "v")
