"""Copies of whole blocks: within the cache, and between it and a staging tensor."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from shoal.kernels.block_copy import block_copy
from shoal.kernels.block_transfer import gather_blocks, scatter_blocks
from shoal.kernels.kv_layout import KVLayout, RowsLayout

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAYOUTS = pytest.mark.parametrize(
    "layout",
    [
        KVLayout(2, 1, 16, 16, torch.float32),
        RowsLayout(3, 2, 96, 16, torch.bfloat16),
        RowsLayout(1, 1, 8, 2, torch.bfloat16),
    ],
    ids=["cpu", "gpu", "small"],
)


def random_cache(layout: KVLayout, num_blocks: int) -> torch.Tensor:
    """Random bytes, so that many are no numbers."""
    cache = layout.allocate(num_blocks)
    content = torch.randint(0, 256, (cache.nbytes,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    cache.view(-1).view(torch.uint8).copy_(content)
    return cache


def as_bytes(cache: torch.Tensor) -> torch.Tensor:
    return cache.view(cache.shape[0], -1).view(torch.uint8)


@LAYOUTS
def test_gather_takes_the_bytes_of_blocks_in_order(layout: KVLayout) -> None:
    cache = random_cache(layout, 9)
    staging = torch.zeros(4, layout.block_bytes, dtype=torch.uint8, device=cache.device)
    gather_blocks(cache, [7, 0, 3, 7], staging)
    assert torch.equal(staging, as_bytes(cache)[[7, 0, 3, 7]])


@LAYOUTS
def test_scatter_undoes_gather_and_touches_no_other_block(layout: KVLayout) -> None:
    cache = random_cache(layout, 9)
    before = as_bytes(cache).clone()
    staging = torch.empty(3, layout.block_bytes, dtype=torch.uint8, device=cache.device)
    gather_blocks(cache, [8, 2, 5], staging)
    scatter_blocks(cache, [1, 0, 6], staging)
    assert torch.equal(as_bytes(cache), before[[2, 8, 2, 3, 4, 5, 5, 7, 8]])


def test_entries_of_odd_sizes() -> None:
    cache = torch.arange(15, dtype=torch.uint8, device=DEVICE).view(5, 3)
    staging = torch.empty(2, 3, dtype=torch.uint8, device=DEVICE)
    gather_blocks(cache, [4, 1], staging)
    assert staging.tolist() == [[12, 13, 14], [3, 4, 5]]
    scatter_blocks(cache, [0, 2], staging)
    assert cache[:, 0].tolist() == [12, 3, 3, 9, 12]


def test_nothing_to_move() -> None:
    cache = random_cache(KVLayout(1, 1, 16, 16, torch.float32), 2)
    before = cache.clone()
    staging = torch.empty(0, cache[0].nbytes, dtype=torch.uint8)
    gather_blocks(cache, [], staging)
    scatter_blocks(cache, [], staging)
    assert torch.equal(as_bytes(cache), as_bytes(before))


@pytest.mark.parametrize("move", [gather_blocks, scatter_blocks])
def test_wrong_arguments_are_refused(move: Callable[[torch.Tensor, list[int], torch.Tensor], None]) -> None:
    cache = torch.zeros(4, 8)
    staging = torch.zeros(2, 32, dtype=torch.uint8)
    for ids in ([0, 4], [-1, 0]):
        with pytest.raises(ValueError, match=r"block_ids must lie in 0\.\.3"):
            move(cache, ids, staging)
    with pytest.raises(ValueError, match=r"staging must be contiguous uint8 \(1, 32\), not torch.uint8 \(2, 32\)"):
        move(cache, [0], staging)
    with pytest.raises(ValueError, match=r"staging must be contiguous uint8"):
        move(cache, [0, 1], torch.zeros(2, 32, dtype=torch.int8))
    with pytest.raises(ValueError, match=r"staging must be on cpu"):
        move(cache, [0, 1], staging.to("meta"))
    with pytest.raises(ValueError, match=r"cache must be contiguous"):
        move(cache.t(), [0, 1], staging)


def test_scatter_refuses_repeated_targets() -> None:
    with pytest.raises(ValueError, match=r"must be distinct"):
        scatter_blocks(torch.zeros(4, 8), [1, 1], torch.zeros(2, 32, dtype=torch.uint8))


@pytest.mark.parametrize("words", [4, 64, 4096, 5000])
def test_kernel_copies_any_number_of_chunks(words: int) -> None:
    """The GPU's kernel: interpreted on a CPU, compiled on a GPU."""
    triton_impl = pytest.importorskip("shoal.kernels.block_copy.triton_impl", reason="needs triton")
    generator = torch.Generator().manual_seed(0)
    cache = torch.randint(-(2**31), 2**31, (7, words), generator=generator).int().to(DEVICE)
    before = cache.clone()
    triton_impl.block_copy(cache, torch.tensor([[0, 3], [0, 4], [5, 1]], dtype=torch.int32))
    assert torch.equal(cache, before[[0, 5, 2, 0, 0, 5, 6]])
    ids = torch.tensor([6, 2, 5], dtype=torch.int32, device=DEVICE)
    staging = torch.zeros(3, words * 4, dtype=torch.uint8, device=DEVICE)
    triton_impl.copy_blocks(cache, staging, ids, None)
    assert torch.equal(staging.view(torch.int32), before[[6, 2, 5]])
    triton_impl.copy_blocks(staging, cache, None, ids - 2)
    assert torch.equal(cache, before[[2, 5, 2, 5, 6, 5, 6]])


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_block_copy_on_a_gpu() -> None:
    cache = random_cache(RowsLayout(3, 2, 96, 16, torch.bfloat16), 6)
    before = as_bytes(cache).clone()
    block_copy(cache, [(0, 3), (0, 4), (5, 1)])
    assert torch.equal(as_bytes(cache), before[[0, 5, 2, 0, 0, 5]])
