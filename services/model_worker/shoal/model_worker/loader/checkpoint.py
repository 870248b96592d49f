"""What the loader needs of a checkpoint format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from shoal.model_worker.models.config import ModelConfig


class Checkpoint(Protocol):
    """An opened checkpoint: headers read and checked, tensors still on disk. Names are those of Hugging Face."""

    @property
    def path(self) -> Path:
        """What the user named: a file or a directory."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold weights, in a fixed order; their bytes make the digest."""

    @property
    def config(self) -> ModelConfig:
        """The model."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor that is there."""

    def num_bytes(self, name: str) -> int:
        """Bytes of a tensor as stored."""

    def read(self, name: str) -> Tensor:
        """The tensor in some floating dtype; may share memory with the mapped file, so it is not to be written to."""
