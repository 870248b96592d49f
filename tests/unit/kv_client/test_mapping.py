"""Memory that a store gives is touched only where it surely is: else this process would end."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.message import Message

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.kv_client import KvClient, KvClientOptions
from shoal.kv_client.frames import Method
from support.kv_store_running import ROOT, key, payload
from support.lying_store import NUM_SLOTS, PAGE_BYTES, lying_store, sealed_memory

BLOCK_BYTES = 3 * PAGE_BYTES
SLOTS_END = NUM_SLOTS * BLOCK_BYTES


def make_client(path: Path) -> KvClient:
    return KvClient(
        KvClientOptions(
            socket_path=str(path),
            tenant="a",
            fingerprint=b"f",
            block_bytes=BLOCK_BYTES,
            num_staging_blocks=4,
            wants_roots=True,
            min_backoff_s=0.0,
        )
    )


def put_one(client: KvClient) -> int:
    block = payload(1, BLOCK_BYTES)
    return client.put([key(1)], [block], parent_key=ROOT, namespace_key=ROOT).num_stored


def get_one(client: KvClient) -> int:
    """Reads every byte of a block, as a step would find out."""
    buffer = bytearray(BLOCK_BYTES)
    found = client.get([key(1)], [buffer])
    assert not found or bytes(buffer) == payload(1, BLOCK_BYTES)
    return found


@pytest.mark.parametrize(
    "lie",
    [
        {"slot_bytes": PAGE_BYTES},
        {"slot_bytes": BLOCK_BYTES - 1},
        {"slot_bytes": 0},
        {"slot_bytes": 1 << 40, "num_slots": 1},
        {"slot_bytes": (1 << 64) - BLOCK_BYTES},
        {"num_slots": 0},
        {"num_slots": NUM_SLOTS + 1},
        {"num_slots": (1 << 32) - 1},
        {"num_slots": 2, "slot_bytes": 1 << 63},
        {"generations_offset": 0},
        {"generations_offset": SLOTS_END - 8},
        {"generations_offset": SLOTS_END + 4},
        {"generations_offset": SLOTS_END + 8},
        {"generations_offset": (1 << 64) - 8},
        {"num_bytes": 0},
        {"num_bytes": SLOTS_END},
        {"num_bytes": 1 << 50},
        {"num_slots": 1, "generations_offset": BLOCK_BYTES},  # most of the file would be nothing at all
    ],
    ids=str,
)
def test_a_chunk_that_is_described_as_it_cannot_be(tmp_path: Path, lie: dict[str, int]) -> None:
    def answer(method: Method, truth: Message) -> Message:
        for name, value in lie.items() if method == Method.MAP else ():
            setattr(truth, name, value)
        return truth

    with lying_store(tmp_path / "kv.sock", BLOCK_BYTES) as store:
        client = make_client(store.path)
        assert put_one(client) == 1
        store.lie = answer
        assert get_one(client) == 0
        assert client.problem
        assert client.counters["breaks"] == 1
        store.lie = lambda method, truth: truth
        assert get_one(client) == 1
        assert client.problem == ""
        client.close()


@pytest.mark.parametrize("num_free_bytes", [8, PAGE_BYTES, BLOCK_BYTES])
def test_generations_may_lie_anywhere_behind_the_slots(tmp_path: Path, num_free_bytes: int) -> None:
    with lying_store(tmp_path / "kv.sock", BLOCK_BYTES) as store:
        store.move_generations(num_free_bytes)
        client = make_client(store.path)
        assert put_one(client) == 1
        assert get_one(client) == 1
        client.close()


def unsealed(fd: int) -> int:
    copy = sealed_memory(os.fstat(fd).st_size, seals=0)
    os.sendfile(copy, fd, 0, os.fstat(fd).st_size)
    return copy


def too_small(fd: int) -> int:
    return sealed_memory(os.fstat(fd).st_size - mmap.PAGESIZE)


def a_pipe(fd: int) -> int:
    reader, writer = os.pipe()
    os.close(writer)
    return reader


def a_file(fd: int) -> int:
    return os.open(__file__, os.O_RDONLY)


@pytest.mark.parametrize("number", range(3), ids=["staging", "roots", "chunk"])
@pytest.mark.parametrize("lie", [unsealed, too_small, a_pipe, a_file])
def test_memory_that_could_go_away_is_not_touched(tmp_path: Path, lie: Callable[[int], int], number: int) -> None:
    with lying_store(tmp_path / "kv.sock", BLOCK_BYTES) as store:
        other = make_client(store.path)
        put_one(other)
        sent = iter(range(100))
        store.descriptor = lambda fd: lie(fd) if next(sent) == number else os.dup(fd)
        client = make_client(store.path)
        assert get_one(client) == 0
        assert client.problem
        assert get_one(client) == 1, "descriptors are those of the store again"
        client.close()
        other.close()


@pytest.mark.parametrize("stride", [0, 1, BLOCK_BYTES - 1, 1 << 40, (1 << 64) - 1])
def test_staging_memory_for_other_blocks_is_not_written_to(tmp_path: Path, stride: int) -> None:
    def answer(method: Method, truth: Message) -> Message:
        if isinstance(truth, pb.OpenResponse):
            truth.staging_stride = stride
        return truth

    with lying_store(tmp_path / "kv.sock", BLOCK_BYTES) as store:
        store.lie = answer
        client = make_client(store.path)
        assert put_one(client) == 0
        assert client.problem
        store.lie = lambda method, truth: truth
        assert put_one(client) == 1
        client.close()


def test_a_descriptor_that_nobody_asked_for_breaks_the_link(tmp_path: Path) -> None:
    with lying_store(tmp_path / "kv.sock", BLOCK_BYTES) as store:
        client = make_client(store.path)
        assert put_one(client) == 1
        store.adds_descriptor = True
        client.lookup([key(1)])
        assert client.lookup([key(1)]) == (0, 0)
        assert "nobody asked" in client.problem
        store.adds_descriptor = False
        assert get_one(client) == 1
        client.close()
