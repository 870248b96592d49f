"""What must not be reached is not, and what is wrong is not served."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from hashlib import sha256
from pathlib import Path

import pytest

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.checksum import copy_crc32c_at, crc32c
from shoal.kv_client import KvClient
from shoal.kv_client.lease import Reading
from shoal.kv_client.link import Link, Refused
from shoal.kv_store import writing
from shoal.kv_store.store import Store, StoreLimits
from shoal.kv_store.tenants import Tenant, Tenants
from support.kv_store_running import BLOCK_BYTES, ROOT, RunningStore, key, payload, put, running_store


def count(running: RunningStore, name: str) -> int:
    return running.do(lambda store: store.counters[name])


@pytest.mark.parametrize(
    ("options", "counter"),
    [({"tenant": "b"}, "foreign_tenant"), ({"fingerprint": b"g"}, "foreign_fingerprint")],
)
def test_blocks_of_another_scope_are_counted_misses(
    running: RunningStore, client: KvClient, options: dict[str, str | bytes], counter: str
) -> None:
    put(client, 1, 2)
    other = running.client(**options)
    assert other.lookup([key(1), key(2)]) == (0, 0)
    assert other.get([key(1)], [bytearray(BLOCK_BYTES)]) == 0
    assert count(running, counter) == 2
    assert other.evict([key(1)]) == 0
    # Neither can it take the key, nor hang blocks of its own on it.
    assert put(other, 1) == 0
    assert put(other, 7, parent=key(1)) == 0
    assert put(client, 1, 2) == 2
    other.close()


def test_another_tenants_chunk_cannot_be_mapped(running: RunningStore, client: KvClient) -> None:
    put(client, 1)
    with client.view([key(1)]):
        number = running.do(lambda store: next(iter(store.arena.pools[0].chunks)))
    link = Link(running.client(tenant="b").options)
    with pytest.raises(Refused, match="not a chunk of this tenant"):
        link.chunk(number)
    link.close()


def test_descriptors_cannot_be_used_to_write(running: RunningStore, client: KvClient) -> None:
    put(client, 1)
    fd = running.do(lambda store: store.map_chunk(next(iter(store.sessions.values())), 1))
    duplicate = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)  # what a client of the same user could try
    try:
        with pytest.raises(PermissionError):
            mmap.mmap(duplicate, BLOCK_BYTES, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        with pytest.raises(PermissionError):
            os.write(duplicate, b"x")
        for num_bytes in (0, 1 << 30):
            with pytest.raises(PermissionError):
                os.ftruncate(duplicate, num_bytes)
        mapping = mmap.mmap(duplicate, BLOCK_BYTES, mmap.MAP_SHARED, mmap.PROT_READ)
        assert mapping[:BLOCK_BYTES]
        mapping.close()
    finally:
        os.close(duplicate)


def flip(store: Store, number: int) -> None:
    address = store.arena.address(store.index.slot[store.index.find(key(number))])
    ctypes.memset(address + 100, ctypes.string_at(address + 100, 1)[0] ^ 16, 1)


def test_a_flipped_bit_in_memory_is_found_and_the_block_goes(running: RunningStore, client: KvClient) -> None:
    put(client, 1, 2, 3)
    running.do(lambda store: flip(store, 2))
    keys = [key(1), key(2), key(3)]
    assert client.get(keys, [bytearray(BLOCK_BYTES) for _ in keys]) == 1
    assert client.counters["corrupt_blocks"] == 1
    assert client.lookup(keys) == (1, 1)
    assert count(running, "checksum_failures_memory") == 1
    assert put(client, 1, 2, 3) == 3


def test_a_client_cannot_have_a_right_block_removed_as_wrong(running: RunningStore, client: KvClient) -> None:
    put(client, 1)
    with client.view([key(1)]) as lease:
        lease.suspects.append(0)
    assert client.lookup([key(1)]) == (1, 1)


def test_what_is_changed_while_it_is_committed_is_refused(running: RunningStore, client: KvClient) -> None:
    reserved = client.reserve([key(1)], parent_key=ROOT, namespace_key=ROOT)
    assert reserved is not None
    ctypes.memset(reserved.addresses[0], 1, BLOCK_BYTES)
    statuses = client.commit(reserved, {0: 12345})
    assert statuses == [pb.BLOCK_STATUS_CORRUPT]
    assert client.lookup([key(1)]) == (0, 0)
    assert count(running, "checksum_failures_commit") == 1


def test_a_writer_that_changes_its_mind_publishes_what_was_summed(
    running: RunningStore, client: KvClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes into its staging memory all the while: what is served is what arrived, or the commit is refused."""
    right, wrong = payload(1), payload(2)
    staging_address, num_copies = [0], [0]
    real = copy_crc32c_at

    def copy_amid_changes(target: int, source: int, num_bytes: int) -> int:
        """Half is copied; then the writer changes both halves; then the rest."""
        num_copies[0] += 1
        staging_address[0] = source
        half = num_bytes // 2
        if num_copies[0] == 1:  # it changes what was copied already, and what was not
            ctypes.memmove(target, source, half)
            ctypes.memmove(source, wrong, num_bytes)
            ctypes.memmove(target + half, source + half, num_bytes - half)
            return crc32c(ctypes.string_at(target, num_bytes))
        arrived = real(target, source, num_bytes)
        ctypes.memmove(source, wrong, num_bytes)  # after the copy, before it is published
        return arrived

    monkeypatch.setattr(writing, "copy_crc32c_at", copy_amid_changes)
    for is_published in (False, True):
        reserved = client.reserve([key(1)], parent_key=ROOT, namespace_key=ROOT)
        assert reserved is not None
        ctypes.memmove(reserved.addresses[0], right, BLOCK_BYTES)
        [status] = client.commit(reserved, {0: crc32c(right)})
        assert status == (pb.BLOCK_STATUS_PRESENT if is_published else pb.BLOCK_STATUS_CORRUPT)
    assert ctypes.string_at(staging_address[0], BLOCK_BYTES) == wrong
    buffer = bytearray(BLOCK_BYTES)
    assert client.get([key(1)], [buffer]) == 1
    assert bytes(buffer) == right
    assert count(running, "checksum_failures_commit") == 1


