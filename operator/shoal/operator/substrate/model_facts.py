"""Reads from a model's header what its KV cache will cost, so that a size that cannot work is refused before the start.

Knows `config.json` of Hugging Face folders and the headers of GGUF files (by shoal.gguf). A damaged GGUF file is
refused here, before a process is started for it. Anything else, or anything odd, gives None: the worker checks again,
with all it knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from shoal.gguf import GgufError, SkippedArray, is_gguf, map_file, read_header
from shoal.operator.api import ModelFacts

_MAX_CONFIG_BYTES = 4 << 20


def read_model_facts(path: Path) -> ModelFacts | None:
    """Facts about the model at `path`, a GGUF file or a folder; None when they cannot be told.

    Raises GgufError for a GGUF file, by name or by content, that is damaged, cut or of an unknown version.
    """
    metadata = _read_gguf(path)
    try:
        return _read_config(path / "config.json") if metadata is None else _facts_of_gguf(metadata)
    except (OSError, ValueError, KeyError, TypeError, msgspec.DecodeError):
        return None


def _read_gguf(path: Path) -> Mapping[str, Any] | None:
    """Metadata; None for what is no GGUF file. The whole header is read, to find a download that ended too early."""
    try:
        if path.is_dir() or not (path.suffix == ".gguf" or is_gguf(path)):
            return None
    except OSError:
        return None
    with map_file(path) as data:
        header = read_header(path, data)
        last_start = header.data_start + max((tensor.offset for tensor in header.tensors.values()), default=0)
        if header.tensors and last_start >= len(data):
            raise GgufError(path, f"is truncated: it has {len(data)} bytes, and its last tensor begins at {last_start}")
        return header.metadata


def _read_config(path: Path) -> ModelFacts:
    with path.open("rb") as file:
        config = msgspec.json.decode(file.read(_MAX_CONFIG_BYTES))
    num_heads = config["num_attention_heads"]
    return _make_facts(
        num_layers=config["num_hidden_layers"],
        num_kv_heads=config.get("num_key_value_heads") or num_heads,
        head_size=config.get("head_dim") or config["hidden_size"] // num_heads,
        max_position=config["max_position_embeddings"],
        vocab_size=config.get("vocab_size"),
    )


def _facts_of_gguf(metadata: Mapping[str, Any]) -> ModelFacts:
    prefix = metadata["general.architecture"]
    num_heads = metadata[f"{prefix}.attention.head_count"]
    head_size = metadata.get(f"{prefix}.attention.key_length") or metadata[f"{prefix}.embedding_length"] // num_heads
    return _make_facts(
        num_layers=metadata[f"{prefix}.block_count"],
        num_kv_heads=metadata.get(f"{prefix}.attention.head_count_kv") or num_heads,
        head_size=head_size,
        max_position=metadata[f"{prefix}.context_length"],
        vocab_size=tokens.length if isinstance(tokens := metadata.get("tokenizer.ggml.tokens"), SkippedArray) else None,
    )


def _make_facts(*, vocab_size: int | None, **sizes: Any) -> ModelFacts:
    for name, size in (sizes if vocab_size is None else sizes | {"vocab_size": vocab_size}).items():
        if type(size) is not int or size < 1:
            raise ValueError(f"{name} = {size!r} is not a positive integer")
    return ModelFacts(**sizes, vocab_size=vocab_size)
