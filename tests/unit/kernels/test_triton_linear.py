"""The GPU's products of a few rows: interpreted on a CPU, compiled on a GPU."""

from __future__ import annotations

import pytest
import torch

from shoal.kernels.linear import reference

triton_impl = pytest.importorskip("shoal.kernels.linear.triton_impl", reason="needs triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Triton's interpreter (3.9) multiplies bfloat16 as if it were integers.
DTYPE = torch.bfloat16 if torch.cuda.is_available() else torch.float32


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, DTYPE)


@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("size", [(960, 576), (70, 2056), (64, 8), (1, 16)], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 17, 32])
def test_few_rows(rows: int, size: tuple[int, int], has_bias: bool) -> None:
    features, width = size
    x, weight, bias = randn(rows, width, seed=0), randn(features, width, seed=1), randn(features, seed=2)
    assert triton_impl.supports(x, weight)
    expected = reference.linear(x.float(), weight.float(), bias.float() if has_bias else None)
    actual = triton_impl.linear(x, weight, bias if has_bias else None, out_float32=True)
    # Sums of `width` products of order 1 in float32, in another order.
    torch.testing.assert_close(actual, expected, atol=1e-4 * width**0.5, rtol=1e-4)
    rounded = triton_impl.linear(x, weight, bias if has_bias else None, out_float32=False)
    torch.testing.assert_close(rounded.float(), expected, atol=0.05, rtol=2**-7)


def test_other_sizes_are_left_to_cublas() -> None:
    weight = randn(64, 10, seed=0)
    assert not triton_impl.supports(randn(33, 64, seed=1), randn(64, 64, seed=0))
    assert not triton_impl.supports(randn(0, 64, seed=1), randn(64, 64, seed=0))
    assert triton_impl.supports(randn(2, 10, seed=1), weight) == (weight.element_size() * 10 % 16 == 0)
