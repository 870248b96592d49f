"""Blocks in fp8 on their way to a store and back: the same bytes from every device, and nothing else accepted.

On a machine with a GPU it is one of the devices.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from shoal.kv_client import KvClient
from shoal.kv_client.lease import Reading
from shoal.kv_client.writes import PRESENT
from shoal.kv_codec import BlockShape, Fp8
from shoal.kv_store.store import Store
from shoal.model_worker.kv_offload.memory import KvMemory
from shoal.model_worker.kv_offload.sessions import fingerprint_of
from shoal.model_worker.runner.cpu_kv_memory import CpuKvMemory
from shoal.model_worker.runner.cuda_kv_memory import CudaKvMemory
from shoal.model_worker.runner.device_fp8 import DeviceFp8
from support.kv_store_running import ROOT, RunningStore, key, running_store

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NUM_GROUPS, GROUP = 12, 64
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class Cache(NamedTuple):
    """Blocks where a memory has them."""

    blocks: Tensor
    memory: KvMemory


MakeCache = Callable[[Tensor, BlockShape], Cache]


def on_cpu(blocks: Tensor, shape: BlockShape) -> Cache:
    return Cache(blocks, CpuKvMemory(blocks, Fp8(shape)))


def on_device(blocks: Tensor, shape: BlockShape) -> Cache:
    blocks = blocks.to(DEVICE)
    return Cache(blocks, CudaKvMemory(blocks, DeviceFp8(shape), bytes_at_once=3 * shape.payload_bytes))


def unreachable(blocks: Tensor, shape: BlockShape) -> Cache:
    blocks = blocks.to(DEVICE)
    return Cache(blocks, CudaKvMemory(blocks, DeviceFp8(shape), direct=False))


@pytest.fixture(params=["bfloat16", "float32"])
def shape(request: pytest.FixtureRequest) -> BlockShape:
    return BlockShape(NUM_GROUPS, GROUP, request.param)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningStore]:
    with running_store(tmp_path) as started:
        yield started


def make_blocks(shape: BlockShape, num_blocks: int = 10) -> Tensor:
    """Values of all sizes: groups of zeros, of tiny and of large ones."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn((num_blocks, NUM_GROUPS, GROUP), generator=generator)
    exponents = torch.randint(-60, 60, (num_blocks, NUM_GROUPS, 1), generator=generator)
    values = torch.ldexp(values, exponents)
    values[0, 0] = 0.0
    values[0, 1] *= 2.0**-126
    values[0, 2, 0], values[0, 3, 0] = 1.75, -0.0
    return values.to(DTYPES[shape.dtype]).contiguous()


def coded(values: Tensor, shape: BlockShape) -> bytes:
    stored = bytearray(shape.num_groups * (shape.group_elements + 1))
    Fp8(shape).encode(values.contiguous().view(-1).view(torch.uint8).numpy().tobytes(), stored)
    return bytes(stored)


def restored(values: Tensor, shape: BlockShape) -> Tensor:
    payload = bytearray(shape.payload_bytes)
    Fp8(shape).decode(coded(values, shape), payload)
    return torch.from_numpy(np.frombuffer(payload, np.uint8)).view(DTYPES[shape.dtype]).view(NUM_GROUPS, GROUP)


def test_a_device_makes_the_same_bytes_as_the_host(shape: BlockShape) -> None:
    blocks, codec = make_blocks(shape), DeviceFp8(shape)
    raw = blocks.view(len(blocks), -1).view(torch.uint8).to(DEVICE)
    stored = codec.encode(raw).cpu()
    for block, values in zip(stored, blocks, strict=True):
        assert block.numpy().tobytes() == coded(values, shape)
        assert codec.is_valid_at(block.data_ptr())
    found = torch.zeros_like(raw)
    codec.write(found, range(len(blocks)), stored.to(DEVICE))
    for block, values in zip(found.cpu().view(DTYPES[shape.dtype]).view_as(blocks), blocks, strict=True):
        assert torch.equal(block, restored(values, shape))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -(2.0**120)])
def test_what_cannot_be_encoded_is_marked(shape: BlockShape, bad: float) -> None:
    blocks, codec = make_blocks(shape, 2), DeviceFp8(shape)
    blocks[1, 5, 7] = bad
    stored = codec.encode(blocks.view(2, -1).view(torch.uint8).to(DEVICE)).cpu()
    assert [codec.is_valid_at(block.data_ptr()) for block in stored] == [True, False]


