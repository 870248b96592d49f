"""Where layers get their tensors from while a model is built."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Weights(Protocol):
    """A checkpoint being loaded. Tensors come one at a time, so that only one unpacked copy exists at once."""

    def take(self, name: str) -> Tensor:
        """The tensor in the model's dtype, contiguous; the caller owns it. Each name is taken once."""
