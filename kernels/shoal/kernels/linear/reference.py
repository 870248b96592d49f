"""Linear products in float32 torch."""

from __future__ import annotations

from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out_float32: bool = False) -> Tensor:
    """See `shoal.kernels.linear.linear`; `weight` is the plain [out, in]."""
    product = x.float() @ weight.float().T
    if bias is not None:
        product = product + bias.float()
    return product if out_float32 else product.to(x.dtype)


def bytes_moved(rows: int, out_features: int, in_features: int, itemsize: int) -> int:
    """The weight, x and the result once each."""
    return itemsize * (out_features * in_features + rows * (out_features + in_features))


def flops(rows: int, out_features: int, in_features: int) -> int:
    """A product and a sum per row and weight."""
    return 2 * rows * out_features * in_features
