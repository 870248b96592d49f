"""The GPU's elementwise kernels against their references: interpreted on a CPU, compiled on a GPU."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from shoal.kernels.act_and_mul import Activation
from shoal.kernels.act_and_mul import reference as act_reference
from shoal.kernels.kv_layout import RowsLayout
from shoal.kernels.rms_norm import reference as norm_reference
from shoal.kernels.rope import HeadNorms
from shoal.kernels.rope import reference as rope_reference

act = pytest.importorskip("shoal.kernels.act_and_mul.triton_impl", reason="needs triton")
norm = pytest.importorskip("shoal.kernels.rms_norm.triton_impl", reason="needs triton")
rope = pytest.importorskip("shoal.kernels.rope.triton_impl", reason="needs triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
WIDTHS = pytest.mark.parametrize("width", [1, 42, 576, 4096])


def tolerances(dtype: torch.dtype) -> dict[str, Any]:
    """A few roundings in float32; in bfloat16 one rounding of the same value, or interpreted two cut-offs, since the
    interpreter drops what bfloat16 has no room for."""
    if dtype == torch.float32:
        return {"atol": 1e-6, "rtol": 1e-5}
    return {"atol": 1e-6, "rtol": 2**-7 if DEVICE == "cuda" else 2**-6}


def randn(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@DTYPES
@WIDTHS
@pytest.mark.parametrize("rows", [0, 1, 7])
@pytest.mark.parametrize("weight_dtype", [None, torch.float32], ids=["same", "float32"])
def test_norms(weight_dtype: torch.dtype | None, rows: int, width: int, dtype: torch.dtype) -> None:
    x, residual, weight = (randn(rows + 1, width, dtype=dtype, seed=s) for s in range(3))
    x, residual, weight = x[:rows], residual[:rows], weight[0].to(weight_dtype or dtype).contiguous()
    torch.testing.assert_close(
        norm.rms_norm(x, weight, 1e-5), norm_reference.rms_norm(x, weight, 1e-5), **tolerances(dtype)
    )
    expected_residual = residual.clone()
    expected = norm_reference.add_rms_norm(x, expected_residual, weight, 1e-5)
    torch.testing.assert_close(norm.add_rms_norm(x, residual, weight, 1e-5), expected, **tolerances(dtype))
    torch.testing.assert_close(residual, expected_residual, **tolerances(dtype))


@DTYPES
@WIDTHS
@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("activation", get_args(Activation))
def test_act_and_mul(activation: Activation, rows: int, width: int, dtype: torch.dtype) -> None:
    gate_up = randn(rows, 2 * width, dtype=dtype) * 8
    expected = act_reference.act_and_mul(gate_up, activation)
    torch.testing.assert_close(act.act_and_mul(gate_up, activation), expected, **tolerances(dtype))


@DTYPES
@pytest.mark.parametrize("rotary_dim", [64, 48, 16])
@pytest.mark.parametrize("heads", [(9, 3), (4, 4), (8, 1)], ids=str)
@pytest.mark.parametrize("has_norms", [False, True], ids=["plain", "norms"])
def test_rope_and_cache(has_norms: bool, heads: tuple[int, int], rotary_dim: int, dtype: torch.dtype) -> None:
    num_heads, num_kv_heads = heads
    layout = RowsLayout(2, num_kv_heads, 64, 16, dtype)
    qkv = randn(5, (num_heads + 2 * num_kv_heads) * 64, dtype=dtype)
    cos_sin = randn(100, rotary_dim, dtype=torch.float32, seed=1)
    positions = torch.tensor([0, 99, 3, 4, 50], dtype=torch.int32, device=DEVICE)
    slots = torch.tensor([0, 47, 17, -1, 16], dtype=torch.int32, device=DEVICE)
    caches = [layout.allocate(3).fill_(7.0) for _ in range(2)]
    expected = qkv.clone()
    norms = None
    if has_norms:
        norms = HeadNorms(randn(64, dtype=dtype, seed=3), randn(64, dtype=torch.float32, seed=4), 1e-6)
    arguments = (cos_sin, positions, slots)
    rope_reference.rope_and_cache(expected, *arguments, caches[0][:, 1], layout, num_heads, norms)
    rope.rope_and_cache(qkv, *arguments, caches[1][:, 1], layout, num_heads, norms)
    torch.testing.assert_close(qkv, expected, **tolerances(dtype))
    torch.testing.assert_close(caches[1], caches[0], **tolerances(dtype))
