"""Paged attention in float32 torch, one sequence after another: the definition that implementations are tested by."""

from __future__ import annotations

import torch
from torch import Tensor

from shoal.kernels.paged_attention.options import AttentionOptions
from shoal.kernels.paged_attention.plan import AttentionPlan


def paged_attention(qkv: Tensor, layer_cache: Tensor, plan: AttentionPlan, options: AttentionOptions) -> Tensor:
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
        scores = torch.einsum("qhd,khd->hqk", q, k) * options.scale
        keys = torch.arange(length, device=qkv.device)
        visible = visible_keys(options.sliding_window, keys[length - (end - begin) :], keys)
        weights = softmax(scores, visible, options)
        out[begin:end] = torch.einsum("hqk,khd->qhd", weights, v).to(out.dtype)
    return out.flatten(1)


def visible_keys(sliding_window: int | None, query_positions: Tensor, key_positions: Tensor) -> Tensor:
    """[..., queries, keys]: whether the query may look at the key (causal, within the sliding window)."""
    distance = query_positions[..., :, None] - key_positions[..., None, :]
    visible = distance >= 0
    if sliding_window is not None:
        visible = visible & (distance < sliding_window)
    return visible


def softmax(scores: Tensor, visible: Tensor, options: AttentionOptions) -> Tensor:
    """The weights of scaled scores [..., heads, queries, keys]; with sinks a row's sum is below 1."""
    if options.soft_cap is not None:
        scores = options.soft_cap * torch.tanh(scores / options.soft_cap)
    scores = scores.masked_fill(~visible, -torch.inf)
    if options.sinks is None:
        return scores.softmax(dim=-1)
    sinks = options.sinks[:, None, None].expand(*scores.shape[:-1], 1)
    return torch.cat((scores, sinks), dim=-1).softmax(dim=-1)[..., :-1]


def bytes_moved(plan: AttentionPlan, options: AttentionOptions) -> int:
    """q in, out, and once each k and v that some query of the sequence sees."""
    shape, layout = plan.shape, plan.shape.layout
    queries = 2 * plan.num_tokens * shape.num_heads
    seen = plan.seq_lens.long()
    if options.sliding_window is not None:
        seen = seen.minimum(plan.query_starts.diff().long() + options.sliding_window - 1)
    return (queries + 2 * int(seen.sum()) * layout.num_kv_heads) * layout.head_dim * layout.dtype.itemsize


def flops(plan: AttentionPlan, options: AttentionOptions) -> int:
    """Two products of 2 * head_dim per head and visible (query, key) pair; the softmax is left out."""
    pairs = 0
    for queries, length in zip(plan.query_starts.diff().tolist(), plan.seq_lens.tolist(), strict=True):
        seen = torch.arange(length - queries + 1, length + 1)
        pairs += int(seen.clamp(max=options.sliding_window or length).sum())
    return 4 * pairs * plan.shape.num_heads * plan.shape.layout.head_dim
