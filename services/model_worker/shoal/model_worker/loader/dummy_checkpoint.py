"""Random weights of the right shapes, for measuring and testing without a download."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from shoal.model_worker.loader.safetensors_checkpoint import read_config
from shoal.model_worker.models.registry import find_model_class


class DummyCheckpoint:
    """See `Checkpoint`. Reads only config.json; a tensor depends on its name and the seed, not on the others."""

    def __init__(self, path: Path, seed: int = 0, device: str = "cpu") -> None:
        """device: where tensors are drawn; another kind of device draws other numbers."""
        self.path = path
        self.files: tuple[Path, ...] = ()
        self.config = read_config(path / "config.json" if path.is_dir() else path)
        self._seed, self._device = seed, device

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See `Checkpoint.shapes`."""
        return find_model_class(self.config.architecture).tensor_shapes(self.config)

    def num_bytes(self, name: str) -> int:
        """See `Checkpoint.num_bytes`."""
        return 4 * math.prod(self.shapes[name])

    def read(self, name: str) -> Tensor:
        """Ones for norms, else normal with a deviation of 0.02."""
        shape = self.shapes[name]
        if name.endswith("norm.weight"):
            return torch.ones(shape, device=self._device)
        digest = hashlib.sha256(f"{self._seed}:{name}".encode()).digest()
        generator = torch.Generator(self._device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        return torch.empty(shape, device=self._device).normal_(std=0.02, generator=generator)
