"""What other stores and the network between may do to a store: cost it hits, and nothing else."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from shoal.api.kv_store.v1 import kv_peer_pb2
from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.blocks import join_keys
from shoal.kv_store.remote.auth import Signer
from shoal.kv_store.remote.grpc_stream import READ
from shoal.kv_store.remote.peer import SERVICE
from shoal.kv_store.remote.wire import ANSWER, Hello, Status, binding_of, unpack_reply
from shoal.kv_store.store import StoreLimits
from support.eventually import wait_until
from support.faulty_link import FaultyLink, faulty_link
from support.kv_peers_running import SECRET, SharingStores, add_store, chain, sharing_stores, tls_files
from support.kv_store_running import BLOCK_BYTES, key

KEYS = chain(1, 12)


@contextmanager
def linked(folder: Path, **settings: Any) -> Iterator[tuple[SharingStores, FaultyLink]]:
    """Two stores; what others read of the first one's data port comes over the link. The first has KEYS."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with contextlib.ExitStack() as ending:
        link = ending.enter_context(faulty_link(("127.0.0.1", port)))
        stores = ending.enter_context(sharing_stores(folder, 0))
        add_store(stores, ending, 0, data_port=port, public_data_port=link.port, offer_delay_s=60.0)
        add_store(stores, ending, 1, offer_delay_s=60.0, **settings)
        stores.write_list()
        stores[0].put(KEYS)
        yield stores, link


def test_a_connection_that_breaks_is_made_again(tmp_path: Path) -> None:
    with linked(tmp_path) as (stores, link):
        link.cut_at = [3 * BLOCK_BYTES + 77, 6 * BLOCK_BYTES]
        assert stores[1].pull(KEYS) == 12
        assert link.num_connections == 3


def test_what_comes_over_several_connections_is_whole(tmp_path: Path) -> None:
    with linked(tmp_path, stripe_bytes=BLOCK_BYTES) as (stores, link):
        link.cut_at = [3 * BLOCK_BYTES + 77]
        assert stores[1].pull(KEYS) == 12
        assert link.num_connections == 3


def test_of_several_connections_the_leading_blocks_count(tmp_path: Path) -> None:
    with linked(tmp_path, stripe_bytes=BLOCK_BYTES) as (stores, link):
        link.stall_at = 5 * BLOCK_BYTES
        num = stores[1].pull(KEYS, timeout_s=1.0)
        assert num < 12
        wait_until(lambda: stores[1].counter("peer_transfers_failed") == 1, "both are through")
        assert (
            stores[1].do(lambda: stores[1].running.store.arena.num_used_bytes) == stores[1].num_blocks() * BLOCK_BYTES
        )


def test_wrong_bytes_are_a_miss_and_counted_and_their_owner_looks_for_itself(tmp_path: Path) -> None:
    with linked(tmp_path) as (stores, link):
        link.flip_at = ANSWER.size + 5 * BLOCK_BYTES + 4000
        assert stores[1].pull(KEYS) == 12  # what was missing is asked for again, as other blocks would be
        assert stores[1].counter("checksum_failures_peer") == 1
        assert stores[0].counter("checksum_failures_memory") == 0
        assert stores[0].num_blocks() == 12


def test_a_block_that_went_bad_at_its_owner_is_removed_there(tmp_path: Path) -> None:
    with sharing_stores(tmp_path, 2, offer_delay_s=60.0) as stores:
        stores[0].put(KEYS)

        def spoil() -> None:
            store = stores[0].running.store
            store.arena.view(store.index.slot[store.index.find(KEYS[4])], 1)[0] ^= 1

        stores[0].do(spoil)
        assert stores[1].pull(KEYS) == 4
        assert stores[1].counter("checksum_failures_peer") >= 1
        assert stores[0].counter("checksum_failures_memory") == 1
        assert stores[0].num_blocks() == 4


def test_an_owner_that_stops_amid_a_transfer_costs_the_deadline_at_most(tmp_path: Path) -> None:
    with linked(tmp_path) as (stores, link):
        link.stall_at = 4 * BLOCK_BYTES
        start_s = time.monotonic()
        num = stores[1].pull(KEYS, timeout_s=1.0)
        assert time.monotonic() - start_s < 5.0
        assert num < 12
        wait_until(lambda: stores[1].counter("peer_transfers_failed") >= 1, "it is counted")
        assert 1 <= stores[1].num_blocks() < 12, "what came in time is kept"


