"""Paged attention in batched torch, for machines without a C compiler and for what the native kernel leaves out.

Sequences with the same number of query tokens are computed together, padded to the longest: all decoding sequences are
one batch, and a step has few prefill chunks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from shoal.kernels.paged_attention.options import AttentionOptions
from shoal.kernels.paged_attention.plan import AttentionPlan
from shoal.kernels.paged_attention.reference import softmax, visible_keys


def paged_attention(qkv: Tensor, layer_cache: Tensor, plan: AttentionPlan, options: AttentionOptions) -> Tensor:
    """See `shoal.kernels.paged_attention.paged_attention`."""
    shape = plan.shape
    q = qkv.view(qkv.shape[0], -1, shape.layout.head_dim)[:, : shape.num_heads]
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    num_queries = plan.query_starts.diff()
    for count in sorted(set(num_queries.tolist())):
        members = (num_queries == count).nonzero()[:, 0]
        tokens = plan.query_starts[members, None].long() + torch.arange(count)
        out[tokens] = _attend_equal(q[tokens], layer_cache, plan, options, members)
    return out.flatten(1)


def _attend_equal(
    q: Tensor, layer_cache: Tensor, plan: AttentionPlan, options: AttentionOptions, members: Tensor
) -> Tensor:
    """q: [n, queries, heads, dim] of the sequences `members`; returns the same shape."""
    shape, layout = plan.shape, plan.shape.layout
    lengths = plan.seq_lens[members].long()
    num_blocks = -(-int(lengths.max()) // layout.block_size)
    blocks = plan.block_tables[plan.table_rows[members].long(), :num_blocks].clamp(0, layer_cache.shape[0] - 1)
    k, v = layout.read(layer_cache, blocks)
    keys = torch.arange(k.shape[1])
    exists = keys < lengths[:, None]
    # A slot that holds no token may hold NaN, and 0 * NaN would reach the sum.
    k, v = (x.masked_fill(~exists[..., None, None], 0.0).transpose(1, 2) for x in (k, v))
    positions = lengths[:, None] - q.shape[1] + torch.arange(q.shape[1])
    mask = visible_keys(options.sliding_window, positions, keys)[:, None]
    is_grouped = shape.num_heads != layout.num_kv_heads
    if options.is_plain:
        attended = scaled_dot_product_attention(
            q.transpose(1, 2), k, v, attn_mask=mask, scale=options.scale, enable_gqa=is_grouped
        )
        return attended.transpose(1, 2)
    group = shape.num_heads // layout.num_kv_heads
    k, v = (x.float().repeat_interleave(group, dim=1) for x in (k, v))
    scores = q.transpose(1, 2).float() @ k.transpose(2, 3) * options.scale
    return (softmax(scores, mask, options) @ v).to(q.dtype).transpose(1, 2)
