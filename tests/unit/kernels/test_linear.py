from __future__ import annotations

import dataclasses

import pytest
import torch

from shoal.kernels import linear as module
from shoal.kernels.linear import PackedWeight, linear, pack, reference

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
SIZES = pytest.mark.parametrize(
    ("out_features", "in_features"), [(960, 576), (64, 64), (200, 64), (199, 96), (1, 32), (31, 2), (130, 33)]
)


def randn(*shape: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def tolerances(dtype: torch.dtype, in_features: int) -> tuple[float, float]:
    """(absolute, relative): float32 sums of `in_features` terms of order 1, in another order; in bfloat16 one rounding
    of the result on top (the inputs' products are exact in float32)."""
    return (2**-23 * in_features, 1e-5) if dtype == torch.float32 else (2**-23 * in_features, 2**-7)


@DTYPES
@SIZES
@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 40, 64, 65])
def test_matches_reference(rows: int, out_features: int, in_features: int, dtype: torch.dtype) -> None:
    weight, x = (randn(n, in_features, dtype=dtype, seed=n) for n in (out_features, rows))
    bias = randn(out_features, dtype=dtype, seed=3)
    packed = pack(weight.clone())
    atol, rtol = tolerances(dtype, in_features)
    for used in (None, bias):
        for out_float32 in (False, True):
            actual = linear(x, packed, used, out_float32=out_float32)
            expected = reference.linear(x, weight, used, out_float32=out_float32)
            exact = out_float32 and packed.panels is not None
            torch.testing.assert_close(actual, expected, atol=atol, rtol=1e-5 if exact else rtol)


@DTYPES
@SIZES
def test_native_reads_the_packed_copy_of_onednn_or_leaves_it_alone(
    out_features: int, in_features: int, dtype: torch.dtype
) -> None:
    """The two kernels agree on one copy; where the layout is another, the native one is not used."""
    weight, x = randn(out_features, in_features, dtype=dtype, seed=1), randn(4, in_features, dtype=dtype, seed=2)
    packed = pack(weight)
    other = dataclasses.replace(packed, panels=None, native_max_rows=0)
    atol, rtol = tolerances(dtype, in_features)
    torch.testing.assert_close(linear(x, packed), linear(x, other), atol=atol, rtol=rtol)


def test_layout_of_another_onednn_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "to_panels", lambda weight: weight.clone())
    module._is_in_panels.cache_clear()
    try:
        packed = pack(randn(128, 64, dtype=torch.float32, seed=1))
        assert packed.panels is None
    finally:
        module._is_in_panels.cache_clear()


@DTYPES
def test_native_rows_do_not_depend_on_the_rows_beside_them(dtype: torch.dtype) -> None:
    packed = pack(randn(192, 96, dtype=dtype, seed=1))
    if packed.panels is None:
        pytest.skip("oneDNN packs otherwise here")
    x = randn(64, 96, dtype=dtype, seed=2)
    together = linear(x, packed)
    for row in range(len(x)):
        assert torch.equal(linear(x[row : row + 1], packed)[0], together[row])


def test_weights_larger_than_the_cache_leave_many_rows_to_onednn() -> None:
    wide, narrow = pack(torch.zeros(64, 8192)), pack(torch.zeros(64, 64))
    if narrow.panels is None:
        pytest.skip("oneDNN packs otherwise here")
    assert 0 < wide.native_max_rows < narrow.native_max_rows


def test_unpacked_weight_where_onednn_cannot_take_it() -> None:
    weight = randn(40, 16, dtype=torch.bfloat16, seed=1)
    plain = PackedWeight(40, 16, torch.bfloat16, weight, False, None)
    x = randn(3, 16, dtype=torch.bfloat16, seed=2)
    torch.testing.assert_close(linear(x, plain), reference.linear(x, weight), atol=1e-5, rtol=2**-7)


def test_wrong_arguments_are_refused() -> None:
    packed = pack(torch.zeros(4, 8))
    with pytest.raises(ValueError, match=r"x must be contiguous torch.float32 \[rows, 8\]"):
        linear(torch.zeros(2, 9), packed)
    with pytest.raises(ValueError, match=r"x must be contiguous"):
        linear(torch.zeros(2, 8, dtype=torch.bfloat16), packed)
    with pytest.raises(ValueError, match=r"weight must be contiguous"):
        pack(torch.zeros(8, 4).t())
