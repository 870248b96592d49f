"""Payloads over a data connection: whole, in spite of what the network does, or not at all."""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.checksum import crc32c
from shoal.kv_store.remote.sockets import DeadlineSocket
from shoal.kv_store.remote.tcp_server import TcpServer
from shoal.kv_store.remote.tickets import Piece, TicketBook
from shoal.kv_store.remote.transfer import Received, TcpStream, Transfer
from shoal.kv_store.remote.wire import ANSWER, MAGIC, VERSION, Hello, Status, unpack_reply
from support.eventually import wait_until
from support.faulty_link import FaultyLink, faulty_link
from support.kv_peers_running import tls_files

BLOCK_BYTES = 300_000
NUM_BLOCKS = 4
TOTAL = NUM_BLOCKS * BLOCK_BYTES
BINDING = b"b" * 16
CONTENT = np.random.default_rng(1).integers(0, 256, TOTAL, np.uint8).tobytes()


class Owner:
    """A data port over a file that holds CONTENT."""

    def __init__(
        self, tls: ssl.SSLContext | None = None, max_connections: int = 8, sendfile: bool | None = None
    ) -> None:
        self.fd = os.memfd_create("content")
        os.write(self.fd, CONTENT)
        self.book = TicketBook()
        self.counts: Counter[str] = Counter()
        self.num_ends = 0
        count = self.counts.__setitem__
        self.server = TcpServer(
            ("127.0.0.1", 0),
            self.book,
            lambda name, num: count(name, self.counts[name] + num),
            max_connections=max_connections,
            tls=tls,
            sendfile=sendfile,
        )
        self.address = ("127.0.0.1", self.server.port)

    def issue(self, timeout_s: float = 20.0) -> bytes:
        view = memoryview(CONTENT)
        pieces = [
            Piece(self.fd, BLOCK_BYTES * number, view[BLOCK_BYTES * number : BLOCK_BYTES * (number + 1)])
            for number in range(NUM_BLOCKS)
        ]
        return self.book.issue(BINDING, pieces, BLOCK_BYTES, timeout_s, self.end)

    def end(self) -> None:
        self.num_ends += 1

    def close(self) -> None:
        self.server.close()
        os.close(self.fd)


@pytest.fixture(params=[False, True], ids=["send", "sendfile"])
def owner(request: pytest.FixtureRequest) -> Iterator[Owner]:
    owner = Owner(sendfile=request.param)
    yield owner
    owner.close()


def read(
    ticket: bytes, port: int, timeout_s: float = 20.0, num_blocks: int = NUM_BLOCKS, tls: ssl.SSLContext | None = None
) -> tuple[Received, bytes]:
    """What came, and the memory it came to."""
    memory = bytearray(num_blocks * BLOCK_BYTES)
    view = memoryview(memory)
    targets = [view[BLOCK_BYTES * number : BLOCK_BYTES * (number + 1)] for number in range(num_blocks)]
    content = memoryview(CONTENT)
    checksums = [crc32c(content[BLOCK_BYTES * n : BLOCK_BYTES * (n + 1)]) for n in range(num_blocks)]
    idle: list[DeadlineSocket] = []

    def connect() -> TcpStream:
        connected = socket.create_connection(("127.0.0.1", port), 5)
        if tls is not None:
            connected = tls.wrap_socket(connected, server_hostname="127.0.0.1")
        return TcpStream(DeadlineSocket(connected), idle.append)

    received = Transfer(ticket, BINDING, targets, checksums, time.monotonic() + timeout_s).run(connect)
    for connection in idle:
        connection.close()
    whole = received.num_verified * BLOCK_BYTES
    assert memory[:whole] == CONTENT[:whole]
    return received, bytes(memory)


def test_all_of_it_arrives(owner: Owner) -> None:
    assert read(owner.issue(), owner.server.port)[0] == Received(NUM_BLOCKS)
    wait_until(lambda: owner.counts["peer_blocks_sent"] == NUM_BLOCKS, "it is counted")
    assert owner.num_ends == 1


def test_a_reader_may_want_less(owner: Owner) -> None:
    assert read(owner.issue(), owner.server.port, num_blocks=2)[0] == Received(2)
    wait_until(lambda: owner.num_ends == 1, "the ticket ends")


@given(cuts=st.lists(st.integers(0, TOTAL - 1), min_size=1, max_size=3))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_transfer_goes_on_where_its_connection_broke(owner: Owner, cuts: list[int]) -> None:
    with faulty_link(owner.address) as link:
        link.cut_at = sorted(ANSWER.size + cut for cut in cuts)
        assert read(owner.issue(), link.port)[0] == Received(NUM_BLOCKS)
        # Each further connection brings its answer, and what the ones before did not bring.
        assert link.num_bytes <= TOTAL + ANSWER.size * link.num_connections


def test_a_connection_that_breaks_too_often_leaves_whole_blocks(owner: Owner) -> None:
    with faulty_link(owner.address) as link:
        link.cut_at = [BLOCK_BYTES + 1000 * number for number in range(1, 9)]
        received, _ = read(owner.issue(), link.port)
    assert received.num_verified == 1
    assert received.problem


