"""Reads from a model's header what its KV cache will cost, so that a size that cannot work is refused before the start.

Knows `config.json` of Hugging Face folders and the first metadata of GGUF files (format: ggml's docs/gguf.md). Anything
else, or anything odd, gives None: the worker checks again, with all it knows.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from shoal.operator.api import ModelFacts

_MAX_CONFIG_BYTES = 4 << 20
_MAX_ENTRIES = 256
_MAX_ARRAY_LENGTH = 4096
_MAX_STRING_BYTES = 1 << 16
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING = 8
_ARRAY = 9
_TOKENIZER_PREFIX = "tokenizer."
"""Writers put the architecture before the tokenizer, whose arrays are megabytes."""


def read_model_facts(path: Path) -> ModelFacts | None:
    """Facts about the model at `path`, a GGUF file or a folder; None when they cannot be told."""
    try:
        if path.is_dir():
            return _read_config(path / "config.json")
        with path.open("rb") as file:
            return _facts_of_gguf(_read_gguf(file))
    except (OSError, ValueError, KeyError, TypeError, struct.error, msgspec.DecodeError):
        return None


def _read_config(path: Path) -> ModelFacts:
    with path.open("rb") as file:
        config = msgspec.json.decode(file.read(_MAX_CONFIG_BYTES))
    num_heads = config["num_attention_heads"]
    return _make_facts(
        num_layers=config["num_hidden_layers"],
        num_kv_heads=config.get("num_key_value_heads") or num_heads,
        head_size=config.get("head_dim") or config["hidden_size"] // num_heads,
        max_position=config["max_position_embeddings"],
    )


def _facts_of_gguf(metadata: dict[str, Any]) -> ModelFacts:
    prefix = metadata["general.architecture"]
    num_heads = metadata[f"{prefix}.attention.head_count"]
    head_size = metadata.get(f"{prefix}.attention.key_length") or metadata[f"{prefix}.embedding_length"] // num_heads
    return _make_facts(
        num_layers=metadata[f"{prefix}.block_count"],
        num_kv_heads=metadata.get(f"{prefix}.attention.head_count_kv") or num_heads,
        head_size=head_size,
        max_position=metadata[f"{prefix}.context_length"],
    )


def _make_facts(**sizes: Any) -> ModelFacts:
    for name, size in sizes.items():
        if type(size) is not int or size < 1:
            raise ValueError(f"{name} = {size!r} is not a positive integer")
    return ModelFacts(**sizes)


def _read_gguf(file: BinaryIO) -> dict[str, Any]:
    """The metadata up to the tokenizer's."""
    if file.read(4) != b"GGUF" or _unpack(file, "<I") not in (2, 3):
        raise ValueError("not a GGUF file of version 2 or 3")
    _unpack(file, "<Q")  # tensors
    metadata: dict[str, Any] = {}
    for _ in range(min(_unpack(file, "<Q"), _MAX_ENTRIES)):
        key = _read_string(file)
        if key.startswith(_TOKENIZER_PREFIX):
            break
        kind = _unpack(file, "<I")
        if kind == _ARRAY:
            _skip_array(file)
        else:
            metadata[key] = _read_string(file) if kind == _STRING else _unpack(file, _SCALARS[kind])
    return metadata


def _skip_array(file: BinaryIO) -> None:
    """Arrays before the tokenizer are tags and languages, or per-layer sizes that ModelFacts cannot hold."""
    kind, length = _unpack(file, "<I"), _unpack(file, "<Q")
    if length > _MAX_ARRAY_LENGTH:
        raise ValueError(f"an array of {length} entries before the tokenizer's")
    for _ in range(length):
        if kind == _STRING:
            _read_string(file)
        else:
            _unpack(file, _SCALARS[kind])


def _read_string(file: BinaryIO) -> str:
    length = _unpack(file, "<Q")
    if length > _MAX_STRING_BYTES:
        raise ValueError(f"a string of {length} bytes")
    return file.read(length).decode()


def _unpack(file: BinaryIO, layout: str) -> Any:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))[0]
