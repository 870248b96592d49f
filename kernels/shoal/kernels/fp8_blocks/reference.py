"""The same in torch: the definition, and the implementation on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor


def decode_blocks(stored: Tensor, cache: Tensor, block_ids: Tensor, group_elements: int) -> None:
    """See `shoal.kernels.fp8_blocks.decode_blocks`; block_ids: [n] integers."""
    num_codes = cache.shape[1]
    codes = stored[:, :num_codes].contiguous().view(torch.float8_e4m3fn).view(len(stored), -1, group_elements)
    exponents = stored[:, num_codes:].contiguous().view(torch.int8)
    values = codes.float() * torch.exp2(exponents.float())[..., None]
    cache[block_ids.to(cache.device, torch.int64)] = values.to(cache.dtype).view(len(stored), -1)


def bytes_moved(num_blocks: int, num_elements: int, num_groups: int, element_bytes: int) -> int:
    """Each code and exponent is read, each element written."""
    return num_blocks * (num_elements + num_groups + num_elements * element_bytes)
