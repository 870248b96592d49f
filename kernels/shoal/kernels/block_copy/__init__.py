"""Copies of whole KV blocks within a cache (copy-on-write)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shoal.kernels.block_copy import reference
from shoal.kernels.native import library

__all__ = ["block_copy"]


def block_copy(cache: Tensor, pairs: Sequence[tuple[int, int]]) -> None:
    """Copies cache[source] to cache[target] for every (source, target), as if all at once.

    cache: [num_blocks, ...] contiguous. Targets are distinct, and none is a source. Raises ValueError otherwise.
    On a GPU it is queued on the current stream.
    """
    if not pairs:
        return
    sources, targets = {source for source, _ in pairs}, [target for _, target in pairs]
    if len(set(targets)) != len(targets) or not sources.isdisjoint(targets):
        raise ValueError("block copies must have distinct targets, none of which is a source")
    if min(*sources, *targets) < 0 or max(*sources, *targets) >= cache.shape[0]:
        raise ValueError(f"block copies name blocks outside 0..{cache.shape[0] - 1}: {pairs}")
    index = torch.tensor(pairs, dtype=torch.int32)
    if cache.is_cuda:
        from shoal.kernels.block_copy import triton_impl

        if cache.is_contiguous() and triton_impl.fits(cache):
            triton_impl.block_copy(cache, index)
            return
    native = library()
    if native is None or cache.device.type != "cpu" or not cache.is_contiguous():
        reference.block_copy(cache, index)
        return
    block_bytes = cache.stride(0) * cache.element_size()
    native.block_copy(cache.data_ptr(), index.data_ptr(), len(pairs), block_bytes, torch.get_num_threads())
