"""Parts of blocks read by a GPU from the host's memory, over the link, in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_CHUNK = 4096
"""32-bit words that a program has in flight: 16 KiB, four accesses of 16 bytes for each of 256 threads."""
_NUM_PROGRAMS = 32
"""Half a MiB in flight, several times what a link of 64 GB/s and 2 us holds, on a quarter of an H100's processors: the
step that waits for these bytes computes beside them."""


def fetch_parts(cache: Tensor, block_ids: Tensor, addresses: Tensor, first_byte: int, num_bytes: int) -> None:
    """See `shoal.kernels.block_transfer.fetch_parts`."""
    _fetch_chunks[(_NUM_PROGRAMS,)](
        cache.view(-1).view(torch.int32),
        block_ids,
        addresses,
        block_ids.shape[0],
        cache.shape[1] // 16,
        first_byte // 16,
        num_bytes // 16,
        CHUNK=_CHUNK,
        num_warps=8,
    )


# Sizes differ from load to load, and nothing may be compiled while a request waits for it. They are counted in units of
# 16 bytes, so that the compiler sees that no access of 16 bytes is cut.
@triton.jit(do_not_specialize=["num_blocks", "block_quads", "first_quad", "num_quads"])
def _fetch_chunks(
    cache,
    block_ids,
    addresses,
    num_blocks,
    block_quads,
    first_quad,
    num_quads,
    CHUNK: tl.constexpr,
):
    num_words = num_quads * 4
    num_chunks = tl.cdiv(num_words, CHUNK)
    at = tl.arange(0, CHUNK)
    for item in range(tl.program_id(0), num_blocks * num_chunks, tl.num_programs(0)):
        entry = item // num_chunks
        start = (item % num_chunks) * CHUNK
        source = tl.multiple_of(tl.load(addresses + entry).to(tl.pointer_type(tl.int32)), 16)
        target = cache + tl.load(block_ids + entry).to(tl.int64) * block_quads * 4
        exists = start + at < num_words
        offset = first_quad * 4 + start + at
        tl.store(target + offset, tl.load(source + offset, mask=exists), mask=exists)
