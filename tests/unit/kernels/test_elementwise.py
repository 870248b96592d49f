"""RMSNorm, gates and rotary embedding against their float32 references."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from shoal.kernels.act_and_mul import Activation, act_and_mul
from shoal.kernels.act_and_mul import reference as act_reference
from shoal.kernels.block_copy import block_copy
from shoal.kernels.kv_layout import KVLayout
from shoal.kernels.rms_norm import add_rms_norm, rms_norm
from shoal.kernels.rms_norm import reference as norm_reference
from shoal.kernels.rope import HeadNorms, rope_and_cache
from shoal.kernels.rope import reference as rope_reference
from support.attention_cases import slots_of

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
ACTIVATIONS = pytest.mark.parametrize("activation", get_args(Activation))
WIDTHS = pytest.mark.parametrize("width", [1, 6, 16, 42, 123, 576, 4096])


def tolerances(dtype: torch.dtype) -> dict[str, Any]:
    """A few roundings in float32; one rounding of the same float32 value (at a tie, to the other side) in bfloat16."""
    return {"atol": 1e-6, "rtol": 4e-6} if dtype == torch.float32 else {"atol": 1e-6, "rtol": 2**-7}


def randn(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@DTYPES
@WIDTHS
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_rms_norm(rows: int, width: int, dtype: torch.dtype) -> None:
    x, weight = randn(rows, width, dtype=dtype), randn(width, dtype=dtype, seed=1)
    expected = norm_reference.rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), expected, **tolerances(dtype))


@DTYPES
@WIDTHS
def test_add_rms_norm_updates_the_residual(width: int, dtype: torch.dtype) -> None:
    x, residual, weight = (randn(70, width, dtype=dtype, seed=s) for s in range(3))
    weight = weight[0].contiguous()
    expected_residual = residual.clone()
    expected = norm_reference.add_rms_norm(x, expected_residual, weight, 1e-5)
    torch.testing.assert_close(add_rms_norm(x, residual, weight, 1e-5), expected, **tolerances(dtype))
    assert torch.equal(residual, expected_residual)


@WIDTHS
@pytest.mark.parametrize("adds", [False, True])
def test_float32_weights_are_not_rounded(width: int, adds: bool) -> None:
    """Gemma's weights are 1 + w, and a small w would be lost in bfloat16."""
    x, residual = (randn(40, width, dtype=torch.bfloat16, seed=s) for s in range(2))
    weight = 1 + randn(width, dtype=torch.float32, seed=2) * 2**-7
    summed = residual + x
    expected = norm_reference.rms_norm(summed if adds else x, weight, 1e-5)
    actual = add_rms_norm(x, residual, weight, 1e-5) if adds else rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(actual, expected, **tolerances(torch.bfloat16))
    if width > 100:
        rounded = norm_reference.rms_norm(summed if adds else x, weight.bfloat16(), 1e-5)
        exact = norm_reference.rms_norm((summed if adds else x).float(), weight, 1e-5)
        assert (actual.float() - exact).abs().mean() < 0.9 * (rounded.float() - exact).abs().mean()


def test_norm_refuses_what_it_cannot_read() -> None:
    x = torch.zeros(4, 8)
    with pytest.raises(ValueError, match=r"x must be contiguous"):
        rms_norm(x.t(), torch.ones(4), 1e-5)
    with pytest.raises(ValueError, match=r"weight must be"):
        rms_norm(x, torch.ones(7), 1e-5)
    with pytest.raises(ValueError, match=r"weight must be"):
        rms_norm(x, torch.ones(8, dtype=torch.bfloat16), 1e-5)
    with pytest.raises(ValueError, match=r"residual must be"):
        add_rms_norm(x, torch.zeros(4, 8, dtype=torch.bfloat16), torch.ones(8), 1e-5)


@DTYPES
@WIDTHS
@pytest.mark.parametrize("rows", [1, 50])
@ACTIVATIONS
def test_act_and_mul(activation: Activation, rows: int, width: int, dtype: torch.dtype) -> None:
    gate_up = randn(rows, 2 * width, dtype=dtype) * 8
    expected = act_reference.act_and_mul(gate_up, activation)
    torch.testing.assert_close(act_and_mul(gate_up, activation), expected, **tolerances(dtype))


@ACTIVATIONS
def test_activations_of_extremes(activation: Activation) -> None:
    gate = torch.tensor([-1e30, -200.0, -90.0, -20.0, -0.0, 0.0, 20.0, 90.0, 1e30, float("nan")] + [1.0] * 6)
    out = act_and_mul(torch.cat((gate, torch.ones(16)))[None], activation)[0]
    expected = act_reference.act_and_mul(torch.cat((gate, torch.ones(16)))[None], activation)[0]
    # Where e**-x overflows float32 (x below -88), any tiny negative number will do.
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=4e-6, equal_nan=True)


def test_reference_activations_are_the_known_ones() -> None:
    x = torch.linspace(-9, 9, 1001, dtype=torch.float64)
    torch.testing.assert_close(act_reference.activate(x, "silu"), torch.nn.functional.silu(x))
    torch.testing.assert_close(
        act_reference.activate(x, "gelu_tanh"), torch.nn.functional.gelu(x, approximate="tanh"), atol=1e-12, rtol=1e-9
    )


