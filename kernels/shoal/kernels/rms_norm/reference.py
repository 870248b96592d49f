"""RMSNorm in float32 torch: the definition, and the implementation where there is no native library."""

from __future__ import annotations

from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `shoal.kernels.rms_norm.rms_norm`."""
    wide = x.float()
    scale = (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (wide * scale * weight.float()).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `shoal.kernels.rms_norm.add_rms_norm`."""
    residual.add_(x)
    return rms_norm(residual, weight, eps)


def bytes_moved(rows: int, hidden: int, itemsize: int, *, residual: bool, weight_itemsize: int | None = None) -> int:
    """Compulsory traffic: x in and out, weight once; the residual in and out."""
    return itemsize * hidden * rows * (4 if residual else 2) + hidden * (weight_itemsize or itemsize)


def flops(rows: int, hidden: int) -> int:
    """A square, a sum and two products per element."""
    return 4 * rows * hidden