def test_a_store_ends_although_a_transfer_hangs(tmp_path: Path) -> None:
    with linked(tmp_path) as (stores, link), ThreadPoolExecutor(1) as thread:
        link.stall_at = 4 * BLOCK_BYTES
        pulling = thread.submit(stores[1].pull, KEYS, 30.0)
        wait_until(lambda: link.num_connections == 1 and link.num_bytes > 0, "the transfer began")
        start_s = time.monotonic()
        stores[1].stop()
        assert time.monotonic() - start_s < 10.0
        assert pulling.result(timeout=10) < 12


def test_an_owner_that_dies_amid_a_transfer_leaves_what_came(tmp_path: Path) -> None:
    with linked(tmp_path) as (stores, link):
        link.on_cut = lambda: setattr(link, "refuse", True)
        link.cut_at = [ANSWER.size + 4 * BLOCK_BYTES + 100]
        assert stores[1].pull(KEYS, timeout_s=3.0) >= 4


def test_a_data_port_that_nobody_reaches_is_gone_around(tmp_path: Path) -> None:
    with linked(tmp_path) as (stores, link):
        link.close_port()
        assert stores[1].pull(KEYS) == 12
        assert link.num_connections == 0


def call(address: str, method: str, request: bytes, secret: bytes | None = SECRET.encode()) -> bytes:
    path = f"/{SERVICE}/{method}"
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        metadata = tuple(Signer(secret).sign_call(path, request))
        answer: bytes = channel.unary_unary(path, None, None)(request, timeout=10, metadata=metadata)
        return answer


def grant(address: str, tenant: str = "a", keys: list[bytes] = KEYS) -> kv_peer_pb2.GrantResponse:
    scope = pb.Scope(tenant=tenant, fingerprint=b"f")
    request = kv_peer_pb2.GrantRequest(scope=scope, keys=join_keys(keys))
    return kv_peer_pb2.GrantResponse.FromString(call(address, "Grant", request.SerializeToString()))


def read(address: str, hello: Hello) -> tuple[int, bytes]:
    """(status, payloads) over gRPC."""
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        body = hello.pack()
        metadata = tuple(Signer(SECRET.encode()).sign_call(READ, body))
        parts = list(channel.unary_stream(READ, None, None)(body, timeout=10, metadata=metadata))
    answer = unpack_reply(ANSWER, parts[0])
    assert answer is not None
    return answer[0], b"".join(parts[1:])


def test_a_ticket_is_for_its_tenant_and_blocks_and_for_once(tmp_path: Path) -> None:
    with sharing_stores(tmp_path, 1) as stores:
        stores[0].put(KEYS)
        stores[0].put(chain(2, 2), tenant="b")
        address = stores[0].address
        assert not grant(address, tenant="b").tickets, "another tenant's blocks are none"
        [ticket] = grant(address).tickets
        for binding in (binding_of("b", b"f", KEYS), binding_of("a", b"g", KEYS), binding_of("a", b"f", KEYS[1:])):
            assert read(address, Hello(ticket, binding, 0, BLOCK_BYTES)) == (Status.NO_SUCH_TICKET, b"")
        right = binding_of("a", b"f", KEYS)
        assert read(address, Hello(bytes(32), right, 0, BLOCK_BYTES)) == (Status.NO_SUCH_TICKET, b"")
        status, payloads = read(address, Hello(ticket, right, 0, 12 * BLOCK_BYTES))
        assert (status, len(payloads)) == (Status.OK, 12 * BLOCK_BYTES)
        assert read(address, Hello(ticket, right, 0, BLOCK_BYTES)) == (Status.NO_SUCH_TICKET, b"")
        assert stores[0].do(lambda: len(stores[0].running.store.sessions)) == 0, "nothing is held any more"


def test_tickets_take_no_clients_place(tmp_path: Path) -> None:
    """A peer that asks for tickets and uses none keeps nobody from opening a session; its tickets are bounded alone."""
    with sharing_stores(tmp_path, 1, store={"limits": StoreLimits(max_sessions=2)}, max_transfers=1) as stores:
        stores[0].put(KEYS)
        for _ in range(16):  # for each transfer at a time
            assert len(grant(stores[0].address, keys=KEYS[:1]).tickets) == 1
        with pytest.raises(grpc.RpcError) as refusal:
            grant(stores[0].address, keys=KEYS[:1])
        assert refusal.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        first, second = stores[0].running.client(), stores[0].running.client()
        for client in (first, second):
            assert client.lookup(KEYS) == (12, 12)
            assert client.problem == ""
        third = stores[0].running.client()
        assert third.lookup(KEYS) == (0, 0)
        assert stores[0].do(lambda: stores[0].running.store.num_clients) == 2
        for client in (first, second, third):
            client.close()


