from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from shoal.kernels.kv_layout import KVLayout
from shoal.kernels.native import library
from shoal.kernels.paged_attention import (
    AttentionOptions,
    AttentionShape,
    paged_attention,
    plan_attention,
    reference,
    torch_impl,
)
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


def shape_of(heads: tuple[int, int, int], dtype: torch.dtype, *, block_size: int = 16) -> AttentionShape:
    num_heads, num_kv_heads, head_dim = heads
    return AttentionShape(KVLayout(2, num_kv_heads, head_dim, block_size, dtype), num_heads)


def tolerances(dtype: torch.dtype) -> tuple[float, float]:
    """(absolute, relative). float32: sums of up to 1500 terms of order 1, in another order. bfloat16: probabilities
    are rounded to 8 bits (relative 2**-9 each, averaging out) and the result once more (2**-9 relative)."""
    return (2e-6, 1e-5) if dtype == torch.float32 else (2**-8, 2**-7)


def assert_matches_reference(
    shape: AttentionShape, sequences: list[tuple[int, int]], *, window: int | None = None
) -> None:
    case = make_case(shape, sequences, window=window)
    assert case.plan.has_native
    atol, rtol = tolerances(shape.layout.dtype)
    expected = reference.paged_attention(*case.arguments)
    # Twice: split items leave counters behind that the next layer relies on.
    for _ in range(2):
        actual = paged_attention(*case.arguments)
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
    assert_matches_reference(shape_of((8, 2, 64), dtype), [(1, 700), (100, 333), (130, 130), (1, 3)], window=window)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_a_row_does_not_depend_on_the_batch_around_it(dtype: torch.dtype) -> None:
    shape = shape_of((9, 3, 64), dtype)
    together = make_case(shape, [(1, 900), (40, 700), *[(1, 100)] * 20])
    assert together.plan.has_native
    batched = paged_attention(*together.arguments)
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
        assert alone.has_native
        single = paged_attention(together.qkv[begin:end], together.layer_cache, alone, together.options)
        assert torch.equal(single, batched[begin:end])


def test_large_scores_do_not_overflow() -> None:
    case = make_case(shape_of((4, 2, 64), torch.float32), [(20, 300)])
    big = dataclasses.replace(case, qkv=case.qkv * 1e4)
    actual = paged_attention(*big.arguments)
    torch.testing.assert_close(actual, reference.paged_attention(*big.arguments), atol=1e-4, rtol=1e-3)


def test_float32_is_deterministic() -> None:
    case = make_case(shape_of((9, 3, 64), torch.float32), [(1, 2000), (300, 300)])
    first = paged_attention(*case.arguments)
    assert all(torch.equal(first, paged_attention(*case.arguments)) for _ in range(5))


@pytest.mark.parametrize(("head_dim", "block_size"), [(64, 8), (24, 16)])
def test_sizes_that_the_native_kernel_leaves_out_run_on_torch(head_dim: int, block_size: int) -> None:
    shape = shape_of((4, 2, head_dim), torch.float32, block_size=block_size)
    case = make_case(shape, [(1, 50), (30, 60)])
    assert case.plan.native(case.options) is None
    expected = reference.paged_attention(*case.arguments)
    torch.testing.assert_close(paged_attention(*case.arguments), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("mix", MIXES)
def test_torch_implementation_matches_reference(mix: str, window: int | None, dtype: torch.dtype) -> None:
    case = make_case(shape_of((9, 3, 64), dtype), MIXES[mix], window=window)
    atol, rtol = tolerances(dtype)
    expected = reference.paged_attention(*case.arguments)
    actual = torch_impl.paged_attention(*case.arguments)
    torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol)


