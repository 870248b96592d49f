"""GGUF files: llama.cpp's names and row order become those of Hugging Face; tensors are dequantised when read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from shoal.gguf import GgufError, map_file, read_header
from shoal.model_worker.loader.errors import ModelLoadError
from shoal.model_worker.loader.gguf_config import FACTOR_TENSORS, find_family, parse_metadata
from shoal.model_worker.loader.gguf_tensors import GgufTensor, place_tensors
from shoal.model_worker.models.config import ModelConfigError

_PLAIN = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}


class GgufCheckpoint:
    """See `Checkpoint`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = (path,)
        try:
            self._data = map_file(path)
            header = read_header(path, self._data)
        except GgufError as error:
            raise ModelLoadError(path, error.located_problem) from None
        tensors = place_tensors(path, header, len(self._data))
        try:
            self._family = find_family(header.metadata)
            factors = {name: self._decode(tensors[name]) for name in FACTOR_TENSORS if name in tensors}
            values = {name: tuple(tensor.float().flatten().tolist()) for name, tensor in factors.items()}
            self.config = parse_metadata(header.metadata, tensors, values)
        except ModelConfigError as error:
            raise ModelLoadError(path, str(error)) from None
        hf_name = self._family.hf_name
        self._tensors = {hf_name(name): tensor for name, tensor in tensors.items() if name not in FACTOR_TENSORS}

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See `Checkpoint.shapes`."""
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    def num_bytes(self, name: str) -> int:
        """See `Checkpoint.num_bytes`."""
        return self._tensors[name].num_bytes

    def read(self, name: str) -> Tensor:
        """See `Checkpoint.read`."""
        return self._family.restore(name, self._decode(self._tensors[name]), self.config)

    def _decode(self, tensor: GgufTensor) -> Tensor:
        raw = np.frombuffer(self._data, dtype=np.uint8, count=tensor.num_bytes, offset=tensor.offset)
        if tensor.kind in _PLAIN:
            # A copy, as torch wants memory it could write to; dequantising copies, too.
            return torch.from_numpy(raw.copy()).view(_PLAIN[tensor.kind]).view(tensor.shape)
        try:
            values = dequantize(raw.reshape(*tensor.shape[:-1], -1), tensor.kind)
        except NotImplementedError:
            raise ModelLoadError(self.path, f"tensor {tensor.name}: {tensor.kind.name} is not supported") from None
        return torch.from_numpy(values).view(tensor.shape)
