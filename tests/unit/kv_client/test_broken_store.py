"""A store that is away, dies, hangs or lies is a miss, in time."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.kv_client import KvClient, KvClientOptions, Prefix
from shoal.kv_client.frames import HEADER, Method, pack
from support.kv_store_running import BLOCK_BYTES, ROOT, key, payload, running_store


def make_client(path: Path, **options: Any) -> KvClient:
    defaults: dict[str, Any] = {"timeout_s": 0.2, "min_backoff_s": 0.0, "num_staging_blocks": 0}
    settings: dict[str, Any] = {
        "socket_path": str(path),
        "tenant": "a",
        "fingerprint": b"f",
        "block_bytes": BLOCK_BYTES,
    }
    return KvClient(KvClientOptions(**(settings | defaults | options)))


def expect_misses(client: KvClient) -> None:
    start_s = time.monotonic()
    assert client.lookup([key(1)]) == Prefix(0, 0)
    assert client.get([key(1)], [bytearray(BLOCK_BYTES)]) == 0
    assert len(client.view([key(1)])) == 0
    assert client.put([key(1)], [payload(1)], parent_key=ROOT, namespace_key=ROOT).num_visible == 0
    assert client.prefetch([key(1)]) == 0
    assert client.evict([key(1)]) == 0
    assert client.problem
    assert time.monotonic() - start_s < 6 * client.options.timeout_s + 2


@contextmanager
def lying_store(path: Path, answers: list[bytes]) -> Iterator[None]:
    """Answers each request of each connection with the next of `answers`; then hangs."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(16)
    connections: list[socket.socket] = []

    def serve(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # a client that waits 50 ms, or has read enough, may have left
            for answer in answers:
                header = connection.recv(HEADER.size, socket.MSG_WAITALL)
                if len(header) < HEADER.size:
                    return
                connection.recv(HEADER.unpack(header)[0], socket.MSG_WAITALL)
                connection.sendall(answer)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connections.append(connection)
            threads.append(threading.Thread(target=serve, args=(connection,)))
            threads[-1].start()

    threads = [threading.Thread(target=accept)]
    threads[0].start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        threads[0].join(timeout=5)
        for connection in connections:
            connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        for thread in threads:
            thread.join(timeout=5)


def opened(**fields: Any) -> bytes:
    response = pb.OpenResponse(session=b"s" * 16, epoch=1, max_batch_size=64, **fields)
    return pack(Method.OPEN, response.SerializeToString())


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    client = make_client(tmp_path / "none.sock")
    expect_misses(client)
    assert client.counters["breaks"] == 6


def test_a_store_that_is_away_is_not_asked_all_the_time(tmp_path: Path) -> None:
    client = make_client(tmp_path / "none.sock", min_backoff_s=60.0, max_backoff_s=60.0)
    expect_misses(client)
    assert (client.counters["breaks"], client.counters["skipped_calls"]) == (1, 5)


def test_a_store_that_hangs(tmp_path: Path) -> None:
    with lying_store(tmp_path / "kv.sock", []):
        expect_misses(make_client(tmp_path / "kv.sock", timeout_s=0.05))


def test_a_store_that_hangs_once_open(tmp_path: Path) -> None:
    with lying_store(tmp_path / "kv.sock", [opened()]):
        expect_misses(make_client(tmp_path / "kv.sock", timeout_s=0.05))


ACQUIRED: dict[str, Any] = {"chunks": [1], "slots": [0], "generations": [2], "checksums": [0]}


@pytest.mark.parametrize(
    "answers",
    [
        [b"\xff" * 64],
        [pack(Method.OPEN, b"\xff\xff\xff")],
        [pack(Method.LOOKUP, b"")],
        [pack(Method.OPEN, b"no", 13)],
        [opened(), pack(Method.ACQUIRE, pb.AcquireResponse(**ACQUIRED).SerializeToString()), pack(Method.MAP, b"")],
        [opened(), pack(Method.ACQUIRE, pb.AcquireResponse(chunks=[1, 2], slots=[0]).SerializeToString())],
        [opened(), pack(Method.ACQUIRE, b"\x0a")],
    ],
)
def test_a_store_that_answers_nonsense(tmp_path: Path, answers: list[bytes]) -> None:
    with lying_store(tmp_path / "kv.sock", answers):
        client = make_client(tmp_path / "kv.sock", timeout_s=0.05)
        assert client.get([key(1)], [bytearray(BLOCK_BYTES)]) == 0
        assert client.problem


def test_a_client_survives_the_restart_of_its_store(tmp_path: Path) -> None:
    with running_store(tmp_path) as running:
        client = running.client()
        client.put([key(1)], [payload(1)], parent_key=ROOT, namespace_key=ROOT)
        lease = client.view([key(1)])
        reserved = client.reserve([key(2)], parent_key=key(1), namespace_key=ROOT)
        assert reserved is not None
    buffer = bytearray(BLOCK_BYTES)
    assert client.get([key(1)], [buffer]) == 0
    assert client.problem
    assert bytes(lease.blocks[0]) == payload(1)  # the memory outlives the store
    with running_store(tmp_path) as running:
        assert client.commit(reserved) == [pb.BLOCK_STATUS_EXPIRED]
        lease.close()
        assert client.get([key(1)], [buffer]) == 0
        assert client.problem == ""
        assert client.put([key(1)], [payload(1)], parent_key=ROOT, namespace_key=ROOT).num_stored == 1
        assert client.get([key(1)], [buffer]) == 1
        client.close()
