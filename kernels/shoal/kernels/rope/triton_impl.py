"""Rotary embedding and cache write on a GPU, one program a token."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from shoal.kernels.kv_layout import KVLayout
from shoal.kernels.rope.norms import HeadNorms
from shoal.kernels.triton_overlap import await_previous, launch_options


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
    """See `shoal.kernels.rope.rope_and_cache`. layer_cache: of a `RowsLayout`; a negative slot stores nothing."""
    if not qkv.shape[0]:
        return
    rotated_padded = triton.next_power_of_2(num_heads + layout.num_kv_heads)
    dim, half_padded = triton.next_power_of_2(layout.head_dim), triton.next_power_of_2(cos_sin.shape[1] // 2)
    # What is not rotated is held in as many places as a whole head.
    held_dims = 2 * half_padded + (2 * dim if cos_sin.shape[1] < layout.head_dim else 0)
    _rotate_token[(qkv.shape[0],)](
        qkv,
        cos_sin,
        positions,
        slot_mapping,
        layer_cache,
        None if norms is None else norms.q_weight,
        None if norms is None else norms.k_weight,
        0.0 if norms is None else norms.eps,
        qkv.stride(0),
        layer_cache.stride(0),
        layer_cache.stride(1),
        layer_cache.stride(2),
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=layout.num_kv_heads,
        ROTATED_PADDED=rotated_padded,
        KV_PADDED=triton.next_power_of_2(layout.num_kv_heads),
        HEAD_DIM=layout.head_dim,
        DIM=dim,
        ROTARY_DIM=cos_sin.shape[1],
        HALF=half_padded,
        BLOCK_SIZE=layout.block_size,
        HAS_NORMS=norms is not None,
        # A thread holds a share of every head's dims in registers: 64 of them, or the compiler spills.
        num_warps=min(16, max(4, triton.next_power_of_2(rotated_padded * held_dims // 2048))),
        **launch_options(qkv.device),
    )


@triton.jit
def _rotate_token(
    qkv_ptr,
    cos_sin_ptr,
    positions,
    slot_mapping,
    cache_ptr,
    q_norm,
    k_norm,
    eps,
    qkv_stride,
    block_stride,
    v_offset,
    head_stride,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    ROTATED_PADDED: tl.constexpr,
    KV_PADDED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HAS_NORMS: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(positions + token).to(tl.int64)
    slot = tl.load(slot_mapping + token).to(tl.int64)
    qkv = qkv_ptr + token * qkv_stride
    in_cache = cache_ptr + slot // BLOCK_SIZE * block_stride + slot % BLOCK_SIZE * HEAD_DIM

    half = tl.arange(0, HALF)
    has_angle = half < ROTARY_DIM // 2
    cosine = tl.load(cos_sin_ptr + position * ROTARY_DIM + half, mask=has_angle, other=1.0)[None, :]
    sine = tl.load(cos_sin_ptr + position * ROTARY_DIM + ROTARY_DIM // 2 + half, mask=has_angle, other=0.0)[None, :]
    head = tl.arange(0, ROTATED_PADDED)
    exists = (head < NUM_HEADS + NUM_KV_HEADS)[:, None] & has_angle[None, :]
    at = head[:, None] * HEAD_DIM + half[None, :]
    await_previous(OVERLAPS)
    low = tl.load(qkv + at, mask=exists, other=0.0).to(tl.float32)
    high = tl.load(qkv + at + ROTARY_DIM // 2, mask=exists, other=0.0).to(tl.float32)
    dim = tl.arange(0, DIM)
    if ROTARY_DIM < HEAD_DIM:  # what is not rotated: to be normalised, and to be stored with the keys
        is_rest = (head < NUM_HEADS + NUM_KV_HEADS)[:, None] & ((dim >= ROTARY_DIM) & (dim < HEAD_DIM))[None, :]
        rest_at = head[:, None] * HEAD_DIM + dim[None, :]
        rest = tl.load(qkv + rest_at, mask=is_rest, other=0.0).to(tl.float32)
    if HAS_NORMS:
        squares = tl.sum(low * low, 1) + tl.sum(high * high, 1)
        if ROTARY_DIM < HEAD_DIM:
            squares += tl.sum(rest * rest, 1)
        scale = tl.rsqrt(squares / HEAD_DIM + eps)[:, None]
        is_query = (head < NUM_HEADS)[:, None]
        low *= scale * _norm_weights(q_norm, k_norm, is_query, half, has_angle)
        high *= scale * _norm_weights(q_norm, k_norm, is_query, half + ROTARY_DIM // 2, has_angle)
        if ROTARY_DIM < HEAD_DIM:
            rest *= scale * _norm_weights(q_norm, k_norm, is_query, dim, dim < HEAD_DIM)
            tl.store(qkv + rest_at, rest.to(qkv_ptr.dtype.element_ty), mask=is_rest)
    rotated_low = (low * cosine - high * sine).to(qkv_ptr.dtype.element_ty)
    rotated_high = (high * cosine + low * sine).to(qkv_ptr.dtype.element_ty)
    tl.store(qkv + at, rotated_low, mask=exists)
    tl.store(qkv + at + ROTARY_DIM // 2, rotated_high, mask=exists)

    if slot >= 0:
        is_key = exists & (head >= NUM_HEADS)[:, None]
        key_at = (head - NUM_HEADS)[:, None] * head_stride + half[None, :]
        tl.store(in_cache + key_at, rotated_low, mask=is_key)
        tl.store(in_cache + key_at + ROTARY_DIM // 2, rotated_high, mask=is_key)

        kv_head = tl.arange(0, KV_PADDED)
        is_value = (kv_head < NUM_KV_HEADS)[:, None] & (dim < HEAD_DIM)[None, :]
        value_at = (NUM_HEADS + NUM_KV_HEADS + kv_head)[:, None] * HEAD_DIM + dim[None, :]
        value = tl.load(qkv + value_at, mask=is_value, other=0.0)
        tl.store(in_cache + v_offset + kv_head[:, None] * head_stride + dim[None, :], value, mask=is_value)
        if ROTARY_DIM < HEAD_DIM:
            rest_key_at = (head - NUM_HEADS)[:, None] * head_stride + dim[None, :]
            is_rest_key = is_rest & (head >= NUM_HEADS)[:, None]
            tl.store(in_cache + rest_key_at, rest.to(qkv_ptr.dtype.element_ty), mask=is_rest_key)


@triton.jit
def _norm_weights(q_norm, k_norm, is_query, dim, exists):
    """[heads, dims]: each head's weights."""
    q_weight = tl.load(q_norm + dim, mask=exists, other=0.0)
    k_weight = tl.load(k_norm + dim, mask=exists, other=0.0)
    return tl.where(is_query, q_weight[None, :], k_weight[None, :])
