"""Causal attention over a paged KV cache, for any mix of decoding and chunked prefill in one call."""

from __future__ import annotations

from torch import Tensor

from shoal.kernels.native import library
from shoal.kernels.paged_attention import reference, torch_impl
from shoal.kernels.paged_attention.options import AttentionOptions
from shoal.kernels.paged_attention.plan import AttentionPlan, AttentionShape, plan_attention

__all__ = ["AttentionOptions", "AttentionPlan", "AttentionShape", "paged_attention", "plan_attention", "reference"]


def paged_attention(qkv: Tensor, layer_cache: Tensor, plan: AttentionPlan, options: AttentionOptions) -> Tensor:
    """Each query token attends to its sequence's tokens up to itself.

    qkv: [tokens, (num_heads + 2 * num_kv_heads) * head_dim] contiguous, q first; only q is read, k and v are in
    `layer_cache` already (cache[:, layer] of the plan's layout, see `kv_layout`). Returns
    [tokens, num_heads * head_dim]. Scores, softmax and sums are float32; cache slots that hold no token of the
    sequence are never used, whatever they contain. On a CPU a row's result does not depend on the batch around it.
    """
    shape = plan.shape
    layout = shape.layout
    width = (shape.num_heads + 2 * layout.num_kv_heads) * layout.head_dim
    if qkv.dim() != 2 or qkv.shape[1] != width or qkv.dtype != layout.dtype or not qkv.is_contiguous():
        raise ValueError(f"qkv must be contiguous {layout.dtype} [tokens, {width}], not {qkv.dtype} {tuple(qkv.shape)}")
    if options.sinks is not None and options.sinks.shape[0] != shape.num_heads:
        raise ValueError(f"sinks must have one logit for each of {shape.num_heads} heads, not {options.sinks.shape[0]}")
    if plan.launches:
        from shoal.kernels.paged_attention import triton_impl

        return triton_impl.paged_attention(qkv, layer_cache, plan, options)
    planned = plan.native(options)
    if planned is None:
        return torch_impl.paged_attention(qkv, layer_cache, plan, options)
    native = library()
    assert native is not None
    if layer_cache.stride(0) != planned.step.block_stride or layer_cache.dtype != layout.dtype:
        raise ValueError(f"layer_cache must be one layer of a cache with the layout {layout.name}")
    out = qkv.new_empty((qkv.shape[0], shape.num_heads * layout.head_dim))
    native.paged_attention(planned.address, qkv.data_ptr(), layer_cache.data_ptr(), out.data_ptr())
    return out
