"""The codec fp8 on a device: the same bytes as `shoal.kv_codec.Fp8`, made where the cache is.

So half of the bytes cross between host and GPU. What cannot be encoded is marked, for nothing on a device raises; the
host looks for marks before it stores or loads anything.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from shoal.kernels.block_transfer import gather_blocks
from shoal.kernels.fp8_blocks import decode_blocks
from shoal.kv_codec import BlockShape, Fp8
from shoal.kv_codec.fp8 import MAX_EXPONENT, MIN_EXPONENT

_UNFIT: Final = 127
"""Exponent of a group that has a value which is not finite, or is too large."""


class DeviceFp8:
    """Blocks of one shape, many at a time, on the device's current stream."""

    def __init__(self, shape: BlockShape) -> None:
        self.shape = shape
        self.stored_bytes = Fp8(shape).stored_bytes
        self._num_codes = shape.num_groups * shape.group_elements
        self._dtype = torch.bfloat16 if shape.dtype == "bfloat16" else torch.float32

    def read(self, cache: Tensor, block_ids: Sequence[int]) -> Tensor:
        """The stored form of some blocks, uint8 [n, stored_bytes]. cache: uint8 [num_blocks, payload_bytes]."""
        raw = cache.new_empty((len(block_ids), self.shape.payload_bytes))
        gather_blocks(cache, block_ids, raw)
        return self.encode(raw)

    def write(self, cache: Tensor, block_ids: Sequence[int], stored: Tensor) -> None:
        """The reverse, of blocks that `is_valid_at` has seen; of others any values."""
        decode_blocks(stored, cache.view(self._dtype), block_ids, self.shape.group_elements)

    def encode(self, raw: Tensor) -> Tensor:
        """uint8 [n, payload_bytes] to uint8 [n, stored_bytes]."""
        num, groups = len(raw), self.shape.num_groups
        values = raw.view(self._dtype).view(num, groups, -1).float()
        fractions, exponents = torch.frexp(values.abs().amax(-1))
        exponents = exponents - 9 + (fractions > 0.875)  # the largest comes to lie within (224, 448]
        is_fit = fractions.isfinite() & (exponents <= MAX_EXPONENT)
        exponents = torch.where(fractions == 0, MIN_EXPONENT, exponents.clamp_min(MIN_EXPONENT))
        values = values * torch.exp2(-exponents.float())[..., None]  # float32's are the caller's own
        stored = raw.new_empty((num, self.stored_bytes))
        stored[:, : self._num_codes] = values.to(torch.float8_e4m3fn).view(torch.uint8).view(num, -1)
        stored[:, self._num_codes :] = torch.where(is_fit, exponents, _UNFIT).to(torch.int8).view(torch.uint8)
        return stored

    def is_valid_at(self, address: int) -> bool:
        """Whether a stored block in the host's memory is what `encode` makes of values that it can hold."""
        memory = (ctypes.c_int8 * self.shape.num_groups).from_address(address + self._num_codes)
        exponents = np.ctypeslib.as_array(memory)
        return bool(exponents.min() >= MIN_EXPONENT and exponents.max() <= MAX_EXPONENT)