def test_a_ticket_that_nobody_uses_holds_its_blocks_for_its_time_only(tmp_path: Path) -> None:
    with sharing_stores(tmp_path, 1, ticket_timeout_s=0.3) as stores:
        stores[0].put(KEYS)
        [ticket] = grant(stores[0].address).tickets
        wait_until(lambda: stores[0].do(lambda: len(stores[0].running.store.sessions)) == 0, "the leases end")
        hello = Hello(ticket, binding_of("a", b"f", KEYS), 0, BLOCK_BYTES)
        assert read(stores[0].address, hello) == (Status.NO_SUCH_TICKET, b"")


@pytest.mark.parametrize("secret", [None, b"another secret altogether"])
@pytest.mark.parametrize("method", ["Locate", "Grant", "Offer", "Suspect"])
def test_strangers_get_nothing(tmp_path: Path, method: str, secret: bytes | None) -> None:
    with sharing_stores(tmp_path, 1) as stores:
        stores[0].put(KEYS)
        with pytest.raises(grpc.RpcError) as refused:
            call(stores[0].address, method, b"", secret)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        wait_until(lambda: stores[0].counter("peer_calls_refused") == 1, "it is counted")


def test_a_store_with_another_secret_is_not_believed(tmp_path: Path) -> None:
    with contextlib.ExitStack() as ending:
        stores = ending.enter_context(sharing_stores(tmp_path, 1))
        stores[0].put(KEYS)
        (tmp_path / "secret").write_text("a secret of somebody else")
        stranger = add_store(stores, ending, 1)
        stranger.put(chain(3, 4))
        stores.write_list()
        assert stranger.pull(KEYS) == 0
        assert stores[0].pull(chain(3, 4)) == 0


@pytest.mark.parametrize(
    "body",
    [
        b"\xff" * 40,
        kv_peer_pb2.GrantRequest(keys=b"x" * 17).SerializeToString(),
        kv_peer_pb2.GrantRequest(keys=b"x" * 16 * 16_385).SerializeToString(),
        kv_peer_pb2.GrantRequest(keys=key(1), scope=pb.Scope(session=b"s" * 16)).SerializeToString(),
    ],
)
def test_wrong_calls_are_refused(tmp_path: Path, body: bytes) -> None:
    with sharing_stores(tmp_path, 1) as stores:
        with pytest.raises(grpc.RpcError) as refused:
            call(stores[0].address, "Grant", body)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("address", ["127.0.0.1:1", "10.9.8.7:99", "nonsense", ""])
def test_offers_of_those_who_are_no_peers_are_not_taken(tmp_path: Path, address: str) -> None:
    with sharing_stores(tmp_path, 1) as stores:
        scope = pb.Scope(tenant="a", fingerprint=b"f")
        request = kv_peer_pb2.OfferRequest(scope=scope, keys=join_keys(KEYS), block_bytes=8192, address=address)
        answer = call(stores[0].address, "Offer", request.SerializeToString())
        assert kv_peer_pb2.OfferResponse.FromString(answer).num_wanted == 0
        assert stores[0].counter("offers_refused") == 1


@pytest.mark.parametrize("transport", ["tcp", "grpc"])
def test_with_certificates_no_secret_is_needed(tmp_path: Path, transport: str) -> None:
    files = tls_files(tmp_path, ["127.0.0.1", "127.0.0.2"])
    with sharing_stores(tmp_path, 2, tls=files, secret_file="", transport=transport) as stores:
        stores[0].put(KEYS)
        assert stores[1].pull(KEYS) == 12
        with pytest.raises(grpc.RpcError):
            call(stores[0].address, "Grant", b"", None)


def test_blocks_of_another_size_are_refused(tmp_path: Path) -> None:
    with sharing_stores(tmp_path, 2, offer_delay_s=60.0) as stores:
        stores[0].put(KEYS)
        client = stores[1].running.client(block_bytes=4096)
        client.lookup(KEYS)
        assert client.prefetch(KEYS, 5.0) == 0
        client.close()
        assert stores[1].counter("peer_failures") >= 1
