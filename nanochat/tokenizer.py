"""Text to token ids and back: BPE trained by rustbpe, encoded by tiktoken, stored as one JSON file.

Ids 0..255 are the single bytes, then come the merges in the order in which they were learned, then the nine special
tokens. Special ids are only ever written by `render_conversation` and by `bos=True`: a text that contains
"<|assistant_end|>" is encoded as ordinary characters.

Covered: lone surrogates (replaced by U+FFFD); runs of any length (cut before the regex sees them, see nanochat.cuts); texts of
    any length, in time that grows with it and in memory of a few bytes a character.
Not covered: vocabularies over 65,536, because the token files are uint16.
"""

import base64
import binascii
import hashlib
import json
import logging
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import rustbpe
import tiktoken

from nanochat.cuts import MAX_RUN, batches, find_words, split_long_runs
from nanochat.errors import UserError
from nanochat.jsonl import require_file
from nanochat.messages import Conversation, Turn, check_conversation

log = logging.getLogger("nanochat")

SPECIAL_TOKENS = (
    "<|bos|>",  # starts every document and every conversation
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",  # the assistant calls the calculator
    "<|python_end|>",
    "<|output_start|>",  # what the calculator answered
    "<|output_end|>",
)
PART_TOKENS = {
    "python": ("<|python_start|>", "<|python_end|>"),
    "python_output": ("<|output_start|>", "<|output_end|>"),
}

# GPT-4's pattern, with 1 or 2 digits a token: at 65k vocabulary, 3 wastes merges on numbers
SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)

NUM_BYTES = 256
MAX_VOCAB_SIZE = 65_536
FORMAT = "nanochat-bpe-1"

BATCH_CHARACTERS = 2_000_000  # encoded at once
HUGE_BATCH = 4 * BATCH_CHARACTERS  # it holds a text of that length
SEPARATOR = "<|bos|>"  # between words, of which none contains it: written out in a text, it is cut behind its s
LONG_TEXT = 100_000  # characters; a shorter one is faster as a list of ids than as an array, and takes little memory anyway

Item = TypeVar("Item")
Result = TypeVar("Result")


