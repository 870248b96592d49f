"""Copies of whole blocks on a GPU: any number of them in one launch, 16 bytes to a thread's access."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from shoal.kernels.transfers import upload

_CHUNK = 4096
"""32-bit words of a program: 16 KiB, four accesses of 16 bytes for each of 256 threads."""


def block_copy(cache: Tensor, pairs: Tensor) -> None:
    """See `shoal.kernels.block_copy.block_copy`. pairs: [n, 2] int32 on the host; goes up without being waited for."""
    sources, targets = upload(pairs.t().numpy(), cache.device)
    copy_blocks(cache, cache, sources, targets)


def copy_blocks(source: Tensor, target: Tensor, source_ids: Tensor | None, target_ids: Tensor | None) -> None:
    """target[target_ids[i]] = source[source_ids[i]] for every i; None stands for 0, 1, 2, ...

    source, target: contiguous, of equal bytes to an entry, a multiple of 16; starting at multiples of 16. Ids: int32.
    """
    ids = source_ids if source_ids is not None else target_ids
    assert ids is not None
    quads = source[0].nbytes // 16
    grid = (ids.shape[0], triton.cdiv(4 * quads, _CHUNK))
    _copy_chunk[grid](
        source.view(torch.uint8).view(-1).view(torch.int32),
        target.view(torch.uint8).view(-1).view(torch.int32),
        source_ids,
        target_ids,
        quads,
        HAS_SOURCE_IDS=source_ids is not None,
        HAS_TARGET_IDS=target_ids is not None,
        CHUNK=_CHUNK,
        num_warps=8,
    )


def fits(tensor: Tensor) -> bool:
    """Whether `copy_blocks` takes the entries of a contiguous tensor."""
    return tensor[0].nbytes % 16 == 0 and tensor.data_ptr() % 16 == 0


# Nothing is compiled for a size. It is counted in units of 16 bytes, so that the compiler sees that none is cut.
@triton.jit(do_not_specialize=["quads"])
def _copy_chunk(
    source,
    target,
    source_ids,
    target_ids,
    quads,
    HAS_SOURCE_IDS: tl.constexpr,
    HAS_TARGET_IDS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    entry = tl.program_id(0)
    read_from, write_to = entry, entry
    if HAS_SOURCE_IDS:
        read_from = tl.load(source_ids + entry)
    if HAS_TARGET_IDS:
        write_to = tl.load(target_ids + entry)
    at = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    exists = at < quads * 4
    read_from = read_from.to(tl.int64) * quads * 4
    write_to = write_to.to(tl.int64) * quads * 4
    tl.store(target + write_to + at, tl.load(source + read_from + at, mask=exists), mask=exists)
