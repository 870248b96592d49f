from __future__ import annotations

import dataclasses

import pytest
import torch

from shoal.kernels.kv_layout import KVLayout
from shoal.kernels.native import library
from shoal.kernels.paged_attention import AttentionShape, paged_attention, plan_attention, reference, torch_impl
from support.attention_cases import make_case

needs_native = pytest.mark.skipif(library() is None, reason="no C compiler here")

MIXES = {
    "one token": [(1, 1)],
    "decode": [(1, 1), (1, 5), (1, 16), (1, 17), (1, 200), (1, 1000)],
    "split decode": [(1, 1500)],
    "split prefill": [(17, 1500)],
    "prefill": [(37, 37), (1, 1), (128, 128)],
    "chunks": [(1, 255), (1, 256), (1, 257), (100, 333), (33, 259)],
}
HEADS = [(9, 3, 64), (4, 4, 64), (8, 1, 64), (8, 2, 96), (4, 2, 128), (4, 2, 16), (7, 1, 48)]


def shape_of(
    heads: tuple[int, int, int], dtype: torch.dtype, *, block_size: int = 16, window: int | None = None
) -> AttentionShape:
    num_heads, num_kv_heads, head_dim = heads
    return AttentionShape(KVLayout(2, num_kv_heads, head_dim, block_size, dtype), num_heads, head_dim**-0.5, window)


def tolerances(dtype: torch.dtype) -> tuple[float, float]:
    """(absolute, relative). float32: sums of up to 1500 terms of order 1, in another order. bfloat16: probabilities
    are rounded to 8 bits (relative 2**-9 each, averaging out) and the result once more (2**-9 relative)."""
    return (2e-6, 1e-5) if dtype == torch.float32 else (2**-8, 2**-7)


def assert_matches_reference(shape: AttentionShape, sequences: list[tuple[int, int]]) -> None:
    case = make_case(shape, sequences)
    assert case.plan.native is not None
    atol, rtol = tolerances(shape.layout.dtype)
    expected = reference.paged_attention(case.qkv, case.layer_cache, case.plan)
    # Twice: split items leave counters behind that the next layer relies on.
    for _ in range(2):
        actual = paged_attention(case.qkv, case.layer_cache, case.plan)
        torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("mix", MIXES)
def test_native_matches_reference_for_any_mix(mix: str, dtype: torch.dtype) -> None:
    assert_matches_reference(shape_of((9, 3, 64), dtype), MIXES[mix])


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("block_size", [16, 32])
def test_native_matches_reference_for_any_heads(
    heads: tuple[int, int, int], block_size: int, dtype: torch.dtype
) -> None:
    assert_matches_reference(shape_of(heads, dtype, block_size=block_size), [(1, 300), (45, 150), (1, 7)])


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("window", [1, 16, 50, 300])
def test_sliding_window(window: int, dtype: torch.dtype) -> None:
    assert_matches_reference(shape_of((8, 2, 64), dtype, window=window), [(1, 700), (100, 333), (130, 130), (1, 3)])


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_a_row_does_not_depend_on_the_batch_around_it(dtype: torch.dtype) -> None:
    shape = shape_of((9, 3, 64), dtype)
    together = make_case(shape, [(1, 900), (40, 700), *[(1, 100)] * 20])
    assert together.plan.native is not None
    batched = paged_attention(together.qkv, together.layer_cache, together.plan)
    starts = together.plan.query_starts
    for s in range(2):
        begin, end = int(starts[s]), int(starts[s + 1])
        alone = plan_attention(
            shape,
            torch.tensor([0, end - begin], dtype=torch.int32),
            together.plan.seq_lens[s : s + 1],
            together.plan.block_tables,
            together.plan.table_rows[s : s + 1],
        )
        assert alone.native is not None
        single = paged_attention(together.qkv[begin:end], together.layer_cache, alone)
        assert torch.equal(single, batched[begin:end])


def test_large_scores_do_not_overflow() -> None:
    case = make_case(shape_of((4, 2, 64), torch.float32), [(20, 300)])
    big = dataclasses.replace(case, qkv=case.qkv * 1e4)
    actual = paged_attention(big.qkv, big.layer_cache, big.plan)
    torch.testing.assert_close(
        actual, reference.paged_attention(big.qkv, big.layer_cache, big.plan), atol=1e-4, rtol=1e-3
    )


def test_float32_is_deterministic() -> None:
    case = make_case(shape_of((9, 3, 64), torch.float32), [(1, 2000), (300, 300)])
    first = paged_attention(case.qkv, case.layer_cache, case.plan)
    assert all(torch.equal(first, paged_attention(case.qkv, case.layer_cache, case.plan)) for _ in range(5))


@pytest.mark.parametrize(("head_dim", "block_size"), [(64, 8), (24, 16)])
def test_sizes_that_the_native_kernel_leaves_out_run_on_torch(head_dim: int, block_size: int) -> None:
    shape = shape_of((4, 2, head_dim), torch.float32, block_size=block_size)
    case = make_case(shape, [(1, 50), (30, 60)])
    assert case.plan.native is None
    expected = reference.paged_attention(case.qkv, case.layer_cache, case.plan)
    torch.testing.assert_close(paged_attention(case.qkv, case.layer_cache, case.plan), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("mix", MIXES)
def test_torch_implementation_matches_reference(mix: str, window: int | None, dtype: torch.dtype) -> None:
    case = make_case(shape_of((9, 3, 64), dtype, window=window), MIXES[mix])
    atol, rtol = tolerances(dtype)
    expected = reference.paged_attention(case.qkv, case.layer_cache, case.plan)
    actual = torch_impl.paged_attention(case.qkv, case.layer_cache, case.plan)
    torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol)


def test_wrong_arguments_are_refused() -> None:
    shape = shape_of((4, 2, 64), torch.float32)
    case = make_case(shape, [(2, 20)])
    with pytest.raises(ValueError, match=r"qkv must be contiguous"):
        paged_attention(case.qkv[:, :-1], case.layer_cache, case.plan)
    if case.plan.native is not None:
        with pytest.raises(ValueError, match=r"layer_cache must be one layer"):
            paged_attention(case.qkv, case.cache[:, :1].contiguous()[:, 0], case.plan)
    with pytest.raises(ValueError, match=r"multiple of 2 KV heads"):
        AttentionShape(shape.layout, 3, 0.1)


def test_flops_count_visible_pairs() -> None:
    case = make_case(shape_of((4, 2, 64), torch.float32), [(3, 5)])
    assert reference.flops(case.plan) == 4 * (3 + 4 + 5) * 4 * 64