class Tokenizer:
    """A trained vocabulary with its encoder.

    `merges` are the byte strings of tokens 256, 257, ... Make one with `Tokenizer.train` or `Tokenizer.load`.
    """

    def __init__(self, merges: Sequence[bytes], pattern: str = SPLIT_PATTERN):
        self.pattern = pattern
        self.tokens = [bytes([i]) for i in range(NUM_BYTES)] + list(merges)
        num_ordinary = len(self.tokens)
        self.specials = {name: num_ordinary + i for i, name in enumerate(SPECIAL_TOKENS)}
        self.vocab_size = num_ordinary + len(SPECIAL_TOKENS)
        self.bos_id = self.specials["<|bos|>"]
        self._encoding = tiktoken.Encoding(
            name="nanochat",
            pat_str=pattern,
            mergeable_ranks={token: rank for rank, token in enumerate(self.tokens)},
            special_tokens=self.specials,
        )

    # ---- making, saving, loading

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learn the merges from texts. `vocab_size` counts the 256 bytes and the special tokens.

        The result depends on the texts alone: ties are broken by the smaller pair of ids, and neither the number of
        threads nor the order of the texts matters. UserError if the texts have too few pairs for the vocabulary.
        """
        smallest = NUM_BYTES + len(SPECIAL_TOKENS)
        if not smallest <= vocab_size <= MAX_VOCAB_SIZE:
            raise UserError(
                f"tokenizer.vocab_size: must be between {smallest} (the bytes and the special tokens) and "
                f"{MAX_VOCAB_SIZE:,} (token files are uint16), found {vocab_size:,}"
            )
        num_tokens = vocab_size - len(SPECIAL_TOKENS)
        trainer = rustbpe.Tokenizer()
        trainer.train_from_iterator(_training_pieces(texts), num_tokens, pattern=SPLIT_PATTERN)
        ranks = sorted(trainer.get_mergeable_ranks(), key=lambda item: item[1])
        if len(ranks) < num_tokens:  # rustbpe stops early without a word
            raise UserError(
                f"tokenizer.vocab_size: {vocab_size:,} is more than the training text can give. After "
                f"{len(ranks) - NUM_BYTES:,} merges no pair was left. Give it more text, or a vocab_size of at most "
                f"{len(ranks) + len(SPECIAL_TOKENS):,}"
            )
        return cls([bytes(token) for token, _ in ranks[NUM_BYTES:]])

    def to_json(self) -> str:
        """The tokenizer as text, one token a line; the same tokenizer always gives the same text."""
        content = {
            "format": FORMAT,
            "pattern": self.pattern,
            "special_tokens": list(SPECIAL_TOKENS),
            "merges": [base64.b64encode(token).decode() for token in self.tokens[NUM_BYTES:]],
        }
        return json.dumps(content, indent=0) + "\n"

    @cached_property
    def identity(self) -> str:
        """sha256 of `to_json()`, which is also the sha256 of the saved file."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def save(self, path: Path | str) -> None:
        Path(path).write_bytes(self.to_json().encode())

    @classmethod
    def load(cls, path: Path | str) -> "Tokenizer":
        """Read what `save` wrote. UserError, naming the file, if it is missing or not a whole tokenizer."""
        require_file(Path(path), "the tokenizer")
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(*_check_content(content))
        except OSError as error:
            raise UserError(f"{path}: cannot read the tokenizer: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: not a tokenizer file of this project: {error}. Make it again") from error

    # ---- ids

    def special_id(self, name: str) -> int:
        return self.specials[name]

    def token_bytes(self) -> np.ndarray:
        """int32 (vocab_size,): how many bytes of text each token stands for; 0 for the special tokens."""
        lengths = [len(token) for token in self.tokens] + [0] * len(SPECIAL_TOKENS)
        return np.array(lengths, dtype=np.int32)

    def encode(self, text: str, bos: bool = False) -> list[int]:
        """Token ids of a text; `bos` puts <|bos|> in front. Special tokens written in the text stay ordinary text."""
        ids = [self.bos_id] if bos else []
        for piece in split_long_runs(clean_text(text)[0]):
            ids += self._encoding.encode_ordinary(piece)
        return ids

    def encode_array(self, text: str, bos: bool = False) -> np.ndarray:
        """The same as uint16 array: faster than a list and a tenth of its memory."""
        # with nothing allowed and nothing refused, encode_to_numpy is encode_ordinary without the list
        pieces = [
            self._encoding.encode_to_numpy(piece, allowed_special=set(), disallowed_special=())
            for piece in split_long_runs(clean_text(text)[0])
        ]
        return np.concatenate([[self.bos_id] if bos else [], *pieces], dtype=np.uint16, casting="unsafe")

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1, bos: bool = False) -> list[np.ndarray]:
        """`encode_array` for many texts, in their order, whatever the number of threads: faster, since words repeat."""
        arrays = _map_in_threads(partial(self._encode_texts, bos=bos), list(batches(texts, BATCH_CHARACTERS)), num_threads)
        return list(chain.from_iterable(arrays))

    def _encode_texts(self, texts: Sequence[str], bos: bool) -> list[np.ndarray]:
        """Encode each different word of the texts once, and look the others up."""
        # under another pattern a match may go on where words are cut; and words take 30 bytes a character, four times as many
        if self.pattern != SPLIT_PATTERN or sum(map(len, texts)) > HUGE_BATCH:
            return [self.encode_array(text, bos=bos) for text in texts]
        encoded = [clean_text(text)[0].encode() for text in texts]
        text_starts = np.cumsum([0, *map(len, encoded)])
        data = b"".join(encoded)
        starts = find_words(data, text_starts)
        words = pa.Array.from_buffers(
            pa.large_binary(), len(starts) - 1, [None, pa.py_buffer(starts), pa.py_buffer(data)]
        ).dictionary_encode()
        ids = self._encode_words(words.dictionary).take(words.indices)  # a list of ids for each word
        bounds = ids.offsets.to_numpy()[np.searchsorted(starts, text_starts)]
        prefix = np.array([self.bos_id] if bos else [], dtype=np.uint16)
        # copies: a view would keep all ids of the batch in memory as long as its text is kept
        return [np.concatenate([prefix, ids.values.to_numpy()[start:end]]) for start, end in pairwise(bounds)]

    def _encode_words(self, words: pa.LargeBinaryArray) -> pa.LargeListArray:
        """uint16 ids of each word, in one call of tiktoken: a special token keeps the words apart."""
        text = SEPARATOR.encode().join([*words.to_pylist(), b""]).decode()
        ids = self._encoding.encode_to_numpy(text, allowed_special={SEPARATOR}, disallowed_special=())
        is_end = ids == self.specials[SEPARATOR]
        ends = np.flatnonzero(is_end) - np.arange(len(words))
        return pa.LargeListArray.from_arrays(np.concatenate([[0], ends]), ids[~is_end].astype(np.uint16))

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """Text of token ids; bytes that are no UTF-8 (a token may end inside a character) show as U+FFFD."""
        ids = _as_list(ids)
        if skip_special:
            ids = [i for i in ids if i < len(self.tokens)]
        return self._encoding.decode(ids)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return self._encoding.decode_bytes(_as_list(ids))

    # ---- conversations

    def render_conversation(self, conversation: Conversation, max_tokens: int | None = None) -> tuple[list[int], list[int]]:
        """Token ids of a conversation and the loss mask of the same length: 1 where the assistant speaks.

        <|bos|> <|user_start|> question <|user_end|> <|assistant_start|> answer <|assistant_end|> ...
           0           0           0          0               0             1           1
        A system message is put before the first user message, with a blank line between. Calls of the calculator are
        supervised, with their <|python_start|> and <|python_end|>; what it answers is not: it comes from Python.
        UserError names the message that is wrong (roles must alternate, contents must be text).
        """
        ids, mask = self._render(check_conversation(conversation))
        return ids[:max_tokens].tolist(), mask[:max_tokens].tolist()

    def _render(self, turns: list[Turn]) -> tuple[np.ndarray, np.ndarray]:
        """The ids (uint16) of all turns, each between its role's two special tokens, and the loss mask (uint8)."""
        ids, mask = array("H", [self.bos_id]), bytearray(1)  # lists of numbers took five times the memory
        for role, parts in turns:
            supervised = int(role == "assistant")
            ids.append(self.specials[f"<|{role}_start|>"])
            mask.append(0)
            for kind, text in parts:
                self._render_part(kind, text, ids)
                mask += bytes([supervised if kind != "python_output" else 0]) * (len(ids) - len(mask))
            ids.append(self.specials[f"<|{role}_end|>"])
            mask.append(supervised)
        return np.frombuffer(ids, dtype=np.uint16), np.frombuffer(mask, dtype=np.uint8)

    def _render_part(self, kind: str, text: str, ids: array) -> None:
        """Append the ids of a piece of a message: text, a call of the calculator, or its answer."""
        start, end = PART_TOKENS.get(kind, (None, None))
        if start is not None:
            ids.append(self.specials[start])
        if len(text) < LONG_TEXT:
            ids.extend(self.encode(text))
        else:
            ids.frombytes(self.encode_array(text).tobytes())
        if end is not None:
            ids.append(self.specials[end])

    def render_conversations(
        self, conversations: Sequence[Conversation], num_threads: int = 1, first_number: int = 0
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """`render_conversation` for many, in their order, as (ids uint16, mask uint8) arrays.

        UserError tells the number of the wrong conversation, counted from `first_number`.
        """

        def render(numbered: tuple[int, Conversation]) -> tuple[np.ndarray, np.ndarray]:
            number, conversation = numbered
            try:
                return self._render(check_conversation(conversation))
            except UserError as error:
                raise UserError(str(error).replace("conversation:", f"conversation {number}:", 1)) from error

        return _map_in_threads(render, list(enumerate(conversations, first_number)), num_threads)

    def render_prompt(self, conversation: Conversation) -> list[int]:
        """Token ids up to and including the <|assistant_start|> after which the model is to answer.

        A last message of the assistant (the reference answer of a task) is dropped.
        """
        turns = check_conversation(conversation)
        if turns[-1][0] == "assistant":
            turns.pop()
        ids, _ = self._render(turns)
        return [*ids.tolist(), self.specials["<|assistant_start|>"]]


def clean_text(text: str) -> tuple[str, int]:
    """The text with lone surrogates replaced by U+FFFD, and how many were replaced.

    JSON may hold them ("\\ud83d" cut from its other half); neither rustbpe nor UTF-8 can represent them.
    """
    try:
        text.encode()
        return text, 0
    except UnicodeEncodeError:
        cleaned = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return cleaned, cleaned.count("\ufffd") - text.count("\ufffd")


def _training_pieces(texts: Iterable[str]) -> Iterator[str]:
    num_replaced = 0
    for text in texts:
        cleaned, replaced = clean_text(text)
        num_replaced += replaced
        yield from split_long_runs(cleaned)
    if num_replaced:
        log.warning("tokenizer: %d lone surrogates in the training text were read as U+FFFD", num_replaced)


def _as_list(ids: Iterable[int]) -> list[int]:
    return ids.tolist() if hasattr(ids, "tolist") else list(ids)


def _map_in_threads(function: Callable[[Item], Result], items: Sequence[Item], num_threads: int) -> list[Result]:
    """[function(item) for item in items] with threads; tiktoken releases the interpreter lock while it encodes."""

    def map_chunk(chunk: Sequence[Item]) -> list[Result]:
        return [function(item) for item in chunk]

    if num_threads <= 1:
        return map_chunk(items)
    # a task of several items costs less than one task each, and several tasks a thread even out long documents
    size = max(1, len(items) // (num_threads * 8))
    chunks = [items[i : i + size] for i in range(0, len(items), size)]
    with ThreadPoolExecutor(num_threads) as pool:
        return [result for results in pool.map(map_chunk, chunks) for result in results]


def _check_content(content: Any) -> tuple[list[bytes], str]:
    """(merges, pattern) of a tokenizer file; ValueError says what is wrong with it."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f'it has no "format": "{FORMAT}"')
    if content.get("special_tokens") != list(SPECIAL_TOKENS):
        raise ValueError(f"its special_tokens are not {', '.join(SPECIAL_TOKENS)}")
    pattern, encoded = content.get("pattern"), content.get("merges")
    if not isinstance(pattern, str) or not pattern:
        raise ValueError("its pattern is not a text")
    if not isinstance(encoded, list) or not all(isinstance(token, str) for token in encoded):
        raise ValueError("its merges are not a list of texts")
    try:
        merges = [base64.b64decode(token, validate=True) for token in encoded]
    except binascii.Error as error:
        raise ValueError(f"its merges are not base64 ({error})") from error
    if len(merges) + NUM_BYTES + len(SPECIAL_TOKENS) > MAX_VOCAB_SIZE:
        raise ValueError(f"it has {len(merges):,} merges, and token files are uint16")
    known = {bytes([i]) for i in range(NUM_BYTES)}
    for rank, token in enumerate(merges):
        if len(token) > 4 * MAX_RUN:  # the bytes of the longest text that is never cut
            raise ValueError(f"merge {rank} has {len(token):,} bytes, and none can have more than {4 * MAX_RUN:,}")
        # a merge joins two earlier tokens; a lost, doubled or reordered line shows here
        if token in known or not any(token[:i] in known and token[i:] in known for i in range(1, len(token))):
            raise ValueError(f"merge {rank} ({token!r}) does not join two earlier tokens")
        known.add(token)
    return merges, pattern
