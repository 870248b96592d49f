"""RMSNorm."""

from __future__ import annotations

from torch import Tensor

from shoal.kernels.rms_norm import add_rms_norm, rms_norm


class RMSNorm:
    """Normalises rows, alone or after adding them to the residual stream."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        """weight: [hidden]."""
        self.weight, self._eps = weight, eps

    def __call__(self, x: Tensor) -> Tensor:
        """The normalised rows."""
        return rms_norm(x, self.weight, self._eps)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Adds x to `residual` in place and returns the sum, normalised."""
        return add_rms_norm(x, residual, self.weight, self._eps)
