"""Packing: nothing is lost but what is stated, and the choice of pieces equals a naive best fit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.packing import ConversationStatistics, PackingStatistics, pack_conversations, pack_documents

BOS = 0


def make_documents(lengths: list[int]) -> list[np.ndarray]:
    """Documents of <|bos|> and `length` tokens, each token number used once over all of them."""
    numbers = iter(range(1, 65_536))
    return [np.array([BOS] + [next(numbers) for _ in range(length)], dtype=np.uint16) for length in lengths]


def pack(documents, sequence_len: int, buffer_size: int = 4096) -> tuple[np.ndarray, PackingStatistics]:
    statistics = PackingStatistics()
    blocks = pack_documents(documents, sequence_len=sequence_len, bos_id=BOS, statistics=statistics, buffer_size=buffer_size)
    return np.concatenate([np.empty((0, sequence_len + 1), np.uint16), *blocks]), statistics


def pieces_of(rows: np.ndarray) -> list[list[int]]:
    """The runs of tokens between two <|bos|>; a row never continues the one before it."""
    pieces: list[list[int]] = []
    for row in rows.tolist():
        for token in row:
            if token == BOS:
                pieces.append([])
            else:
                pieces[-1].append(token)
    return [piece for piece in pieces if piece]


def naive_pack(documents: list[list[int]], row_len: int, buffer_size: int) -> list[list[int]]:
    """The rule in the plainest words: whole rows first, then the longest piece that fits, then cut the longest."""
    rows: list[list[int]] = []
    buffer: list[list[int]] = []

    def fill():
        row: list[int] = []
        while len(row) < row_len and buffer:
            space = row_len - len(row)
            fitting = [piece for piece in buffer if len(piece) <= space]
            piece = max(fitting or buffer, key=len)  # the first of the longest
            if not fitting:
                # keys of equal length are ordered by age, and cutting takes the oldest too
                buffer.append([BOS, *piece[space:]])
            buffer.remove(piece)
            row += piece[:space]
        rows.append(row)

    for document in documents:
        while len(document) > row_len:
            rows.append(document[:row_len])
            document = [BOS, *document[row_len:]]
        buffer.append(document)
        while len(buffer) > buffer_size and sum(map(len, buffer)) >= row_len:
            fill()
    while buffer:
        fill()
    return [row for row in rows if len(row) == row_len]


def test_the_example_of_the_docstring():
    rows, statistics = pack([np.array([BOS, 7, 8, 9]), np.array([BOS, 5])], 4)
    assert rows.tolist() == [[BOS, 7, 8, 9, BOS]]
    assert statistics == PackingStatistics(documents=2, tokens_in=6, rows=1, cuts=0, bos_added=1, tokens_lost=2)


def test_a_long_document_goes_on_in_further_rows_that_start_with_bos():
    rows, statistics = pack(make_documents([10]), 4)
    assert rows.tolist() == [[BOS, 1, 2, 3, 4], [BOS, 5, 6, 7, 8]]
    assert statistics == PackingStatistics(documents=1, tokens_in=11, rows=2, cuts=2, bos_added=2, tokens_lost=3)


def test_the_longest_piece_that_fits_comes_first():
    rows, _ = pack(make_documents([1, 5, 3, 2]), 9)
    assert rows.tolist() == [[BOS, 2, 3, 4, 5, 6, BOS, 7, 8, 9]]


DOCUMENTS = st.lists(st.integers(0, 40), max_size=60)


@settings(max_examples=300, deadline=None)
@given(lengths=DOCUMENTS, sequence_len=st.integers(1, 17), buffer_size=st.integers(1, 20))
def test_no_token_is_lost_but_those_stated(lengths, sequence_len, buffer_size):
    documents = make_documents(lengths)
    rows, statistics = pack(documents, sequence_len, buffer_size)
    row_len = sequence_len + 1

    assert rows.dtype == np.uint16 and rows.shape == (statistics.rows, row_len)
    assert (rows[:, 0] == BOS).all()
    assert statistics.documents == len(lengths) and statistics.tokens_in == sum(map(len, documents))
    assert statistics.rows * row_len == statistics.tokens_in + statistics.bos_added - statistics.tokens_lost
    assert 0 <= statistics.tokens_lost < row_len  # the last row, and nothing else

    kept = [token for piece in pieces_of(rows) for token in piece]
    assert len(set(kept)) == len(kept)  # no token twice
    assert sum(lengths) - statistics.tokens_lost <= len(kept) <= sum(lengths)
    # inside a piece the tokens follow one another as in the document
    end_of_document = set(np.cumsum(lengths).tolist())
    for piece in pieces_of(rows):
        assert piece == list(range(piece[0], piece[0] + len(piece)))
        assert not end_of_document & set(piece[:-1])


@settings(max_examples=200, deadline=None)
@given(lengths=DOCUMENTS, sequence_len=st.integers(1, 17), buffer_size=st.integers(1, 20))
def test_rows_equal_the_naive_best_fit(lengths, sequence_len, buffer_size):
    documents = make_documents(lengths)
    rows, _ = pack(documents, sequence_len, buffer_size)
    assert rows.tolist() == naive_pack([document.tolist() for document in documents], sequence_len + 1, buffer_size)


def test_a_buffer_of_tiny_documents_is_never_handed_out_as_a_short_row():
    rows, statistics = pack(make_documents([0, 1] * 50), 99, buffer_size=3)
    assert statistics.rows == 1 and statistics.tokens_lost == 50
    assert (rows < 51).all()


def test_documents_are_not_changed_and_packing_is_deterministic():
    documents = make_documents([50, 3, 200, 7, 7, 7, 90] * 30)
    before = [document.copy() for document in documents]
    first, _ = pack(documents, 16, 20)
    second, _ = pack(iter(documents), 16, 20)
    assert (first == second).all()
    assert all((a == b).all() for a, b in zip(before, documents, strict=True))


def test_many_rows_come_in_blocks_of_bounded_size():
    documents = [np.array([BOS, *range(1, 100)], dtype=np.uint16)] * 1000
    blocks = list(pack_documents(documents, sequence_len=15, bos_id=BOS))
    assert max(map(len, blocks)) == 1024 and len(blocks) > 5
    assert all((block[:, 0] == BOS).all() for block in blocks)


def test_a_document_without_bos_is_refused():
    with pytest.raises(ValueError, match="start with"):
        pack([np.array([5, 6])], 4)


def test_documents_of_web_length_keep_nearly_all_their_context():
    lengths = np.random.default_rng(0).lognormal(6.4, 0.9, 8000).astype(int) + 1
    documents = [np.concatenate([[BOS], np.ones(length, np.uint16)]).astype(np.uint16) for length in lengths]
    rows, statistics = pack(documents, 2048)
    assert statistics.tokens_lost + statistics.bos_added < 0.001 * statistics.tokens_in

    def context(lengths) -> float:
        return sum(length * (length - 1) / 2 for length in lengths)

    whole = np.concatenate([[2049] * (length // 2048) + [length % 2048] for length in lengths])
    kept = [len(piece) for piece in pieces_of(rows)]
    assert context(kept) > 0.98 * context(whole)


# ---- conversations


def make_conversations(shapes: list[tuple[int, int]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """<|bos|>, then `asked` tokens with mask 0, then `answered` tokens with mask 1."""
    documents = make_documents([asked + answered for asked, answered in shapes])
    masks = [[0] * (1 + asked) + [1] * answered for asked, answered in shapes]
    return [(ids, np.array(mask, np.uint8)) for ids, mask in zip(documents, masks, strict=True)]


def pack_chats(conversations, sequence_len: int, **options):
    statistics = ConversationStatistics()
    blocks = list(pack_conversations(conversations, sequence_len=sequence_len, bos_id=BOS, statistics=statistics, **options))
    rows = np.concatenate([np.empty((0, sequence_len + 1), np.uint16), *(rows for rows, _ in blocks)])
    masks = np.concatenate([np.empty((0, sequence_len + 1), np.uint8), *(masks for _, masks in blocks)])
    return rows, masks, statistics


def test_conversations_worked_by_hand():
    conversations = make_conversations([(1, 2), (2, 1), (1, 1), (9, 9)])
    rows, masks, statistics = pack_chats(conversations, 7)
    # the last conversation is cut at 8 tokens, before its answer, and so left out
    assert rows.tolist() == [[0, 1, 2, 3, 0, 4, 5, 6], [0, 7, 8, 0, 0, 0, 0, 0]]
    assert masks.tolist() == [[0, 0, 1, 1, 0, 0, 0, 1], [0, 0, 1, 0, 0, 0, 0, 0]]
    assert statistics == ConversationStatistics(
        conversations=3, tokens_in=11, rows=2, tokens_padding=5, tokens_supervised=4, without_target=1
    )
    rows, masks, statistics = pack_chats(conversations, 7, supervise_all=True)
    assert rows[0].tolist() == [0, 9, 10, 11, 12, 13, 14, 15]
    assert masks.tolist() == [[0] + [1] * 7, [0] + [1] * 7, [0, 1, 1, 0, 0, 0, 0, 0]]
    assert (statistics.truncated, statistics.tokens_truncated, statistics.without_target) == (1, 11, 0)


@settings(max_examples=300, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)), max_size=50),
    sequence_len=st.integers(1, 20),
    buffer_size=st.integers(1, 10),
    supervise_all=st.booleans(),
)
def test_conversations_stay_whole_and_masks_stay_with_their_tokens(shapes, sequence_len, buffer_size, supervise_all):
    conversations = make_conversations(shapes)
    rows, masks, statistics = pack_chats(conversations, sequence_len, buffer_size=buffer_size, supervise_all=supervise_all)
    row_len = sequence_len + 1
    assert rows.dtype == np.uint16 and masks.dtype == np.uint8 and rows.shape == masks.shape == (statistics.rows, row_len)
    assert (rows[:, 0] == BOS).all() and (masks[:, 0] == 0).all()
    assert statistics.rows * row_len == statistics.tokens_in - statistics.tokens_truncated + statistics.tokens_padding
    assert statistics.conversations + statistics.without_target == len(shapes)
    assert statistics.tokens_supervised == masks.sum()

    mask_of = {token: value for ids, mask in conversations for token, value in zip(ids.tolist(), mask.tolist(), strict=True)}
    for row, mask in zip(rows.tolist(), masks.tolist(), strict=True):
        for token, value in zip(row, mask, strict=True):
            if token != BOS:
                assert value == (1 if supervise_all else mask_of[token])
            elif not supervise_all:
                assert value == 0
    expected = []
    for ids, mask in conversations:
        kept = slice(1, row_len)
        if len(mask[kept]) if supervise_all else mask[kept].any():
            expected.append(ids[kept].tolist())
    assert sorted(pieces_of(rows)) == sorted(expected)


def test_padding_is_never_a_target_even_when_all_is_supervised():
    rows, masks, _ = pack_chats(make_conversations([(1, 1), (2, 3)]), 12, supervise_all=True)
    assert rows.tolist() == [[0, 3, 4, 5, 6, 7, 0, 1, 2, 0, 0, 0, 0]]
    assert masks.tolist() == [[0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]]


def test_best_fit_wastes_little():
    rng = np.random.default_rng(0)
    shapes = [(int(a), int(b)) for a, b in rng.integers(5, 40, (600, 2))]
    _, _, statistics = pack_chats(make_conversations(shapes), 255)
    assert statistics.tokens_padding < 0.03 * statistics.tokens_in


def test_a_mask_of_another_length_is_refused():
    with pytest.raises(ValueError, match="3 tokens but a mask of 2"):
        pack_chats([([BOS, 1, 2], [0, 1])], 4)
