"""fp8 blocks on a GPU. Codes become floats by their bits, so that GPUs without the format do it as well."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_CHUNK = 4096
"""Elements of a program: 16 codes, which are one access, for each of 256 threads."""


def decode_blocks(stored: Tensor, cache: Tensor, block_ids: Tensor, group_elements: int) -> None:
    """See `shoal.kernels.fp8_blocks.decode_blocks`; block_ids: int32 [n] on the device."""
    num_elements = cache.shape[1]
    _decode_chunk[(len(block_ids), triton.cdiv(num_elements, _CHUNK))](
        stored,
        cache,
        block_ids,
        num_elements,
        stored.shape[1],
        GROUP_ELEMENTS=group_elements,
        CHUNK=_CHUNK,
        num_warps=8,
    )


@triton.jit
def _decode_chunk(
    stored, cache, block_ids, num_elements, stored_bytes, GROUP_ELEMENTS: tl.constexpr, CHUNK: tl.constexpr
):
    block = tl.program_id(0)
    source = stored + block.to(tl.int64) * stored_bytes
    target = cache + tl.load(block_ids + block).to(tl.int64) * num_elements
    at = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    exists = at < num_elements
    code = tl.load(source + at, mask=exists, other=0).to(tl.int32)
    # A float has a bias of 127 where e4m3 has 7: with the same bits, numbers below the smallest normal one included,
    # it is 2**120 times too small.
    bits = ((code & 0x80) << 24) | ((code & 0x7F) << 20)
    value = bits.to(tl.float32, bitcast=True) * 1.329227995784916e36
    value = tl.where((code & 0x7F) == 0x7F, float("nan"), value)
    exponent = tl.load(source + num_elements + at // GROUP_ELEMENTS, mask=exists, other=0)
    exponent = exponent.to(tl.int8, bitcast=True).to(tl.int32)
    scale = ((exponent + 127) << 23).to(tl.float32, bitcast=True)
    tl.store(target + at, (value * scale).to(cache.dtype.element_ty), mask=exists)