def test_a_writer_that_writes_all_the_time_never_gets_a_wrong_byte_served(
    running: RunningStore, client: KvClient
) -> None:
    ended, addresses = threading.Event(), [0]

    def scribble() -> None:
        number = 0
        while not ended.is_set():
            if addresses[0]:
                number += 1
                ctypes.memset(addresses[0] + number * 977 % (BLOCK_BYTES - 64), number % 256, 64)

    writer = threading.Thread(target=scribble)
    writer.start()
    statuses: set[int] = set()
    try:
        for number in range(1, 151):
            reserved = client.reserve([key(number)], parent_key=ROOT, namespace_key=ROOT)
            if reserved is None:
                break
            addresses[0] = reserved.addresses[0] if number % 2 else 0
            ctypes.memmove(reserved.addresses[0], payload(number), BLOCK_BYTES)
            [status] = client.commit(reserved, {0: crc32c(payload(number))})
            addresses[0] = 0
            statuses.add(status)
            buffer = bytearray(BLOCK_BYTES)
            assert client.get([key(number)], [buffer]) == (status == pb.BLOCK_STATUS_PRESENT)
            assert status != pb.BLOCK_STATUS_PRESENT or bytes(buffer) == payload(number)
    finally:
        ended.set()
        writer.join()
    assert statuses <= {pb.BLOCK_STATUS_PRESENT, pb.BLOCK_STATUS_CORRUPT}
    assert pb.BLOCK_STATUS_PRESENT in statuses


