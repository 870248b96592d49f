"""Block transfers in torch: the definition, and the implementation on a CPU, where they are plain copies of memory."""

from __future__ import annotations

import torch
from torch import Tensor


def gather_blocks(cache: Tensor, block_ids: Tensor, staging: Tensor) -> None:
    """See `shoal.kernels.block_transfer.gather_blocks`; block_ids: [n] integers."""
    torch.index_select(_words(cache), 0, block_ids.to(cache.device, torch.int64), out=_words(staging))


def scatter_blocks(cache: Tensor, block_ids: Tensor, staging: Tensor) -> None:
    """See `shoal.kernels.block_transfer.scatter_blocks`; block_ids: [n] integers."""
    _words(cache).index_copy_(0, block_ids.to(cache.device, torch.int64), _words(staging))


def bytes_moved(num_blocks: int, block_bytes: int) -> int:
    """Each block is read and written."""
    return 2 * num_blocks * block_bytes


def _words(entries: Tensor) -> Tensor:
    """[n, words of an entry], sharing memory: torch moves eight bytes as fast as one."""
    flat = entries.view(entries.shape[0], -1)
    width = flat.shape[1] * flat.element_size()
    is_wide = width % 8 == 0 and flat.data_ptr() % 8 == 0
    return flat.view(torch.uint8).view(torch.int64) if is_wide else flat.view(torch.uint8)
