"""Block copies in torch."""

from __future__ import annotations

from torch import Tensor


def block_copy(cache: Tensor, pairs: Tensor) -> None:
    """Copies cache[pairs[i, 0]] to cache[pairs[i, 1]]; pairs: [n, 2] integers."""
    cache[pairs[:, 1].long()] = cache[pairs[:, 0].long()]


def bytes_moved(num_pairs: int, block_bytes: int) -> int:
    """Each block is read and written."""
    return 2 * num_pairs * block_bytes
