"""The Hopper kernel for tall tiles against the reference. Unused cache slots hold NaN."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shoal.kernels.kv_layout import RowsLayout
from shoal.kernels.paged_attention import AttentionShape, gluon_tall, reference
from shoal.kernels.paged_attention.gpu_plan import PiecesLaunch, describe_pages, plan_mixed
from support.attention_cases import make_case

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs a Hopper GPU"
    ),
]

STEPS = {
    "one prompt": [(512, 512)],
    "odd lengths": [(333, 333), (65, 1), (129, 129)],
    "split over cached pages": [(64, 4160)],
    "chunks beside decoding": [(200, 1000), (1, 77), (40, 640), (1, 3000), (96, 96)],
    "a tile more than a page": [(33, 33), (65, 65)],
}


@pytest.mark.parametrize("heads", [(32, 8, 128), (16, 8, 128), (9, 3, 64), (8, 8, 64), (14, 2, 128)], ids=str)
@pytest.mark.parametrize("step", STEPS)
def test_matches_the_reference(step: str, heads: tuple[int, int, int]) -> None:
    num_heads, num_kv_heads, head_dim = heads
    shape = AttentionShape(RowsLayout(2, num_kv_heads, head_dim, 64, torch.bfloat16), num_heads)
    case = make_case(shape, [(new, max(new, total)) for new, total in STEPS[step]])
    plan = case.plan
    starts, lengths = (
        np.ascontiguousarray(each.cpu().numpy(), np.int32) for each in (plan.query_starts, plan.seq_lens)
    )
    on_gpu = plan_mixed(shape, describe_pages(case.cache, shape), starts, lengths, plan.block_tables, plan.table_rows)
    tall = [each for each in on_gpu.launches if isinstance(each, PiecesLaunch) and each.tiling.rows == 128]
    assert tall
    assert all(gluon_tall.supports(case.qkv, on_gpu, case.options, each) for each in tall)
    from shoal.kernels.paged_attention import triton_impl

    actual = triton_impl.paged_attention(case.qkv, case.layer_cache, on_gpu, case.options)
    expected = reference.paged_attention(*case.arguments)
    torch.testing.assert_close(actual, expected, atol=2**-7, rtol=2**-7)
