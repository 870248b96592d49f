"""From a GGUF header's tensor infos to tensors whose bytes are known to lie within the file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from shoal.gguf import GgufHeader, TensorInfo
from shoal.model_worker.loader.errors import ModelLoadError


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor's place. `shape` is in the order of torch (rows first), the reverse of the file's."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    """From the start of the file."""
    num_bytes: int


def place_tensors(path: Path, header: GgufHeader, file_bytes: int) -> Mapping[str, GgufTensor]:
    """The tensors of `header`, by name. Raises ModelLoadError for an unknown type, a bad shape or a place beyond it."""
    return {name: _place(path, info, header.data_start, file_bytes) for name, info in header.tensors.items()}


def _place(path: Path, info: TensorInfo, data_start: int, file_bytes: int) -> GgufTensor:
    try:
        kind = GGMLQuantizationType(info.type_code)
    except ValueError:
        raise ModelLoadError(path, f"tensor {info.name} has unknown type {info.type_code}") from None
    per_block, block_bytes = GGML_QUANT_SIZES[kind]
    num_elements = math.prod(info.shape)
    if num_elements == 0 or info.shape[-1] % per_block:
        raise ModelLoadError(
            path, f"tensor {info.name} has shape {info.shape}; {kind.name} needs rows of a multiple of {per_block}"
        )
    num_bytes = num_elements // per_block * block_bytes
    begin = data_start + info.offset
    if begin + num_bytes > file_bytes:
        raise ModelLoadError(
            path,
            f"is truncated: tensor {info.name} takes bytes {begin} to {begin + num_bytes}, "
            f"the file ends at {file_bytes}; download it again",
        )
    return GgufTensor(info.name, info.shape, kind, begin, num_bytes)
