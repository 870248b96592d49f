"""Runs a loaded model outside of a runner."""

from __future__ import annotations

import torch
from torch import Tensor

from shoal.kernels.kv_layout import KVLayout
from shoal.kernels.paged_attention import AttentionShape, plan_attention
from shoal.model_worker.layers.batch import ForwardBatch
from shoal.model_worker.loader import LoadedModel


def forward_logits(loaded: LoadedModel, token_ids: Tensor, output_rows: Tensor | None = None) -> Tensor:
    """float32 [tokens, vocab_size] of one sequence, computed in one step. token_ids: [tokens].

    With output_rows [R], only theirs.
    """
    config, count = loaded.config, len(token_ids)
    layout = KVLayout(config.num_layers, config.num_kv_heads, config.head_dim, 16, loaded.dtype)
    shape = AttentionShape(layout, config.num_heads)
    num_blocks = -(-count // 16)
    positions = torch.arange(count, dtype=torch.int32)
    plan = plan_attention(
        shape,
        torch.tensor([0, count], dtype=torch.int32),
        torch.tensor([count], dtype=torch.int32),
        torch.arange(num_blocks, dtype=torch.int32)[None],
        torch.zeros(1, dtype=torch.int32),
    )
    with torch.inference_mode():
        batch = ForwardBatch(token_ids.int(), positions, positions, plan, output_rows)
        return loaded.model.compute_logits(loaded.model.forward(batch, layout.allocate(num_blocks)))