def test_act_and_mul_refuses_unknown_activations() -> None:
    with pytest.raises(ValueError, match=r"activation must be one of silu, gelu_tanh, not 'relu'"):
        act_and_mul(torch.zeros(1, 2), "relu")  # type: ignore[arg-type]


@DTYPES
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "rotary_dim"),
    [(9, 3, 64, 64), (4, 1, 16, 16), (4, 2, 96, 32), (2, 2, 6, 4)],
)
@pytest.mark.parametrize("num_tokens", [1, 77])
@pytest.mark.parametrize("has_norms", [False, True], ids=["plain", "norms"])
def test_rope_and_cache(
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    rotary_dim: int,
    num_tokens: int,
    has_norms: bool,
    dtype: torch.dtype,
) -> None:
    layout = KVLayout(2, num_kv_heads, head_dim, 16, dtype)
    qkv = randn(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim, dtype=dtype)
    cos_sin = randn(200, rotary_dim, dtype=torch.float32, seed=1)
    positions = torch.arange(13, 13 + num_tokens, dtype=torch.int32)
    table = torch.randperm(8, generator=torch.Generator().manual_seed(2))
    slots = slots_of(table, positions.long(), layout).int()
    caches = [layout.allocate(8).fill_(7.0) for _ in range(2)]
    norms = HeadNorms(randn(head_dim, dtype=dtype, seed=3), randn(head_dim, dtype=torch.float32, seed=4), 1e-6)
    arguments = (cos_sin, positions, slots)
    expected = qkv.clone()
    chosen = norms if has_norms else None
    rope_reference.rope_and_cache(expected, *arguments, caches[0][:, 1], layout, num_heads, chosen)
    rope_and_cache(qkv, *arguments, caches[1][:, 1], layout, num_heads, chosen)
    torch.testing.assert_close(qkv, expected, **tolerances(dtype))
    torch.testing.assert_close(caches[1], caches[0], **tolerances(dtype))
    k, v = layout.read(caches[1][:, 1], slots // 16)
    stored = qkv.view(num_tokens, -1, head_dim)
    token = torch.arange(num_tokens)
    at = token * 16 + slots.long() % 16
    assert torch.equal(k[at], stored[:, num_heads : num_heads + num_kv_heads])
    assert torch.equal(v[at], stored[:, num_heads + num_kv_heads :])


def test_head_norms_come_before_the_rotation() -> None:
    """A query head of (3, 4) and a key head of (6, 8) have root mean squares of 5 / sqrt 2 and 10 / sqrt 2; a quarter
    turn swaps the dims."""
    layout = KVLayout(1, 1, 2, 16, torch.float32)
    qkv = torch.tensor([[3.0, 4.0, 6.0, 8.0, 1.0, 2.0]])
    zero = torch.zeros(1, dtype=torch.int32)
    norms = HeadNorms(torch.tensor([10.0, 1.0]), torch.tensor([1.0, 10.0]), 0.0)
    cache = layout.allocate(1)
    rope_and_cache(qkv, torch.tensor([[0.0, 1.0]]), zero, zero, cache[:, 0], layout, 1, norms)
    root = 2**0.5
    expected = torch.tensor([[-4 / 5 * root, 30 / 5 * root, -80 / 10 * root, 6 / 10 * root, 1.0, 2.0]])
    torch.testing.assert_close(qkv, expected)
    with pytest.raises(ValueError, match=r"head norms must have 2 weights, not 3"):
        rope_and_cache(
            qkv, torch.zeros(1, 2), zero, zero, cache[:, 0], layout, 1, HeadNorms(torch.ones(3), torch.ones(3), 0.0)
        )
    with pytest.raises(ValueError, match=r"must both be \[head_dim\]"):
        HeadNorms(torch.ones(3), torch.ones(2), 0.0)


def test_block_copy() -> None:
    layout = KVLayout(2, 1, 16, 16, torch.float32)
    cache = layout.allocate(6).normal_()
    before = cache.clone()
    block_copy(cache, [(0, 3), (0, 4), (5, 1)])
    assert torch.equal(cache, before[[0, 5, 2, 0, 0, 5]])
    block_copy(cache, [])


@pytest.mark.parametrize("pairs", [[(0, 1), (1, 2)], [(0, 2), (1, 2)], [(0, 6)], [(-1, 2)]])
def test_block_copy_refuses_what_depends_on_order_or_lies_outside(pairs: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match=r"block copies"):
        block_copy(torch.zeros(6, 8), pairs)


def test_layout_sizes() -> None:
    layout = KVLayout(30, 3, 64, 16, torch.bfloat16)
    assert layout.block_bytes == 30 * 2 * 3 * 16 * 64 * 2
    assert layout.allocate(2).nbytes == 2 * layout.block_bytes
    assert layout.name == "cpu-lanes-1:30x3x64x16:bfloat16"
    with pytest.raises(ValueError, match=r"must be even"):
        KVLayout(1, 1, 64, 15, torch.bfloat16)
    with pytest.raises(ValueError, match=r"float16 is not supported"):
        KVLayout(1, 1, 64, 16, torch.float16)
