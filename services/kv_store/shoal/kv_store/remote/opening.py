"""Builds the sharing of a store from its settings, and ends it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog

from shoal.kv_store.config import KvStoreConfig
from shoal.kv_store.remote.addresses import Addresses
from shoal.kv_store.remote.answers import Answers
from shoal.kv_store.remote.auth import Signer, read_secret
from shoal.kv_store.remote.exchange import Exchange
from shoal.kv_store.remote.malloc import keep_large_blocks
from shoal.kv_store.remote.options import RemoteOptions
from shoal.kv_store.remote.peer_server import PeerServer
from shoal.kv_store.remote.tcp_server import TcpServer
from shoal.kv_store.remote.tickets import TicketBook
from shoal.kv_store.remote.tls import TlsFiles
from shoal.kv_store.remote.transfer import Transport
from shoal.kv_store.store import Store

EXPIRE_EVERY_S: Final = 1.0
CONNECTIONS_PER_TRANSFER: Final = 8
"""Of the data port: peers keep some open between transfers."""
_log = structlog.get_logger("shoal.kv_store")


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteSettings:
    """What an operator says of sharing."""

    peers: str
    """See `Addresses`."""
    own_address: str
    """What the others call this store; empty for the host and port that it listens on."""
    host: str
    port: int
    data_port: int
    public_data_port: int = 0
    """What others reach the data port by, where something lies between; 0 for the port itself."""
    secret_file: str
    tls: TlsFiles | None
    transport: Transport
    num_replicas: int
    call_timeout_s: float
    max_transfers: int
    ticket_timeout_s: float = 10.0
    offer_delay_s: float = 0.25
    hot_calls: int = 8
    stripe_bytes: int = 8 << 20
    refresh_every_s: float = 1.0


class SharingProblem(Exception):
    """Settings of sharing that do not fit each other, or files of theirs that cannot be used."""


def read_settings(config: KvStoreConfig) -> RemoteSettings:
    """Raises SharingProblem."""
    given = (config.peer_tls_cert, config.peer_tls_key, config.peer_tls_ca)
    if any(given) and not all(given):
        raise SharingProblem("peer_tls_cert, peer_tls_key, peer_tls_ca: give all three, or none")
    return RemoteSettings(
        peers=config.peers,
        own_address=config.peer_address,
        host=config.peer_host,
        port=config.peer_port,
        data_port=config.peer_data_port,
        secret_file=config.peer_secret_file,
        tls=TlsFiles(*given) if all(given) else None,
        transport=config.peer_transport,
        num_replicas=config.peer_replicas,
        call_timeout_s=config.peer_timeout_s,
        max_transfers=config.peer_transfers,
    )


def read_options(settings: RemoteSettings) -> RemoteOptions:
    """Raises SharingProblem."""
    if not settings.secret_file and settings.tls is None:
        raise SharingProblem("peers: stores that share need peer_secret_file, or certificates")
    try:
        secret = read_secret(settings.secret_file) if settings.secret_file else None
        if settings.tls is not None:
            settings.tls.server_context()
            settings.tls.client_context()
    except (OSError, ValueError, ssl.SSLError) as error:
        raise SharingProblem(f"peer_secret_file, peer_tls_*: {error}") from error
    return RemoteOptions(
        signer=Signer(secret),
        tls=settings.tls,
        transport=settings.transport,
        num_replicas=settings.num_replicas,
        call_timeout_s=settings.call_timeout_s,
        max_transfers=settings.max_transfers,
        ticket_timeout_s=settings.ticket_timeout_s,
        offer_delay_s=settings.offer_delay_s,
        hot_calls=settings.hot_calls,
        stripe_bytes=settings.stripe_bytes,
        refresh_every_s=settings.refresh_every_s,
    )


@asynccontextmanager
async def open_exchange(store: Store, settings: RemoteSettings) -> AsyncIterator[Exchange]:
    """Shares a store's blocks until the context ends. Raises SharingProblem, OSError."""
    options = read_options(settings)
    loop = asyncio.get_running_loop()
    keep_large_blocks()

    def post(call: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the store with it
            loop.call_soon_threadsafe(call)

    def count(name: str, num: int) -> None:
        post(partial(store.counters.add, name, num))

    book = TicketBook(max_tickets=16 * options.max_transfers)
    answers: list[Answers] = []
    async with contextlib.AsyncExitStack() as ending:
        data_port = 0
        if settings.transport == "tcp":
            server = TcpServer(
                (settings.host, settings.data_port),
                book,
                count,
                max_connections=CONNECTIONS_PER_TRANSFER * options.max_transfers,
                tls=settings.tls.server_context() if settings.tls is not None else None,
            )
            ending.callback(book.end_all)
            ending.push_async_callback(asyncio.to_thread, server.close)
            data_port = server.port
        peer_server = PeerServer(settings.host, settings.port, lambda: answers[0], book, options, count, loop)
        ending.push_async_callback(asyncio.to_thread, peer_server.close)
        own = settings.own_address or _joined(settings.host, peer_server.port)
        try:
            addresses = Addresses(settings.peers, own)
        except (OSError, ValueError) as error:
            raise SharingProblem(f"peers, peer_address: {error}") from error
        exchange = Exchange(store, addresses, options)
        ending.push_async_callback(exchange.close)
        told = data_port and (settings.public_data_port or data_port)
        answers.append(
            Answers(store, book, exchange.hotness, options, post, told, exchange.inbox.take, exchange.threads)
        )
        expiring = asyncio.create_task(store.housekeeping.repeat("tickets", EXPIRE_EVERY_S, partial(_expire, book)))
        ending.callback(expiring.cancel)
        _log.info("sharing", address=own, data_port=data_port, hosts=list(exchange.addresses.hosts))
        yield exchange


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _expire(book: TicketBook) -> None:
    book.expire()
