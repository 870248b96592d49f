"""Rotary position embedding (Su et al. 2021) of q and k, fused with the write of k and v to the paged cache.

Models that normalise query and key heads first (Henry et al. 2020) have that in the same pass.
"""

from __future__ import annotations

from torch import Tensor, get_num_threads

from shoal.kernels.kv_layout import KVLayout
from shoal.kernels.native import DTYPE_CODES, library
from shoal.kernels.rope import reference
from shoal.kernels.rope.norms import HeadNorms

__all__ = ["HeadNorms", "rope_and_cache"]

_MAX_NORM_DIM = 256
"""Head dim up to which the native norm has room (MAX_DIM of attention.h)."""


def rope_and_cache(
    qkv: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    slot_mapping: Tensor,
    layer_cache: Tensor,
    layout: KVLayout,
    num_heads: int,
    norms: HeadNorms | None = None,
) -> None:
    """Normalises (if asked) and rotates q and k in place and stores k and v at their slots. Rounds once.

    qkv: [tokens, (num_heads + 2 * num_kv_heads) * head_dim] contiguous, q first, of the layout's dtype.
    cos_sin: [max_position, rotary_dim] float32: the cosines of the rotary_dim / 2 angles, then the sines. Pairs are
    (i, i + rotary_dim / 2), as in GPT-NeoX. positions, slot_mapping: [tokens] int32; a slot is
    block id * block_size + offset. layer_cache: one layer of the cache (cache[:, layer]).
    norms: on the device of qkv.
    """
    width = (num_heads + 2 * layout.num_kv_heads) * layout.head_dim
    if qkv.dim() != 2 or qkv.shape[1] != width or qkv.dtype != layout.dtype or not qkv.is_contiguous():
        raise ValueError(f"qkv must be contiguous {layout.dtype} [tokens, {width}], not {qkv.dtype} {tuple(qkv.shape)}")
    if positions.shape[0] != qkv.shape[0] or slot_mapping.shape[0] != qkv.shape[0]:
        raise ValueError("positions and slot_mapping must have one entry per token")
    if norms is not None and norms.q_weight.shape[0] != layout.head_dim:
        raise ValueError(f"head norms must have {layout.head_dim} weights, not {norms.q_weight.shape[0]}")
    if qkv.is_cuda:
        from shoal.kernels.rope import triton_impl

        triton_impl.rope_and_cache(qkv, cos_sin, positions, slot_mapping, layer_cache, layout, num_heads, norms)
        return
    native = library()
    if native is None or (norms is not None and layout.head_dim > _MAX_NORM_DIM):
        reference.rope_and_cache(qkv, cos_sin, positions, slot_mapping, layer_cache, layout, num_heads, norms)
        return
    block_stride, v_offset, head_stride, _ = layer_cache.stride()
    native.rope_and_cache(
        qkv.data_ptr(),
        cos_sin.data_ptr(),
        positions.data_ptr(),
        slot_mapping.data_ptr(),
        layer_cache.data_ptr(),
        qkv.shape[0],
        block_stride,
        v_offset,
        head_stride,
        width,
        layout.block_size,
        num_heads,
        layout.num_kv_heads,
        layout.head_dim,
        cos_sin.shape[1],
        None if norms is None else norms.q_weight.data_ptr(),
        None if norms is None else norms.k_weight.data_ptr(),
        0.0 if norms is None else norms.eps,
        DTYPE_CODES[qkv.dtype],
        get_num_threads(),
    )
