from __future__ import annotations

import pytest
import torch

from shoal.kernels.decoder import Decoder, DecoderLayer
from shoal.kernels.kv_layout import KVLayout
from shoal.kernels.linear import pack
from shoal.kernels.native import library
from shoal.kernels.paged_attention import AttentionOptions, AttentionShape
from support.attention_cases import make_case

PLAIN = AttentionOptions(0.25)


@pytest.mark.skipif(library() is None, reason="no C compiler here")
@pytest.mark.parametrize(
    ("norm_dtype", "options", "accepted"),
    [
        (torch.bfloat16, PLAIN, True),
        (torch.bfloat16, AttentionOptions(0.25, 8), True),
        (torch.float32, PLAIN, False),
        (torch.bfloat16, AttentionOptions(0.25, soft_cap=5.0), False),
        (torch.bfloat16, AttentionOptions(0.25, sinks=torch.zeros(2)), False),
    ],
)
def test_only_layers_whose_operations_are_all_native_are_accepted(
    norm_dtype: torch.dtype, options: AttentionOptions, accepted: bool
) -> None:
    norm = torch.ones(32, dtype=norm_dtype)
    square, qkv, wide = (torch.zeros(rows, 32, dtype=torch.bfloat16) for rows in (32, 64, 128))
    down = torch.zeros(32, 64, dtype=torch.bfloat16)
    layer = DecoderLayer(norm, norm, pack(qkv), pack(square), pack(wide), pack(down))
    decoder = Decoder([layer], norm, torch.zeros(8, 16), 1e-5, options)
    plan = make_case(AttentionShape(KVLayout(2, 1, 16, 16, torch.bfloat16), 2), [(1, 20)]).plan
    assert decoder.accepts(plan, 1) == accepted