def test_a_late_reader_finds_out(running: RunningStore, client: KvClient) -> None:
    put(client, 1, 2)
    lease = client.view([key(1), key(2)])
    blocks = lease.blocks

    def take_away(store: Store) -> None:
        session = next(iter(store.sessions.values()))
        store.release(session, [key(1), key(2)])
        store.removal.evict(session.scope, [key(2)])

    running.do(take_away)
    assert lease.count_valid() == 1
    buffer = bytearray(BLOCK_BYTES)
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    assert lease.copy(1, address) is Reading.STALE
    assert lease.copy(0, address) is Reading.VERIFIED
    # The slot is used again; the mapping shows other bytes, and still nobody takes them for the block's.
    put(client, 9)
    assert bytes(blocks[1]) == payload(9)
    assert lease.verify([1]) == [Reading.STALE]
    lease.close()


def test_a_full_arena_of_leased_blocks_refuses_and_then_recovers(running: RunningStore, client: KvClient) -> None:
    numbers = list(range(1, 65))
    assert put(client, *numbers) == 64
    lease = client.view([key(number) for number in numbers])
    assert len(lease) == 64
    assert put(client, 100) == 0
    assert client.problem == ""
    assert count(running, "refused_no_space") == 1
    lease.close()
    assert put(client, 100) == 1
    assert client.lookup([key(number) for number in numbers]) == (63, 63)  # the chain's end went


def test_a_tenant_stays_within_its_quota(tmp_path: Path) -> None:
    with running_store(tmp_path, tenants=Tenants(memory_bytes=10 * BLOCK_BYTES)) as running:
        one, two = running.client(), running.client(tenant="b")
        assert put(one, *range(1, 9)) == 8
        assert put(one, *range(20, 28)) == 8
        assert running.do(lambda store: store.arena.used_bytes("a")) == 10 * BLOCK_BYTES
        assert put(two, *range(30, 38)) == 8
        assert one.lookup([key(number) for number in range(20, 28)]) == (8, 8)
        one.close()
        two.close()


def test_tokens_prove_tenants(tmp_path: Path) -> None:
    with running_store(tmp_path, tenants=Tenants({"a": Tenant(sha256(b"secret").hexdigest())})) as running:
        right, wrong, unknown = running.client(token="secret"), running.client(token="x"), running.client(tenant="b")
        assert put(right, 1) == 1
        assert put(wrong, 2) == 0
        assert "token" in wrong.problem
        assert unknown.lookup([key(1)]) == (0, 0)
        right.close()


def test_two_writers_of_one_key_make_one_block(running: RunningStore, client: KvClient) -> None:
    other = running.client()
    reserved = client.reserve([key(1)], parent_key=ROOT, namespace_key=ROOT)
    assert reserved is not None
    result = other.put([key(1), key(2)], [payload(1), payload(2)], parent_key=ROOT, namespace_key=ROOT)
    assert (result.num_stored, result.num_visible) == (0, 0)
    assert result.problem == "pending"
    ctypes.memmove(reserved.addresses[0], payload(1), BLOCK_BYTES)
    client.commit(reserved)
    assert put(other, 1, 2) == 2
    assert count(running, "stored") == 2
    other.close()


def test_an_orphan_is_not_stored(running: RunningStore, client: KvClient) -> None:
    assert put(client, 2, parent=key(1)) == 0
    assert count(running, "refused_orphan") == 1
    assert client.lookup([key(2)]) == (0, 0)


def test_leases_and_reservations_that_nobody_ends_end_by_time(tmp_path: Path) -> None:
    now_s = [0.0]
    limits = StoreLimits(lease_timeout_s=5.0)
    with running_store(tmp_path, limits=limits, clock=lambda: now_s[0]) as running:
        client = running.client()
        put(client, 1)
        lease = client.view([key(1)])
        reserved = client.reserve([key(2)], parent_key=key(1), namespace_key=ROOT)
        assert reserved is not None
        now_s[0] = 4.9
        running.do(Store.expire)
        assert client.evict([key(1)]) == 0
        now_s[0] = 5.0
        running.do(Store.expire)
        assert client.evict([key(1)]) == 1
        assert client.commit(reserved) == [pb.BLOCK_STATUS_EXPIRED]
        assert lease.count_valid() == 0
        assert running.do(lambda store: store.arena.num_used_bytes) == 0
        lease.close()
        client.close()