def put(client: KvClient, memory: KvMemory, keys: Sequence[bytes], block_ids: Sequence[int]) -> int:
    """How many blocks of a cache were stored."""
    reserved = client.reserve(keys, parent_key=ROOT, namespace_key=ROOT)
    assert reserved is not None
    sums: list[int] = []
    while len(sums) < len(block_ids):
        part = range(len(sums), min(len(sums) + memory.blocks_at_once, len(block_ids)))
        found = memory.store([block_ids[at] for at in part], [reserved.addresses[at] for at in part], reserved.staging)
        sums += found
        if len(found) < len(part):
            break
    statuses = client.commit(reserved, dict(enumerate(sums + [0] * (len(keys) - len(sums)))))
    return sum(status == PRESENT for status in statuses)


@pytest.mark.parametrize("write", [on_cpu, on_device, unreachable])
@pytest.mark.parametrize("read", [on_cpu, on_device, unreachable])
def test_what_one_device_stores_another_loads(
    running: RunningStore, shape: BlockShape, write: MakeCache, read: MakeCache
) -> None:
    source, target = make_blocks(shape), read(torch.zeros_like(make_blocks(shape)), shape)
    client = running.client(block_bytes=Fp8(shape).stored_bytes)
    keys, places = [key(number) for number in range(1, 8)], [9, 2, 4, 0, 7, 1, 5]
    assert put(client, write(source, shape).memory, keys, range(7)) == 7
    with client.view(keys) as lease:
        last = list(target.memory.load(lease, places, target.memory.mark()))[-1]
    assert last == (7, Reading.VERIFIED)
    target.memory.settle()
    loaded = target.blocks.cpu()
    for number, place in enumerate(places):
        assert torch.equal(loaded[place], restored(source[number], shape))
    assert not loaded[3].any()
    client.close()


@pytest.mark.parametrize("make", [on_cpu, on_device])
def test_a_block_with_values_that_are_not_finite_is_not_stored(
    running: RunningStore, shape: BlockShape, make: MakeCache
) -> None:
    source = make_blocks(shape)
    source[4, 3, 2] = float("inf")
    client = running.client(block_bytes=Fp8(shape).stored_bytes)
    keys = [key(number) for number in range(1, 8)]
    assert put(client, make(source, shape).memory, keys, range(7)) == 4
    client.close()


@pytest.mark.parametrize("make", [on_cpu, on_device])
def test_bytes_that_no_encoder_writes_are_not_loaded(running: RunningStore, shape: BlockShape, make: MakeCache) -> None:
    """Whoever has the fingerprint may store anything with a right checksum."""
    codec = Fp8(shape)
    client = running.client(block_bytes=codec.stored_bytes)
    good, bad = coded(make_blocks(shape)[0], shape), bytearray(coded(make_blocks(shape)[0], shape))
    bad[-1] = 126
    keys = [key(1), key(2), key(3)]
    assert client.put(keys, [good, bytes(bad), good], parent_key=ROOT, namespace_key=ROOT).num_visible == 3
    memory = make(torch.zeros_like(make_blocks(shape)), shape).memory
    with client.view(keys) as lease:
        assert list(memory.load(lease, [0, 1, 2], None))[-1] == (1, Reading.CORRUPT)
    client.close()


@pytest.mark.parametrize("make", [on_cpu, on_device])
def test_a_flipped_bit_is_found(running: RunningStore, shape: BlockShape, make: MakeCache) -> None:
    client = running.client(block_bytes=Fp8(shape).stored_bytes)
    keys = [key(1), key(2)]
    assert put(client, make(make_blocks(shape), shape).memory, keys, [0, 1]) == 2
    running.do(lambda store: flip(store, keys[1]))
    memory = make(torch.zeros_like(make_blocks(shape)), shape).memory
    with client.view(keys) as lease:
        assert list(memory.load(lease, [0, 1], None))[-1] == (1, Reading.CORRUPT)
    client.close()


def flip(store: Store, block_key: bytes) -> None:
    address = store.arena.address(store.index.slot[store.index.find(block_key)])
    ctypes.memset(address + 9, ctypes.string_at(address + 9, 1)[0] ^ 16, 1)


def test_codecs_have_fingerprints_of_their_own() -> None:
    suffix = Fp8(BlockShape(1, 1, "bfloat16")).suffix
    layouts = [("layout", "none"), ("layout" + suffix, "fp8"), ("layout" + suffix, "none"), ("layout", "fp8")]
    assert len({fingerprint_of("model", *each) for each in layouts}) == 4
