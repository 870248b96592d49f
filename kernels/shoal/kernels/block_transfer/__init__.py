"""KV blocks gathered from the cache into one run of bytes and scattered back: what the KV store keeps and sends.

Between host and GPU one large copy is many times faster than one for each block, so blocks meet in a staging tensor on
the cache's device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shoal.kernels.block_transfer import reference
from shoal.kernels.transfers import upload

__all__ = ["gather_blocks", "reference", "scatter_blocks"]


def gather_blocks(cache: Tensor, block_ids: Sequence[int], staging: Tensor) -> None:
    """staging[i] = the bytes of cache[block_ids[i]]; ids may repeat.

    cache: [num_blocks, ...] contiguous; staging: uint8 [len(block_ids), bytes of a block] contiguous, on the cache's
    device. On a GPU it is queued on the current stream. Raises ValueError for anything else.
    """
    ids = _checked_ids(cache, block_ids, staging)
    if not len(ids):
        return
    if cache.is_cuda:
        from shoal.kernels.block_copy import triton_impl

        if triton_impl.fits(cache) and triton_impl.fits(staging):
            triton_impl.copy_blocks(cache, staging, upload(ids.numpy(), cache.device), None)
            return
    reference.gather_blocks(cache, ids, staging)


def scatter_blocks(cache: Tensor, block_ids: Sequence[int], staging: Tensor) -> None:
    """Writes staging[i] to cache[block_ids[i]]; ids are distinct. Arguments and errors as for `gather_blocks`."""
    ids = _checked_ids(cache, block_ids, staging)
    if len(set(block_ids)) != len(ids):
        raise ValueError("block_ids to scatter to must be distinct")
    if not len(ids):
        return
    if cache.is_cuda:
        from shoal.kernels.block_copy import triton_impl

        if triton_impl.fits(cache) and triton_impl.fits(staging):
            triton_impl.copy_blocks(staging, cache, None, upload(ids.numpy(), cache.device))
            return
    reference.scatter_blocks(cache, ids, staging)


def _checked_ids(cache: Tensor, block_ids: Sequence[int], staging: Tensor) -> Tensor:
    if cache.dim() < 2 or not cache.is_contiguous():
        raise ValueError(f"cache must be contiguous [num_blocks, ...], not {tuple(cache.shape)}")
    expected = (len(block_ids), cache.stride(0) * cache.element_size())
    if staging.shape != expected or staging.dtype != torch.uint8 or not staging.is_contiguous():
        raise ValueError(f"staging must be contiguous uint8 {expected}, not {staging.dtype} {tuple(staging.shape)}")
    if staging.device != cache.device:
        raise ValueError(f"staging must be on {cache.device} like the cache, not on {staging.device}")
    if len(block_ids) and (min(block_ids) < 0 or max(block_ids) >= cache.shape[0]):
        raise ValueError(f"block_ids must lie in 0..{cache.shape[0] - 1}: {list(block_ids)}")
    return torch.tensor(block_ids, dtype=torch.int32)
