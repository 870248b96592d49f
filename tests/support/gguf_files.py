"""Writes small GGUF files that hold a tokenizer and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_WORDS = (
    *("the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "hello", "world"),
    *("it", "is", "john", "don't", "123", "1000", "naïve", "café"),
)


def write_gguf(path: Path, keys: dict[str, Any], architecture: str = "llama") -> Path:
    """A GGUF file without tensors whose metadata is `keys`: str, bool, int, or lists of str, int or float."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        match value:
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case str():
                writer.add_string(key, value)
            case _:
                writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def sentencepiece_keys(words: Sequence[str] = _WORDS) -> dict[str, Any]:
    """Metadata of a SentencePiece BPE tokenizer whose vocabulary can build `words`.

    Like a trained model's: control tokens, 256 byte tokens, joined pieces with falling scores, then characters.
    """
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256]
    scores = [0.0] * len(tokens)
    pieces: dict[str, None] = {}
    for word in words:
        spelled = "▁" + word
        for end in range(2, len(spelled) + 1):
            pieces.setdefault(spelled[:end])
            pieces.setdefault(spelled[max(1, end - 2) : end])
            pieces.setdefault(spelled[max(0, end - 3) : end])
    pieces = {piece: None for piece in pieces if len(piece) > 1}
    characters = sorted({char for word in words for char in word} | {"▁"})
    for rank, piece in enumerate([*pieces, *characters]):
        tokens.append(piece)
        types.append(NORMAL)
        scores.append(-float(rank))
    tokens.append("<tool>")
    types.append(USER_DEFINED)
    scores.append(0.0)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


# What transformers reads to build a llama configuration around a tokenizer.
LLAMA_KEYS: dict[str, Any] = {
    "llama.block_count": 1,
    "llama.context_length": 64,
    "llama.embedding_length": 8,
    "llama.feed_forward_length": 8,
    "llama.attention.head_count": 1,
    "llama.attention.head_count_kv": 1,
}
