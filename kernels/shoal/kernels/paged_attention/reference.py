"""Paged attention in float32 torch, one sequence after another: the definition that implementations are tested by."""

from __future__ import annotations

import torch
from torch import Tensor

from shoal.kernels.paged_attention.plan import AttentionPlan, AttentionShape


def paged_attention(qkv: Tensor, layer_cache: Tensor, plan: AttentionPlan) -> Tensor:
    """See `shoal.kernels.paged_attention.paged_attention`."""
    shape, layout = plan.shape, plan.shape.layout
    group = shape.num_heads // layout.num_kv_heads
    out = qkv.new_zeros((qkv.shape[0], shape.num_heads, layout.head_dim))
    starts, lengths, rows = plan.query_starts.tolist(), plan.seq_lens.tolist(), plan.table_rows.tolist()
    for s, (length, row) in enumerate(zip(lengths, rows, strict=True)):
        begin, end = starts[s], starts[s + 1]
        num_blocks = -(-length // layout.block_size)
        k, v = layout.read(layer_cache, plan.block_tables[row, :num_blocks])
        k = k[:length].float().repeat_interleave(group, dim=1)
        v = v[:length].float().repeat_interleave(group, dim=1)
        q = qkv.view(qkv.shape[0], -1, layout.head_dim)[begin:end, : shape.num_heads].float()
        scores = torch.einsum("qhd,khd->hqk", q, k) * shape.scale
        keys = torch.arange(length, device=qkv.device)
        visible = visible_keys(shape, keys[length - (end - begin) :], keys)
        weights = scores.masked_fill(~visible, -torch.inf).softmax(dim=-1)
        out[begin:end] = torch.einsum("hqk,khd->qhd", weights, v).to(out.dtype)
    return out.flatten(1)


def visible_keys(shape: AttentionShape, query_positions: Tensor, key_positions: Tensor) -> Tensor:
    """[..., queries, keys]: whether the query may look at the key (causal, within the sliding window)."""
    distance = query_positions[..., :, None] - key_positions[..., None, :]
    visible = distance >= 0
    if shape.sliding_window is not None:
        visible = visible & (distance < shape.sliding_window)
    return visible


def bytes_moved(plan: AttentionPlan) -> int:
    """q in, out, and each sequence's k and v once."""
    shape, layout = plan.shape, plan.shape.layout
    queries = 2 * plan.num_tokens * shape.num_heads
    return (queries + 2 * int(plan.seq_lens.sum()) * layout.num_kv_heads) * layout.head_dim * layout.dtype.itemsize


def flops(plan: AttentionPlan) -> int:
    """Two products of 2 * head_dim per head and visible (query, key) pair; the softmax is left out."""
    queries = plan.query_starts.diff().long()
    lengths = plan.seq_lens.long()
    first = lengths - queries + 1
    pairs = int(((first + lengths) * queries // 2).sum())
    return 4 * pairs * plan.shape.num_heads * plan.shape.layout.head_dim
