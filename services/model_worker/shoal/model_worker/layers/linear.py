"""Linear layers."""

from __future__ import annotations

from torch import Tensor

from shoal.kernels.linear import linear, pack


class Linear:
    """y = x W^T + b, with W kept only in the layout that products on this machine want."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, out_float32: bool = False) -> None:
        """weight: [out, in] float32 or bfloat16; bias: [out]. out_float32: results are float32 (logits)."""
        self.weight, self.bias, self._out_float32 = pack(weight), bias, out_float32

    def __call__(self, x: Tensor) -> Tensor:
        """x: [rows, in]; returns [rows, out]."""
        return linear(x, self.weight, self.bias, out_float32=self._out_float32)
