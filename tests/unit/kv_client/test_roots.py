"""What clients know without asking: a "no" is certain while the store lives, and ends with it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import shoal.kv_client.client as client_module
from shoal.kv_client import KvClient
from shoal.kv_client.roots import bucket_of
from support.kv_store_running import BLOCK_BYTES, ROOT, RunningStore, running_store


def digest(number: int) -> bytes:
    """A key like a real one: all of its bits say something."""
    return hashlib.sha256(number.to_bytes(4, "big")).digest()[:16]


FIRST, SECOND, THIRD, FOURTH, ABSENT = map(digest, range(1, 6))
Connect = Callable[..., KvClient]


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningStore]:
    monkeypatch.setattr(client_module, "ROOTS_COUNT_S", 3600.0)
    with running_store(tmp_path, num_blocks=512) as started:
        yield started


@pytest.fixture
def connect(running: RunningStore) -> Iterator[Connect]:
    with contextlib.ExitStack() as closing:

        def make(**options: object) -> KvClient:
            client = running.client(**options)
            closing.callback(client.close)
            return client

        yield make


def put(client: KvClient, *keys: bytes) -> None:
    payloads = [bytes(BLOCK_BYTES)] * len(keys)
    assert client.put(keys, payloads, parent_key=ROOT, namespace_key=ROOT).num_visible == len(keys)


def test_it_follows_what_is_stored_and_evicted(connect: Connect) -> None:
    reader, writer = connect(wants_roots=True), connect()
    assert reader.may_begin(FIRST), "nothing is known before the session is open"
    reader.lookup([ABSENT])
    assert not reader.may_begin(FIRST)
    put(writer, FIRST, SECOND)
    assert reader.may_begin(FIRST)
    assert not reader.may_begin(SECOND), "only first blocks count"
    writer.evict([FIRST])
    assert not reader.may_begin(FIRST)


def test_it_is_of_one_scope_alone(connect: Connect) -> None:
    reader, other = connect(wants_roots=True), connect(wants_roots=True, fingerprint=b"g")
    for client in (reader, other):
        client.lookup([ABSENT])
    put(connect(), THIRD)
    put(connect(tenant="b"), FOURTH)
    assert reader.may_begin(THIRD)
    assert not other.may_begin(THIRD)
    assert not reader.may_begin(FOURTH), "nobody learns what others store"


def test_what_was_stored_before_anybody_wanted_to_know_counts(connect: Connect) -> None:
    put(connect(), FIRST, SECOND)
    reader = connect(wants_roots=True)
    reader.lookup([ABSENT])
    assert reader.may_begin(FIRST)
    assert not reader.may_begin(SECOND)


def test_who_does_not_ask_for_it_gets_no_descriptor(connect: Connect) -> None:
    client = connect()
    put(client, FIRST)
    with client.view([FIRST]) as lease:  # the chunk's descriptor is the one that came
        assert len(lease) == 1
    assert client.may_begin(ABSENT)


def test_a_store_that_died_does_not_say_no_for_ever(
    running: RunningStore, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = connect(wants_roots=True)
    reader.lookup([ABSENT])
    asyncio.run_coroutine_threadsafe(running.server.close(), running.loop).result(timeout=10)
    assert not reader.may_begin(ABSENT)
    monkeypatch.setattr(client_module, "ROOTS_COUNT_S", 0.0)
    assert reader.may_begin(ABSENT), "nothing was heard of the store lately"


def test_a_bucket_that_was_full_stays_so(connect: Connect) -> None:
    reader, writer = connect(wants_roots=True), connect()
    reader.lookup([ABSENT])
    keys = [FIRST[:8] + number.to_bytes(8, "big") for number in range(300)]
    assert len({bucket_of(key) for key in keys}) == 1
    for key in keys:
        put(writer, key)
    for key in keys:
        writer.evict([key])
    assert reader.may_begin(keys[0]), "it was not counted beyond 255, so nothing is certain"
