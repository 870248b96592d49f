"""Reads from a model's header what its KV cache will cost, so that a size that cannot work is refused before the start.

Knows `config.json` of Hugging Face folders and the headers of GGUF files (by shoal.gguf). A damaged GGUF file is
refused here, before a process is started for it. Anything else, or anything odd, gives None: the worker checks again,
with all it knows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from shoal.gguf import GgufError, is_gguf, map_file, read_header
from shoal.operator.api import ModelFacts

_MAX_CONFIG_BYTES: Final = 4 << 20
_ELEMENT_BYTES: Final = {"float32": 4, "float16": 2, "bfloat16": 2}


def read_model_facts(path: Path) -> ModelFacts | None:
    """Facts about the model at `path`, a GGUF file or a folder; None when they cannot be told.

    Raises GgufError for a GGUF file, by name or by content, that is damaged, cut or of an unknown version.
    """
    header = _read_gguf(path)
    try:
        return _read_config(path / "config.json") if header is None else _facts_of_gguf(*header)
    except (OSError, ValueError, KeyError, TypeError, msgspec.DecodeError):
        return None


def _read_gguf(path: Path) -> tuple[Mapping[str, Any], int] | None:
    """Metadata and number of parameters; None for what is no GGUF file.

    The whole header is read, to find a download that ended too early.
    """
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
        return header.metadata, sum(math.prod(tensor.shape) for tensor in header.tensors.values())


def _read_config(path: Path) -> ModelFacts:
    with path.open("rb") as file:
        config = msgspec.json.decode(file.read(_MAX_CONFIG_BYTES))
    facts = facts_of_config_json(config)
    return dataclasses.replace(facts, num_parameters=_count_parameters(path.parent, config))


def facts_of_config_json(config: Mapping[str, Any]) -> ModelFacts:
    """What a config.json says. Raises KeyError, TypeError or ValueError for one of another shape.

    Of models that read more than text it is the part about text that counts. Those that compress KV (kv_lora_rank) need
    less of it than their heads say, and are not known here.
    """
    config = config.get("text_config") or config
    if "kv_lora_rank" in config:
        raise ValueError("compressed KV")
    num_heads = config["num_attention_heads"]
    experts = (config.get(name) for name in ("num_experts", "num_local_experts", "n_routed_experts"))
    return _make_facts(
        num_layers=config["num_hidden_layers"],
        num_kv_heads=config.get("num_key_value_heads") or num_heads,
        head_size=config.get("head_dim") or config["hidden_size"] // num_heads,
        max_position=config["max_position_embeddings"],
        num_attention_heads=num_heads,
        num_experts=next(filter(None, experts), None),
    )


def _count_parameters(folder: Path, config: Mapping[str, Any]) -> int | None:
    """From the size of unquantized safetensors files, and the type that they hold."""
    element_bytes = _ELEMENT_BYTES.get(str(config.get("torch_dtype") or config.get("dtype")))
    num_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if element_bytes is None or not num_bytes or "quantization_config" in config:
        return None
    return num_bytes // element_bytes


def _facts_of_gguf(metadata: Mapping[str, Any], num_parameters: int) -> ModelFacts:
    prefix = metadata["general.architecture"]
    num_heads = metadata[f"{prefix}.attention.head_count"]
    head_size = metadata.get(f"{prefix}.attention.key_length") or metadata[f"{prefix}.embedding_length"] // num_heads
    return _make_facts(
        num_layers=metadata[f"{prefix}.block_count"],
        num_kv_heads=metadata.get(f"{prefix}.attention.head_count_kv") or num_heads,
        head_size=head_size,
        max_position=metadata[f"{prefix}.context_length"],
        num_attention_heads=num_heads,
        num_experts=metadata.get(f"{prefix}.expert_count") or None,
        num_parameters=num_parameters or None,
    )


def _make_facts(**sizes: Any) -> ModelFacts:
    known = {name: size for name, size in sizes.items() if size is not None}
    for name, size in known.items():
        if type(size) is not int or size < 1:
            raise ValueError(f"{name} = {size!r} is not a positive integer")
    return ModelFacts(**known)
