"""How well a tokenizer compresses, beside the published vocabularies of GPT-2 and GPT-4 where they were downloaded."""

import base64
from collections.abc import Mapping, Sequence, Sized
from pathlib import Path

import tiktoken

from nanochat.dataset import read_documents
from nanochat.errors import UserError
from nanochat.tokenizer import Tokenizer

MAX_CHARACTERS = 2_000_000  # of each text: bytes per token then vary by less than the digits shown

# GPT-2's and GPT-4's own splitting patterns (openai/tiktoken, MIT); a vocabulary file holds the merges alone
PATTERNS = {
    "gpt2_bpe": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    "cl100k_bpe": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
    ),
}


def compare_compression(
    tokenizer: Tokenizer, texts: Mapping[str, Path], vocabularies: Mapping[str, Path]
) -> dict[str, float | None]:
    """Bytes per token of each vocabulary on each text (a parquet shard); None for a vocabulary that was not downloaded.

    {"ours_train": 4.91, "ours_val": 4.86, "gpt2_train": 4.67, "gpt2_val": 4.63, "cl100k_train": None, "cl100k_val": None}
    """
    table: dict[str, float | None] = {}
    for text, path in texts.items():
        documents = first_documents(path)
        table[f"ours_{text}"] = bytes_per_token(documents, tokenizer.encode_batch(documents))
        for key in PATTERNS:
            encoding = load_vocabulary(key, vocabularies[key]) if key in vocabularies else None
            tokens = encoding.encode_ordinary_batch(documents) if encoding else None
            table[f"{key.removesuffix('_bpe')}_{text}"] = bytes_per_token(documents, tokens) if tokens else None
    return table


def first_documents(path: Path) -> list[str]:
    documents, characters = [], 0
    for document in read_documents(path):
        documents.append(document)
        characters += len(document)
        if characters >= MAX_CHARACTERS:
            break
    return documents


def bytes_per_token(documents: list[str], tokens: Sequence[Sized]) -> float:
    return sum(len(document.encode()) for document in documents) / sum(len(ids) for ids in tokens)


def load_vocabulary(key: str, path: Path) -> tiktoken.Encoding:
    """A vocabulary in tiktoken's file format: a line a token, its bytes in base64 and its rank."""
    try:
        lines = [line.split() for line in path.read_bytes().splitlines() if line]
        ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
        return tiktoken.Encoding(key, pat_str=PATTERNS[key], mergeable_ranks=ranks, special_tokens={})
    except ValueError:
        raise UserError(f"{path}: is not a vocabulary in tiktoken's format (base64, blank, rank)") from None
