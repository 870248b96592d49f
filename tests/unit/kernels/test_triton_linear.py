"""The GPU's products of a few rows: interpreted on a CPU, compiled on a GPU."""

from __future__ import annotations

import pytest
import torch

from shoal.kernels.linear import linear, pack, reference
from shoal.kernels.linear.tuning import LinearTuning, choose, num_counters

triton_impl = pytest.importorskip("shoal.kernels.linear.triton_impl", reason="needs triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Triton's interpreter (3.9) multiplies bfloat16 as if it were integers.
DTYPE = torch.bfloat16 if torch.cuda.is_available() else torch.float32
SIZES = [(960, 576), (70, 2056), (64, 8), (1, 16)]


def randn(*shape: int, seed: int, dtype: torch.dtype = DTYPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def assert_right(rows: int, size: tuple[int, int], has_bias: bool, tuning: LinearTuning) -> None:
    features, width = size
    x, weight, bias = randn(rows, width, seed=0), randn(features, width, seed=1), randn(features, seed=2)
    counters = torch.zeros(num_counters((tuning,), features), dtype=torch.int32, device=DEVICE)
    given = (x, weight, bias if has_bias else None, tuning, counters)
    expected = reference.linear(x.float(), weight.float(), bias.float() if has_bias else None)
    for _ in range(2):  # twice: the counters of split sums must be back at zero
        actual = triton_impl.linear(*given, out_float32=True)
        # Sums of `width` products of order 1 in float32, in another order.
        torch.testing.assert_close(actual, expected, atol=1e-4 * width**0.5, rtol=1e-4)
    assert not counters.any()
    rounded = triton_impl.linear(*given, out_float32=False)
    torch.testing.assert_close(rounded.float(), expected, atol=0.05, rtol=2**-7)


@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 17, 32])
def test_few_rows(rows: int, size: tuple[int, int], has_bias: bool) -> None:
    tuning = choose(torch.device("cpu"), DTYPE, *size, rows)
    assert tuning.kernel == ("vector" if rows == 1 else "rows")
    assert_right(rows, size, has_bias, tuning)


@pytest.mark.parametrize("splits", [1, 3, 100], ids="{} splits".format)
@pytest.mark.parametrize("size", [(130, 576), (70, 2056), (64, 8), (1, 16)], ids=str)
@pytest.mark.parametrize(("rows", "tile_rows"), [(5, 16), (33, 64), (128, 128), (150, 64)])
def test_more_rows(rows: int, tile_rows: int, size: tuple[int, int], splits: int) -> None:
    tuning = LinearTuning(
        None, None, None, 256, "tiles", tile_out=64, tile_in=64, tile_rows=tile_rows, splits=splits, num_stages=3
    )
    assert_right(rows, size, rows % 2 == 0, tuning)


def test_splitting_sums_needs_counters() -> None:
    tuning = LinearTuning(None, None, None, 64, "tiles", tile_out=64, tile_in=64, tile_rows=64, splits=2)
    x, weight = randn(40, 256, seed=0), randn(128, 256, seed=1)
    with pytest.raises(ValueError, match="2 counters"):
        triton_impl.linear(x, weight, None, tuning, torch.zeros(1, dtype=torch.int32), out_float32=False)


def test_other_sizes_are_left_to_torch() -> None:
    device = torch.device("cpu")
    assert choose(device, torch.float32, 64, 64, 257).kernel == "torch"
    assert choose(device, torch.float32, 64, 10, 2).kernel == "torch", "TMA cannot address rows of 40 bytes"
    assert choose(device, torch.float32, 64, 12, 2).kernel == "rows"


def test_no_rows() -> None:
    tuning = choose(torch.device("cpu"), DTYPE, 64, 64, 0)
    x, weight = randn(0, 64, seed=0), randn(64, 64, seed=1)
    assert triton_impl.linear(x, weight, None, tuning, None, out_float32=False).shape == (0, 64)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("rows", [1, 20, 64, 128, 300])
def test_float32_results_are_not_rounded_on_the_way(rows: int, dtype: torch.dtype) -> None:
    """Whichever kernel computes them."""
    x, weight, bias = (randn(*shape, seed=0, dtype=dtype) for shape in ((rows, 512), (1000, 512), (1000,)))
    packed = pack(weight)
    for given in (None, bias):
        expected = reference.linear(x, weight, given, out_float32=True)
        actual = linear(x, packed, given, out_float32=True)
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, expected, atol=2e-3, rtol=1e-4)
