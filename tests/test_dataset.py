"""Reading parquet: documents, training text, task rows, and files that are wrong."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.dataset import DocumentStatistics, iterate_training_text, read_documents
from nanochat.errors import UserError


def write(path, columns: dict, row_group_size: int = 4):
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def test_documents_come_in_order_and_null_and_empty_ones_are_counted(tmp_path):
    texts = ["one", None, "", "two", " \n\t", None, "drei ü", "four"]
    statistics = DocumentStatistics()
    path = write(tmp_path / "a.parquet", {"text": texts, "other": range(8)}, row_group_size=3)
    assert list(read_documents(path, statistics=statistics)) == ["one", "two", "drei ü", "four"]
    assert statistics == DocumentStatistics(
        documents=4, characters=16, bytes=17, null_documents=2, empty_documents=2, invalid_documents=0
    )


STRING_TYPES = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]


@pytest.mark.parametrize("kind", STRING_TYPES, ids=str)
def test_all_kinds_of_strings_and_another_column_are_read(tmp_path, kind):
    path = write(tmp_path / "a.parquet", {"content": pa.array(["x", None, "y", "x"]).cast(kind), "text": ["no"] * 4})
    assert pq.ParquetFile(path).schema_arrow.field("content").type != pa.string() or kind == pa.string()
    assert list(read_documents(path, column="content")) == ["x", "y", "x"]


@pytest.mark.parametrize("row_group_size", [1, 7, 1000, 1024, 5000])
def test_row_groups_of_any_size_are_read_in_order(tmp_path, row_group_size):
    texts = [f"document {i}" for i in range(2_500)]
    path = write(tmp_path / "a.parquet", {"id": range(2_500), "text": texts, "meta": [{"text": "no"}] * 2_500}, row_group_size)
    assert list(read_documents(path)) == texts


def test_marks_and_control_characters_in_documents_stay(tmp_path):
    texts = ["\ufeffmark", "a\0b", "\x1b[31mred", "\u202eright\u202c", "line\u2028end\r\n", "\ufeff", "\0"]
    assert list(read_documents(write(tmp_path / "a.parquet", {"text": texts}))) == texts


def test_a_footer_that_tells_of_other_rows_is_an_error(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", {"text": ["a", "b", "c"]})
    monkeypatch.setattr(pq.ParquetFile, "num_row_groups", 0)
    with pytest.raises(UserError, match=r"a.parquet: its footer tells of 3 rows, and it has 0"):
        list(read_documents(path))


def test_invalid_utf8_is_replaced_and_counted(tmp_path):
    raw = pa.array([b"fine", b"bro\xffken", None, "für".encode()])
    array = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    statistics = DocumentStatistics()
    path = write(tmp_path / "a.parquet", {"text": array})
    assert list(read_documents(path, statistics=statistics)) == ["fine", "bro\ufffdken", "für"]
    assert (statistics.invalid_documents, statistics.null_documents) == (1, 1)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def overwrite_pages(path):
    data = bytearray(path.read_bytes())
    data[4 : len(data) // 2] = b"\x07" * (len(data) // 2 - 4)
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "cannot read the footer"),
        (overwrite_pages, "cannot read row group 0"),
        (lambda path: path.write_bytes(b""), "cannot read the footer"),
        (lambda path: path.write_text("<html>404</html>"), "cannot read the footer"),
        (lambda path: path.unlink(), "no such file"),
        (lambda path: (path.unlink(), path.mkdir()), "no such file"),
    ],
)
def test_a_broken_file_is_a_clear_error(tmp_path, damage, message):
    path = write(tmp_path / "shard_00003.parquet", {"text": [f"document {i} " * 50 for i in range(100)]})
    damage(path)
    with pytest.raises(UserError, match=f"shard_00003.parquet.*{message}"):
        list(read_documents(path))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"content": ["x"], "id": [1]}, "no column text; its columns are: content, id"),
        ({"text": [1, 2]}, "column text must hold strings, found int64"),
        ({"text": [["x"]]}, "column text must hold strings, found list"),
        ({"text": pa.array([b"x"])}, "column text must hold strings, found binary"),
        ({"text": pa.nulls(3)}, "column text must hold strings, found null"),
        ({"text": pa.array([1, 2]).dictionary_encode()}, "column text must hold strings, found"),
        ({"text": pa.array([], pa.string())}, "has no rows"),
        ({"\x1b[31m" + "x" * 200: ["x"]}, r"no column text; its columns are: ␛\[31mx{75}$"),
    ],
)
def test_a_wrong_schema_is_a_clear_error(tmp_path, columns, message):
    path = write(tmp_path / "a.parquet", columns)
    with pytest.raises(UserError, match=message):
        list(read_documents(path))


def test_a_column_twice_and_a_name_that_is_not_utf8_are_clear_errors(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "twice.parquet")
    with pytest.raises(UserError, match=r"twice.parquet: 2 columns text"):
        list(read_documents(tmp_path / "twice.parquet"))
    path = write(tmp_path / "name.parquet", {"text": ["a"], "neighbour": ["b"]})
    path.write_bytes(path.read_bytes().replace(b"neighbour", b"neighb\xffur"))
    with pytest.raises(UserError, match=r"name.parquet: cannot read the footer"):
        list(read_documents(path))


def test_training_text_stops_at_the_characters_and_caps_each_document(tmp_path):
    paths = [
        write(tmp_path / "a.parquet", {"text": ["a" * 10, "b" * 3]}),
        write(tmp_path / "b.parquet", {"text": ["c" * 4, "d" * 9, "e"]}),
    ]
    assert list(iterate_training_text(paths, 1000, 5)) == ["aaaaa", "bbb", "cccc", "ddddd", "e"]
    assert list(iterate_training_text(paths, 10, 5)) == ["aaaaa", "bbb", "cc"]
    assert list(iterate_training_text(paths, 12, 5)) == ["aaaaa", "bbb", "cccc"]


def test_training_text_does_not_open_shards_it_does_not_need(tmp_path):
    path = write(tmp_path / "a.parquet", {"text": ["aaaa"]})
    assert list(iterate_training_text([path, tmp_path / "absent.parquet"], 4, 10)) == ["aaaa"]


def test_a_real_shard_is_read_whole(shared_data):
    statistics = DocumentStatistics()
    path = shared_data / "base_data" / "shard_00006.parquet"
    documents = list(read_documents(path, statistics=statistics))
    assert documents == pq.read_table(path)["text"].to_pylist()
    assert [pq.ParquetFile(path).metadata.row_group(i).num_rows for i in range(2)] == [1024, 1024]
    assert statistics.documents == statistics.num_rows == 2048 and statistics.characters == sum(map(len, documents))
