"""Where layers get their tensors from while a model is built."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from shoal.model_worker.layers.linear import Linear
from shoal.model_worker.layers.norm import RMSNorm


class Weights(Protocol):
    """A checkpoint being loaded. Tensors come one at a time, so that only one unpacked copy exists at once."""

    def take(self, name: str) -> Tensor:
        """The tensor in the model's dtype, contiguous; the caller owns it. Each name is taken once."""


class LayerWeights:
    """The tensors of one decoder layer, named without its prefix."""

    def __init__(self, weights: Weights, prefix: str, eps: float) -> None:
        """eps: of all its norms."""
        self._weights, self._prefix, self.eps = weights, prefix, eps

    def take(self, name: str) -> Tensor:
        """See `Weights.take`."""
        return self._weights.take(self._prefix + name)

    def linear(self, *names: str, bias: bool = False) -> Linear:
        """One product for several that read the same input: fewer calls, and one pass over the rows."""
        weight = self._merge([f"{name}.weight" for name in names])
        return Linear(weight, self._merge([f"{name}.bias" for name in names]) if bias else None)

    def norm(self, name: str) -> RMSNorm:
        """The norm with the weight `name`.weight."""
        return RMSNorm(self.take(f"{name}.weight"), self.eps)

    def _merge(self, names: list[str]) -> Tensor:
        tensors = [self.take(name) for name in names]
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
