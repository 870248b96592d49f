"""Block copies in torch."""

from __future__ import annotations

import torch
from torch import Tensor


def block_copy(cache: Tensor, pairs: Tensor) -> None:
    """Copies cache[pairs[i, 0]] to cache[pairs[i, 1]]; pairs: [n, 2] integers."""
    index = pairs.to(cache.device, torch.int64)
    cache[index[:, 1]] = cache[index[:, 0]]


def bytes_moved(num_pairs: int, block_bytes: int) -> int:
    """Each block is read and written."""
    return 2 * num_pairs * block_bytes