@pytest.mark.parametrize("block", range(NUM_BLOCKS))
def test_a_flipped_bit_is_noticed(owner: Owner, block: int) -> None:
    with faulty_link(owner.address) as link:
        link.flip_at = ANSWER.size + block * BLOCK_BYTES + 777
        received, _ = read(owner.issue(), link.port)
    assert (received.num_verified, received.is_corrupt) == (block, True)
    wait_until(lambda: owner.num_ends == 1 or owner.counts["peer_transfers_broken"] == 1, "the owner is through")


def test_nothing_waits_beyond_the_deadline(owner: Owner) -> None:
    with faulty_link(owner.address) as link:
        link.stall_at = 2 * BLOCK_BYTES + 5
        start_s = time.monotonic()
        received, _ = read(owner.issue(), link.port, timeout_s=0.5)
        assert time.monotonic() - start_s < 5.0
    assert received.num_verified <= 2
    assert received.problem


def test_a_reader_that_does_not_read_is_left_when_the_ticket_ends(owner: Owner) -> None:
    connection = DeadlineSocket(socket.create_connection(owner.address, 5))
    try:
        connection.send(Hello(owner.issue(timeout_s=0.4), BINDING, 0, TOTAL).pack(), time.monotonic() + 5)
        wait_until(lambda: owner.num_ends == 1, "its memory is free again")
    finally:
        connection.close()


def test_a_used_ticket_is_refused(owner: Owner) -> None:
    ticket = owner.issue()
    read(ticket, owner.server.port)
    wait_until(lambda: owner.num_ends == 1, "the receipt came")
    received, memory = read(ticket, owner.server.port)
    assert received.num_verified == 0
    assert memory == bytes(TOTAL)
    assert "refused" in received.problem
    assert owner.counts["tickets_refused"] == 1


def test_connections_serve_one_ticket_after_the_other(owner: Owner) -> None:
    deadline_s = time.monotonic() + 10
    connection = DeadlineSocket(socket.create_connection(owner.address, 5))
    for attempt in range(3):
        ticket = bytes(32) if attempt == 1 else owner.issue()
        stream = TcpStream(connection, lambda _: None)
        if attempt == 1:
            with pytest.raises(Exception, match="refused"):
                stream.start(Hello(ticket, BINDING, 0, TOTAL), deadline_s)
            continue
        assert stream.start(Hello(ticket, BINDING, 0, TOTAL), deadline_s) == TOTAL
        assert connection.receive_exactly(TOTAL, deadline_s) == CONTENT
        stream.finish(Status.OK, TOTAL, deadline_s)
    assert connection.is_quiet
    connection.close()


def test_what_is_no_hello_ends_the_connection(owner: Owner) -> None:
    deadline_s = time.monotonic() + 10
    connection = DeadlineSocket(socket.create_connection(owner.address, 5))
    connection.send(b"GET / HTTP/1.1\r\nHost: someone\r\n".ljust(100, b" "), deadline_s)
    assert unpack_reply(ANSWER, connection.receive_exactly(ANSWER.size, deadline_s)) == (Status.MALFORMED, 0)
    with pytest.raises(ConnectionError):
        connection.receive_exactly(1, deadline_s)
    connection.close()


def test_connections_beyond_the_limit_are_closed() -> None:
    owner = Owner(max_connections=2)
    try:
        open_ones = [socket.create_connection(owner.address, 5) for _ in range(2)]
        wait_until(lambda: len(owner.server._open) == 2, "two are served")
        with socket.create_connection(owner.address, 5) as third:
            assert third.recv(1) == b""
        for each in open_ones:
            each.close()
        wait_until(lambda: not owner.server._open, "their places are free")
        assert read(owner.issue(), owner.server.port)[0] == Received(NUM_BLOCKS)
    finally:
        owner.close()


@pytest.mark.parametrize("answer", [b"", b"x" * ANSWER.size, ANSWER.pack(MAGIC, VERSION, 0, 1 << 60)])
def test_an_owner_that_talks_nonsense_is_not_listened_to(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def talk() -> None:
            while True:
                try:
                    near, _ = listener.accept()
                except OSError:
                    return
                near.recv(4096)
                near.sendall(answer)
                near.close()

        thread = threading.Thread(target=talk, daemon=True)
        thread.start()
        received, memory = read(bytes(32), listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(timeout=5)
    assert received.num_verified == 0
    assert received.problem
    assert memory == bytes(TOTAL)


def test_with_certificates_everything_is_the_same_and_strangers_are_kept_out(tmp_path: Path) -> None:
    files = tls_files(tmp_path, ["127.0.0.1"])
    owner = Owner(files.server_context())
    try:
        assert read(owner.issue(), owner.server.port, tls=files.client_context())[0] == Received(NUM_BLOCKS)
        without = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        without.load_verify_locations(files.ca)
        received, memory = read(owner.issue(), owner.server.port, timeout_s=5.0, tls=without)
        assert received.num_verified == 0
        assert memory == bytes(TOTAL)
        received, memory = read(owner.issue(), owner.server.port, timeout_s=2.0)
        assert received.num_verified == 0
        assert memory == bytes(TOTAL)
    finally:
        owner.close()


def test_a_link_that_refuses_is_a_problem_and_no_error(owner: Owner) -> None:
    with faulty_link(owner.address) as link:
        link.refuse = True
        received, _ = read(owner.issue(), link.port)
        assert isinstance(link, FaultyLink)
    assert replace(received, problem="") == Received(0)
    assert received.problem