def test_wrong_arguments_are_refused() -> None:
    shape = shape_of((4, 2, 64), torch.float32)
    case = make_case(shape, [(2, 20)])
    with pytest.raises(ValueError, match=r"qkv must be contiguous"):
        paged_attention(case.qkv[:, :-1], *case.arguments[1:])
    if case.plan.has_native:
        with pytest.raises(ValueError, match=r"layer_cache must be one layer"):
            paged_attention(case.qkv, case.cache[:, :1].contiguous()[:, 0], case.plan, case.options)
    with pytest.raises(ValueError, match=r"multiple of 2 KV heads"):
        AttentionShape(shape.layout, 3)
    with pytest.raises(ValueError, match=r"one logit for each of 4 heads"):
        paged_attention(*case.arguments[:3], AttentionOptions(1.0, sinks=torch.zeros(2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0.0}, r"scale must be above 0"),
        ({"sliding_window": 0}, r"sliding_window must be at least 1"),
        ({"soft_cap": -1.0}, r"soft_cap must be above 0"),
        ({"sinks": torch.zeros(4, dtype=torch.bfloat16)}, r"sinks must be contiguous float32"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionOptions(**{"scale": 1.0, **options})


def test_flops_and_bytes_count_what_is_visible() -> None:
    case = make_case(shape_of((4, 2, 64), torch.float32), [(3, 5)])
    assert reference.flops(case.plan, case.options) == 4 * (3 + 4 + 5) * 4 * 64
    assert reference.bytes_moved(case.plan, case.options) == 4 * (2 * 3 * 4 + 2 * 5 * 2) * 64
    windowed = AttentionOptions(1.0, sliding_window=2)
    assert reference.flops(case.plan, windowed) == 4 * (2 + 2 + 2) * 4 * 64
    assert reference.bytes_moved(case.plan, windowed) == 4 * (2 * 3 * 4 + 2 * 4 * 2) * 64


@needs_native
def test_one_plan_serves_layers_of_different_windows_and_scales() -> None:
    case = make_case(shape_of((8, 2, 64), torch.float32), [(1, 700), (40, 333)])
    for options in (*(AttentionOptions(0.125, window) for window in (None, 16, 300)), AttentionOptions(0.2)) * 2:
        expected = reference.paged_attention(*case.arguments[:3], options)
        actual = paged_attention(*case.arguments[:3], options)
        torch.testing.assert_close(actual, expected, atol=4e-6, rtol=1e-5)


@needs_native
def test_native_items_skip_what_the_window_hides() -> None:
    """One item of 256 tokens of KV, instead of all four."""
    plan = make_case(shape_of((8, 2, 64), torch.float32), [(1, 1000)]).plan
    counts = [plan.native(AttentionOptions(1.0, window)) for window in (None, 20)]
    whole, windowed = (found.buffers[0] for found in counts if found is not None)
    chunks = [int((items[:, 5] - items[:, 4]).sum()) for items in (whole, windowed)]
    assert chunks == [4 * 2, 1 * 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize(("soft_cap", "has_sinks"), [(2.0, False), (None, True), (5.0, True)])
@pytest.mark.parametrize("window", [None, 50])
def test_soft_caps_and_sinks(window: int | None, soft_cap: float | None, has_sinks: bool, dtype: torch.dtype) -> None:
    case = make_case(
        shape_of((9, 3, 64), dtype),
        [(1, 200), (40, 111), (1, 3)],
        window=window,
        soft_cap=soft_cap,
        has_sinks=has_sinks,
    )
    atol, rtol = tolerances(dtype)
    expected = reference.paged_attention(*case.arguments)
    torch.testing.assert_close(paged_attention(*case.arguments), expected, atol=atol, rtol=rtol)
    plain = reference.paged_attention(*case.arguments[:3], AttentionOptions(case.options.scale, window))
    assert not torch.allclose(plain, expected, atol=1e-2)


def test_reference_weights_by_the_definition() -> None:
    """Two keys with scores 1 and 3, capped at 2, and a sink of 0.5."""
    options = AttentionOptions(1.0, soft_cap=2.0, sinks=torch.tensor([0.5]))
    weights = reference.softmax(torch.tensor([[[1.0, 3.0]]]), torch.ones(1, 2, dtype=torch.bool), options)
    first, second = math.exp(2 * math.tanh(0.5)), math.exp(2 * math.tanh(1.5))
    total = first + second + math.exp(0.5)
    assert weights.flatten().tolist() == pytest.approx([first / total, second / total])
