"""GPT-2's own tokenizer from Hugging Face's files, with tiktoken as its encoder.

    tokenizer.json    everything in one file; or
    vocab.json        the id of each token      } these
    merges.txt        the merges, in order      } two

The files write bytes as printable signs, the blank as Ġ. Tiktoken takes the order of the merges from the ids, so a vocabulary
whose ids do not grow with its merges is refused; GPT-2's do.

Not covered: other splitting patterns and normalizers than GPT-2's, which are refused. Special tokens are never written but for
the <|endoftext|> in front: a text that contains one is encoded as ordinary characters.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken

from nanochat.errors import UserError
from nanochat.jsonl import require_file
from nanochat.text import shown
from nanochat.tokenizer import MAX_VOCAB_SIZE, NUM_BYTES, clean_text, split_long_runs
from nanochat.tokenizer_eval import PATTERNS

END_OF_TEXT = "<|endoftext|>"  # stands between GPT-2's documents; in front of a prompt, it is its <|bos|>


class Gpt2Tokenizer:
    """GPT-2's vocabulary with tiktoken as its encoder; encodes and decodes as `nanochat.tokenizer.Tokenizer` does.

    `ordinary` are the bytes that each token stands for, by id and in the order of the merges; `specials` the other tokens.
    """

    def __init__(self, ordinary: Mapping[bytes, int], specials: Mapping[str, int]):
        self.ordinary, self.specials = dict(ordinary), dict(specials)
        self.bos_id = self.specials[END_OF_TEXT]
        self.vocab_size = 1 + max(*self.ordinary.values(), *self.specials.values())
        self._encoding = tiktoken.Encoding(
            "gpt2", pat_str=PATTERNS["gpt2_bpe"], mergeable_ranks=self.ordinary, special_tokens=self.specials
        )

    def encode_array(self, text: str, bos: bool = False) -> np.ndarray:
        """Token ids as uint16; `bos` puts <|endoftext|> in front. Special tokens written in the text stay ordinary text."""
        ids = [self.bos_id] if bos else []
        for piece in split_long_runs(clean_text(text)[0]):
            ids += self._encoding.encode_ordinary(piece)
        return np.array(ids, dtype=np.uint16)

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1, bos: bool = False) -> list[np.ndarray]:
        """`encode_array` for many texts, in their order, whatever the number of threads."""
        with ThreadPoolExecutor(max(1, num_threads)) as pool:
            return list(pool.map(partial(self.encode_array, bos=bos), texts))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids; bytes that are no UTF-8 show as U+FFFD."""
        return self._encoding.decode([int(token) for token in ids])


def load_tokenizer(folder: Path) -> Gpt2Tokenizer:
    path = folder / "tokenizer.json"
    try:
        if path.exists():
            vocabulary, merges, added = split_tokenizer_json(read_json(path, "GPT-2's tokenizer"))
        else:
            path = folder / "vocab.json"
            vocabulary, added = read_json(path, "GPT-2's vocabulary"), {}
            merges = read_merges(folder / "merges.txt")
        return build_tokenizer(vocabulary, merges, added)
    except ValueError as error:
        raise UserError(f"{path}: not a tokenizer of GPT-2's kind: {error}") from None


def read_merges(path: Path) -> list[str]:
    """A merge a line, two tokens with a blank between them; the first line may tell a version."""
    require_file(path, "GPT-2's merges")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from None
    return [line.rstrip("\r") for number, line in enumerate(lines) if line.strip() and not (number == 0 and line[0] == "#")]


def split_tokenizer_json(content: Mapping[str, Any]) -> tuple[dict[str, int], list, dict[str, int]]:
    """Vocabulary, merges and added tokens. ValueError if it is another kind of tokenizer."""
    match content:
        case {"model": {"vocab": dict(vocabulary), "merges": list(merges), **model}}:
            added = {entry["content"]: entry["id"] for entry in content.get("added_tokens") or [] if is_token(entry)}
        case _:
            raise ValueError("it has no model with vocab and merges")
    before = content.get("pre_tokenizer")
    if model.get("type", "BPE") != "BPE" or not isinstance(before, dict) or before.get("type") != "ByteLevel":
        raise ValueError(f"expected byte-level BPE, found {shown(model.get('type'))} after {shown(before)}")
    if before.get("add_prefix_space") or not before.get("use_regex", True) or content.get("normalizer"):
        raise ValueError("it changes or splits texts otherwise than GPT-2's (add_prefix_space, use_regex, normalizer)")
    return vocabulary, merges, added


def is_token(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("content"), str) and isinstance(entry.get("id"), int)


def build_tokenizer(vocabulary: Mapping[str, int], merges: Sequence, added: Mapping[str, int]) -> Gpt2Tokenizer:
    """Check that ids grow with the merges, from which tiktoken takes their order; what is no merge and no byte is special."""
    known = {**vocabulary, **added}
    is_counted = all(isinstance(token, int) for token in known.values()) and sorted(known.values()) == list(range(len(known)))
    if not is_counted or len(known) > MAX_VOCAB_SIZE:
        raise ValueError(
            f"the ids of {len(known):,} tokens should be 0, 1, 2, ..., each once, and less than {MAX_VOCAB_SIZE:,}"
        )
    bytes_of = signs()
    if missing := [sign for sign in bytes_of if sign not in known]:
        raise ValueError(f"{len(missing)} of the single bytes have no token, such as {shown(missing[0])}")
    ordinary = {bytes([byte]): known.pop(sign) for sign, byte in bytes_of.items()}
    last = -1
    for number, merge in enumerate(merges, start=1):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise ValueError(f"merge {number} is {shown(merge)}; expected two tokens")
        token = known.pop("".join(pair), None)
        if token is None or token <= last:
            raise ValueError(
                f"merge {number}, {shown(merge)}: its token has no id of its own above those of the merges before it"
            )
        try:
            left, right = (bytes(bytes_of[sign] for sign in part) for part in pair)
        except KeyError:
            raise ValueError(f"merge {number}, {shown(merge)}: not written in GPT-2's signs for bytes") from None
        if left not in ordinary or right not in ordinary:
            raise ValueError(f"merge {number}, {shown(merge)}: joins what no merge before it made")
        ordinary[left + right] = last = token
    if END_OF_TEXT not in known:
        raise ValueError(f"it has no {END_OF_TEXT}")
    return Gpt2Tokenizer(ordinary, known)


def signs() -> dict[str, int]:
    """The printable sign by which GPT-2's files write each byte: its own in Latin-1 or, if that is none, one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(NUM_BYTES) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + number): byte for number, byte in enumerate(others)}


def read_json(path: Path, what: str) -> dict:
    require_file(path, what)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"expected an object, found {type(content).__name__}")
        return content
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file: {error}. Copy it again") from error
