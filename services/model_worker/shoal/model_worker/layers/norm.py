"""RMSNorm."""

from __future__ import annotations

import torch
from torch import Tensor

from shoal.kernels.rms_norm import add_rms_norm, rms_norm


class RMSNorm:
    """Normalises rows, alone or after adding them to the residual stream."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        """weight: [width], of the rows' dtype or float32."""
        self.weight, self._eps = weight, eps

    def __call__(self, x: Tensor) -> Tensor:
        """The normalised rows."""
        return rms_norm(x, self.weight, self._eps)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Adds x to `residual` in place and returns the sum, normalised."""
        return add_rms_norm(x, residual, self.weight, self._eps)


class ProjectionNorms:
    """Normalises q over all of its heads at once, and k likewise (OLMo 2)."""

    def __init__(self, q: RMSNorm, k: RMSNorm) -> None:
        self._q, self._k = q, k
        self._widths = [q.weight.shape[0], k.weight.shape[0], k.weight.shape[0]]

    def __call__(self, qkv: Tensor) -> Tensor:
        """qkv: [T, q + k + v]; returns the same shape, v unchanged."""
        q, k, v = torch.split(qkv, self._widths, dim=1)
        return torch.cat((self._q(q.contiguous()), self._k(k.contiguous()), v), dim=1)
