"""Rotary embedding and cache write in float32 torch."""

from __future__ import annotations

import torch
from torch import Tensor

from shoal.kernels.kv_layout import KVLayout
from shoal.kernels.rope.norms import HeadNorms


def rotate(x: Tensor, cos_sin: Tensor) -> Tensor:
    """x: [tokens, heads, head_dim]; cos_sin: [tokens, rotary_dim]. Dims past rotary_dim are left alone."""
    half = cos_sin.shape[-1] // 2
    cosine, sine = cos_sin[:, None, :half], cos_sin[:, None, half:]
    wide = x.float()
    a, b, rest = wide[..., :half], wide[..., half : 2 * half], wide[..., 2 * half :]
    return torch.cat((a * cosine - b * sine, b * cosine + a * sine, rest), dim=-1).to(x.dtype)


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
    """See `shoal.kernels.rope.rope_and_cache`."""
    heads = qkv.view(qkv.shape[0], -1, layout.head_dim)
    rotated = heads[:, : num_heads + layout.num_kv_heads]
    wide = rotated.float()
    if norms is not None:
        weights = torch.cat((norms.q_weight.expand(num_heads, -1), norms.k_weight.expand(layout.num_kv_heads, -1)))
        wide = wide * (wide.square().mean(-1, keepdim=True) + norms.eps).rsqrt() * weights
    rotated.copy_(rotate(wide, cos_sin[positions.long()]))
    layout.write(
        layer_cache, slot_mapping, heads[:, num_heads : -layout.num_kv_heads], heads[:, -layout.num_kv_heads :]
    )


def bytes_moved(num_tokens: int, num_heads: int, layout: KVLayout) -> int:
    """q and k in and out, v in; k and v to the cache."""
    per_token = 2 * num_heads + 5 * layout.num_kv_heads
    return num_tokens * per_token * layout.head_dim * layout.dtype.itemsize


def flops(num_tokens: int, num_heads: int, layout: KVLayout, *, has_norms: bool = False) -> int:
    """Three per rotated element, four for its norm."""
    return (7 if has_norms else 3) * num_tokens * (num_heads + layout.num_kv_heads) * layout.head_dim
