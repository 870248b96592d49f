"""The GPU's attention kernel: interpreted on a CPU, compiled on a GPU. Unused cache slots hold NaN."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shoal.kernels.kv_layout import RowsLayout
from shoal.kernels.paged_attention import AttentionPlan, AttentionShape, reference
from shoal.kernels.paged_attention.gpu_plan import (
    DecodeLaunch,
    describe_pages,
    low_tiling,
    plan_decode,
    plan_mixed,
    tall_tiling,
)
from support.attention_cases import AttentionCase, make_case

triton_impl = pytest.importorskip("shoal.kernels.paged_attention.triton_impl", reason="needs triton")

# Triton's interpreter (3.9) multiplies bfloat16 as if it were integers.
ALL = [torch.float32, *([torch.bfloat16] if torch.cuda.is_available() else [])]
DTYPES = pytest.mark.parametrize("dtype", ALL, ids=lambda dtype: str(dtype).removeprefix("torch."))
MIXES = {
    "one token": [(1, 1)],
    "split decode": [(1, 200)],
    "decode": [(1, 1), (1, 33), (1, 16), (1, 90)],
    "prefill": [(37, 37), (1, 1), (70, 70)],
    "chunks": [(40, 111), (1, 60), (33, 33), (2, 77)],
    "split extension": [(40, 300)],
}
HEADS = [(8, 2, 64), (9, 3, 64), (4, 4, 32), (8, 1, 64), (2, 1, 96), (7, 1, 48), (5, 1, 128), (2, 1, 256)]
LARGE_GROUPS = [(24, 1, 64), (64, 1, 64), (64, 2, 32), (16, 1, 256)]


def shape_of(heads: tuple[int, int, int], dtype: torch.dtype, *, block_size: int = 16) -> AttentionShape:
    num_heads, num_kv_heads, head_dim = heads
    return AttentionShape(RowsLayout(2, num_kv_heads, head_dim, block_size, dtype), num_heads)


def tolerances(dtype: torch.dtype) -> tuple[float, float]:
    """(absolute, relative). float32: sums in another order. bfloat16: probabilities and the result have 8 bits."""
    return (1e-5, 1e-4) if dtype == torch.float32 else (2**-7, 2**-7)


def mixed(case: AttentionCase) -> AttentionPlan:
    plan = case.plan
    starts, lengths = (np.ascontiguousarray(x.cpu().numpy(), np.int32) for x in (plan.query_starts, plan.seq_lens))
    pages = describe_pages(case.cache, plan.shape)
    return plan_mixed(plan.shape, pages, starts, lengths, plan.block_tables, plan.table_rows)


def assert_matches(case: AttentionCase, plan: AttentionPlan) -> None:
    atol, rtol = tolerances(case.plan.shape.layout.dtype)
    expected = reference.paged_attention(*case.arguments)
    for _ in range(2):  # twice: the counters of split tiles must be back at zero
        actual = triton_impl.paged_attention(case.qkv, case.layer_cache, plan, case.options)
        torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol)


@DTYPES
@pytest.mark.parametrize("mix", MIXES)
def test_any_mix_matches_the_reference(mix: str, dtype: torch.dtype) -> None:
    case = make_case(shape_of((8, 2, 64), dtype), MIXES[mix])
    assert_matches(case, mixed(case))


@DTYPES
@pytest.mark.parametrize("block_size", [16, 64])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_any_heads_match_the_reference(heads: tuple[int, int, int], block_size: int, dtype: torch.dtype) -> None:
    case = make_case(shape_of(heads, dtype, block_size=block_size), [(1, 100), (21, 70), (1, 7)])
    assert_matches(case, mixed(case))


@DTYPES
@pytest.mark.parametrize("heads", LARGE_GROUPS, ids=str)
def test_groups_taller_than_a_low_tile_match_the_reference(heads: tuple[int, int, int], dtype: torch.dtype) -> None:
    case = make_case(shape_of(heads, dtype), [(1, 100), (7, 50), (1, 3)], window=40, soft_cap=5.0, has_sinks=True)
    assert_matches(case, mixed(case))


@DTYPES
@pytest.mark.parametrize(
    ("window", "soft_cap", "has_sinks"), [(None, None, False), (None, None, True), (70, 5.0, True)]
)
@pytest.mark.parametrize("heads", [(8, 2, 64), (7, 1, 48), (40, 1, 64), (16, 1, 256)], ids=str)
@pytest.mark.parametrize("lengths", [[1, 33, 16, 90], [300]], ids=["few parts", "many parts"])
def test_decoding_in_parts_matches_the_reference(
    lengths: list[int],
    heads: tuple[int, int, int],
    window: int | None,
    soft_cap: float | None,
    has_sinks: bool,
    dtype: torch.dtype,
) -> None:
    """Sinks must count once, however many parts and merges of some rows at a time there are."""
    sequences = [(1, length) for length in lengths]
    case = make_case(shape_of(heads, dtype), sequences, window=window, soft_cap=soft_cap, has_sinks=has_sinks)
    plan = case.plan
    pages = describe_pages(case.cache, plan.shape)
    decode = plan_decode(plan.shape, pages, plan.query_starts, plan.seq_lens, plan.block_tables, plan.table_rows)
    if len(lengths) == 1:
        launch = decode.launches[0]
        assert isinstance(launch, DecodeLaunch)
        assert launch.num_splits > 1
    assert_matches(case, decode)


def test_tiles_of_wide_heads_get_more_warps() -> None:
    """128 x 256 accumulators would not fit in the registers of four."""
    narrow, wide = (shape_of((8, 2, head_dim), torch.bfloat16) for head_dim in (128, 256))
    assert [tall_tiling(shape, None).num_warps for shape in (narrow, wide)] == [4, 8]
    assert [low_tiling(shape, None).num_warps for shape in (narrow, wide)] == [2, 4]
    many = shape_of((64, 1, 128), torch.bfloat16)
    assert (low_tiling(many, None).rows, low_tiling(many, None).num_warps) == (64, 4)


@DTYPES
@pytest.mark.parametrize("window", [1, 16, 50])
def test_sliding_window(window: int, dtype: torch.dtype) -> None:
    case = make_case(shape_of((8, 2, 32), dtype), [(1, 170), (50, 133), (30, 30), (1, 3)], window=window)
    assert_matches(case, mixed(case))


@DTYPES
@pytest.mark.parametrize(("soft_cap", "has_sinks"), [(2.0, False), (None, True), (5.0, True)])
@pytest.mark.parametrize(
    "sequences", [[(1, 170), (50, 133), (30, 30), (1, 3)], [(1, 200)], [(40, 300)]], ids=["mixed", "split", "tall"]
)
@pytest.mark.parametrize("window", [None, 50])
def test_soft_caps_and_sinks(
    window: int | None, sequences: list[tuple[int, int]], soft_cap: float | None, has_sinks: bool, dtype: torch.dtype
) -> None:
    case = make_case(shape_of((8, 2, 32), dtype), sequences, window=window, soft_cap=soft_cap, has_sinks=has_sinks)
    assert_matches(case, mixed(case))


def test_a_plan_for_decoding_skips_padding() -> None:
    """Entries of length 0 stand for the unused places of a CUDA graph."""
    case = make_case(shape_of((8, 2, 64), torch.float32), [(1, 40), (1, 150)])
    plan = case.plan
    device = plan.seq_lens.device

    def padded(tensor: torch.Tensor, values: list[int]) -> torch.Tensor:
        return torch.cat((tensor, torch.tensor(values, dtype=torch.int32, device=device)))

    decode = plan_decode(
        plan.shape,
        describe_pages(case.cache, plan.shape),
        padded(plan.query_starts, [3, 4]),
        padded(plan.seq_lens, [0, 0]),
        plan.block_tables,
        padded(plan.table_rows, [0, 0]),
    )
    expected = reference.paged_attention(*case.arguments)
    actual = triton_impl.paged_attention(torch.cat((case.qkv, case.qkv)), case.layer_cache, decode, case.options)[:2]
    atol, rtol = tolerances(torch.float32)
    torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol)
