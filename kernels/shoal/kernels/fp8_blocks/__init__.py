"""KV blocks restored from the form that the codec fp8 gives them (`shoal.kv_codec.fp8`), straight into the cache.

In torch that is six passes over memory with four times a block's bytes in between; on a GPU it is one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shoal.kernels.fp8_blocks import reference
from shoal.kernels.transfers import upload

__all__ = ["decode_blocks", "reference"]


def decode_blocks(stored: Tensor, cache: Tensor, block_ids: Sequence[int], group_elements: int) -> None:
    """cache[block_ids[i]] = what stored[i] stands for.

    stored: uint8 [n, num_groups * (group_elements + 1)] contiguous, codes of all groups and then an exponent each, from
    -100 to 100; others give any values. cache: bfloat16 or float32 [num_blocks, num_groups * group_elements],
    contiguous, on the same device. block_ids: distinct, within the cache. On a GPU it is queued on the current stream.
    Raises ValueError for other shapes.
    """
    num_groups, rest = divmod(cache.shape[1], group_elements)
    if rest or stored.shape != (len(block_ids), cache.shape[1] + num_groups) or stored.dtype != torch.uint8:
        raise ValueError(
            f"{len(block_ids)} blocks of {cache.shape[1]} elements in groups of {group_elements} are not what "
            f"{stored.dtype} {tuple(stored.shape)} stands for"
        )
    if not (stored.is_contiguous() and cache.is_contiguous()):
        raise ValueError("stored and cache must be contiguous")
    if not len(block_ids):
        return
    ids = torch.tensor(block_ids, dtype=torch.int32)
    if cache.is_cuda:
        from shoal.kernels.fp8_blocks import triton_impl

        triton_impl.decode_blocks(stored, cache, upload(ids.numpy(), cache.device), group_elements)
    else:
        reference.decode_blocks(stored, cache, ids, group_elements)
