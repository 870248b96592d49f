"""Clients of the Unix socket that do not keep to the rules cost nobody but themselves."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.kv_client import KvClient
from shoal.kv_client.frames import HEADER, MAX_BODY_BYTES, Method, pack
from shoal.kv_store import unix_server
from shoal.kv_store.store import Store, StoreLimits
from support.kv_store_running import BLOCK_BYTES, RunningStore, key, put, running_store

OPEN = pack(
    Method.OPEN,
    pb.OpenRequest(scope=pb.Scope(tenant="a", fingerprint=b"f"), block_bytes=BLOCK_BYTES).SerializeToString(),
)
LOOKUP = pack(Method.LOOKUP, pb.LookupRequest(keys=b"".join(key(number) for number in range(64))).SerializeToString())
PREFETCH = pack(Method.PREFETCH, pb.PrefetchRequest(keys=key(1)).SerializeToString())
FLOOD_BYTES = 24 << 20


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningStore]:
    with running_store(tmp_path) as running:
        yield running


@contextmanager
def raw_client(running: RunningStore) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(running.path))
        client.sendall(OPEN)
        receive_frame(client)
        yield client


def receive_frame(client: socket.socket) -> bytes:
    header = client.recv(HEADER.size, socket.MSG_WAITALL)
    return client.recv(HEADER.unpack(header)[0], socket.MSG_WAITALL)


def flood(client: socket.socket, frame: bytes) -> int:
    """Sends frames, and reads nothing, until nobody takes any for half a second; how many bytes went."""
    client.setblocking(False)
    data, num_sent = memoryview(frame * (1 + (1 << 20) // len(frame))), 0
    while num_sent < FLOOD_BYTES and select.select([], [client], [], 0.5)[1]:
        num_sent += client.send(data[num_sent % len(frame) :])
    client.settimeout(10)
    return num_sent


def num_held_bytes(running: RunningStore) -> int:
    """What the server keeps of requests and answers."""
    connections = list(running.server._connections)
    return running.do(lambda _: sum(len(each._received) + len(each._unsent) for each in connections))


def test_a_client_that_sends_and_never_reads_waits_for_itself(running: RunningStore, client: KvClient) -> None:
    put(client, 1)
    with raw_client(running) as rude:
        num_sent = flood(rude, LOOKUP)
        assert num_sent < 4 << 20, "what the sockets and the server's share of it hold"
        assert num_held_bytes(running) < 1 << 20
        assert client.lookup([key(1)]) == (1, 1), "others are served"
        for _ in range(num_sent // len(LOOKUP)):
            pb.LookupResponse.FromString(receive_frame(rude))
        rude.sendall((LOOKUP * 2)[num_sent % len(LOOKUP) :] if num_sent % len(LOOKUP) else LOOKUP)
        receive_frame(rude)


def test_nothing_is_read_beside_a_call_that_runs(running: RunningStore, client: KvClient) -> None:
    ended = threading.Event()
    running.do(lambda _: hold_prefetches(running, ended))
    with raw_client(running) as rude:
        rude.sendall(PREFETCH)
        assert flood(rude, LOOKUP) < 4 << 20
        assert num_held_bytes(running) < 1 << 20
    ended.set()
    put(client, 1)
    assert client.lookup([key(1)]) == (1, 1)


def hold_prefetches(running: RunningStore, ended: threading.Event) -> None:
    async def prefetch(request: pb.PrefetchRequest, session: object) -> pb.PrefetchResponse:
        await running.loop.run_in_executor(None, ended.wait, 10)
        return pb.PrefetchResponse()

    running.control.prefetch = prefetch  # type: ignore[method-assign,assignment]


def test_the_end_of_a_client_is_seen_while_its_call_runs(running: RunningStore) -> None:
    ended = threading.Event()
    running.do(lambda _: hold_prefetches(running, ended))
    with raw_client(running) as leaving:
        leaving.sendall(PREFETCH)
    seen = threading.Event()
    running.loop.call_soon_threadsafe(wait_for_no_session, running, seen)
    assert seen.wait(5), "its session ends before the call does"
    ended.set()


def wait_for_no_session(running: RunningStore, seen: threading.Event) -> None:
    if running.store.sessions:
        running.loop.call_later(0.01, wait_for_no_session, running, seen)
    else:
        seen.set()


def test_a_burst_of_requests_is_answered_in_order_with_turns_for_others(running: RunningStore) -> None:
    with raw_client(running) as client:
        numbers = [n % 8 for n in range(10 * unix_server.FRAMES_A_TURN)]
        requests = [pb.LookupRequest(keys=b"x" * 16 * n).SerializeToString() for n in numbers]
        client.sendall(b"".join(pack(Method.LOOKUP, request) for request in requests))
        for _ in numbers:
            receive_frame(client)
    misses = running.do(lambda store: store.counters["misses"])
    assert misses == sum(numbers)


def test_who_has_no_session_cannot_send_much(running: RunningStore) -> None:
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.settimeout(10)
        stranger.connect(str(running.path))
        stranger.sendall(HEADER.pack(MAX_BODY_BYTES, Method.OPEN, 0))
        assert stranger.recv(1) == b"", "the connection is closed"


def test_connections_are_bounded(tmp_path: Path) -> None:
    with running_store(tmp_path, limits=StoreLimits(max_sessions=2)) as running:
        most = 2 + unix_server.MAX_UNOPENED
        strangers = [socket.socket(socket.AF_UNIX) for _ in range(most + 1)]
        for stranger in strangers:
            stranger.settimeout(10)
            stranger.connect(str(running.path))
        assert strangers[-1].recv(1) == b""
        assert running.do(count_refused) == 1
        for stranger in strangers:
            stranger.close()


def count_refused(store: Store) -> int:
    return store.counters["sessions_refused"]


@pytest.fixture
def client(running: RunningStore) -> Iterator[KvClient]:
    client = running.client()
    yield client
    client.close()
