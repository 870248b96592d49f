"""Several KV stores that share blocks, in this process: a thread each, and addresses of their own on the loopback."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from shoal.kv_store.remote.exchange import Chain, Exchange
from shoal.kv_store.remote.opening import RemoteSettings, open_exchange
from shoal.kv_store.remote.tls import TlsFiles
from support.eventually import wait_until
from support.kv_store_running import BLOCK_BYTES, ROOT, RunningStore, key, payload, running_store

SECRET = "a secret that all stores know"
_T = TypeVar("_T")


@dataclass(slots=True)
class SharingStore:
    """A store and its sharing; touched only through `do` and `run`, which run in its thread."""

    running: RunningStore
    exchange: Exchange
    address: str
    _stop: Callable[[], None] = lambda: None

    def do(self, call: Callable[[], _T]) -> _T:
        return self.running.do(lambda _: call())

    def run(self, start: Callable[[], Awaitable[_T]], timeout_s: float = 20.0) -> _T:
        async def call() -> _T:
            return await start()

        return asyncio.run_coroutine_threadsafe(call(), self.running.loop).result(timeout_s)

    def put(self, keys: Sequence[bytes], tenant: str = "a") -> None:
        """Stores a chain from its first block on, by a client on its socket."""
        client = self.running.client(tenant=tenant)
        try:
            contents = [payload_of(each) for each in keys]
            result = client.put(keys, contents, parent_key=ROOT, namespace_key=ROOT)
            assert result.num_visible == len(keys), result
        finally:
            client.close()

    def get(self, keys: Sequence[bytes], tenant: str = "a") -> int:
        """Leading blocks that are in this store's memory, each of them with the bytes that were stored."""
        client = self.running.client(tenant=tenant)
        try:
            buffers = [bytearray(BLOCK_BYTES) for _ in keys]
            num = client.get(keys, buffers)
            for position in range(num):
                assert buffers[position] == payload_of(keys[position])
            return num
        finally:
            client.close()

    def pull(self, keys: Sequence[bytes], timeout_s: float = 5.0, tenant: str = "a") -> int:
        """Pulls from others; leading blocks that are here afterwards, verified."""
        import time

        self.open_scope(tenant)
        scope = self.do(lambda: self.running.store.scopes.find(tenant, b"f"))
        assert scope is not None
        self.run(lambda: self.exchange.pull(scope, Chain(keys), time.monotonic() + timeout_s))
        return self.get(keys, tenant)

    def locate(self, keys: Sequence[bytes], timeout_s: float = 5.0, tenant: str = "a") -> int:
        """Leading blocks that are here or that another store has."""
        self.open_scope(tenant)
        scope = self.do(lambda: self.running.store.scopes.find(tenant, b"f"))
        assert scope is not None
        return self.run(lambda: self.exchange.locate(scope, Chain(keys), 0, timeout_s))

    def open_scope(self, tenant: str) -> None:
        client = self.running.client(tenant=tenant)
        client.lookup([key(1)])
        client.close()

    def counter(self, name: str) -> int:
        return self.do(lambda: self.running.store.counters[name])

    def num_blocks(self) -> int:
        return self.do(lambda: len(self.running.store.index))

    def stop(self) -> None:
        """Ends sharing as a dead store does: whoever calls finds nobody."""
        self._stop()


@dataclass(slots=True)
class SharingStores:
    """Stores by their place, and how to start more."""

    folder: Path
    stores: list[SharingStore] = field(default_factory=list)

    def __getitem__(self, place: int) -> SharingStore:
        return self.stores[place]

    @property
    def list_path(self) -> Path:
        return self.folder / "peers"

    def write_list(self, *more: str, without: Sequence[str] = ()) -> None:
        """Names every store to all of them, and waits until all have heard."""
        hosts = sorted(({each.address for each in self.stores} | set(more)) - set(without))
        fresh = self.folder / "peers.new"
        fresh.write_text("# stores\n" + "".join(f"{host}\n" for host in hosts))
        fresh.rename(self.list_path)
        for each in self.stores:
            if each.address not in without:
                wait_until(lambda each=each: list(each.exchange.addresses.hosts) == hosts, "the list is read")  # type: ignore[misc]


@contextmanager
def sharing_stores(folder: Path, num: int, **settings: Any) -> Iterator[SharingStores]:
    """`num` stores that know each other, ended with the context. settings: of RemoteSettings, or `store`: a dict."""
    stores = SharingStores(folder)
    stores.list_path.write_text("")
    (folder / "secret").write_text(settings.pop("secret", SECRET))
    with contextlib.ExitStack() as ending:
        for place in range(num):
            add_store(stores, ending, place, **settings)
        stores.write_list()
        yield stores


def add_store(stores: SharingStores, ending: contextlib.ExitStack, place: int, **settings: Any) -> SharingStore:
    """One more store, on 127.0.0.(place + 1), ended with `ending`; the others are told by `write_list`."""
    own_folder = stores.folder / f"store-{place}"
    own_folder.mkdir()
    options = dict(settings)
    running = ending.enter_context(running_store(own_folder, **options.pop("store", {})))
    given: dict[str, Any] = {
        "peers": f"file:{stores.list_path}",
        "own_address": "",
        "host": f"127.0.0.{place + 1}",
        "port": 0,
        "data_port": 0,
        "secret_file": str(stores.folder / "secret"),
        "tls": None,
        "transport": "tcp",
        "num_replicas": 2,
        "call_timeout_s": 5.0,
        "max_transfers": 2,
        "offer_delay_s": 0.05,
        "refresh_every_s": 0.05,
    }
    sharing = open_exchange(running.store, RemoteSettings(**(given | options)))

    def in_loop(start: Callable[[], Awaitable[Any]]) -> Any:
        async def call() -> Any:
            return await start()

        return asyncio.run_coroutine_threadsafe(call(), running.loop).result(timeout=20)

    exchange: Exchange = in_loop(sharing.__aenter__)
    running.control.exchange = exchange
    stopped: list[bool] = []

    def stop() -> None:
        if not stopped:
            stopped.append(True)
            in_loop(lambda: sharing.__aexit__(None, None, None))

    ending.callback(stop)
    store = SharingStore(running, exchange, exchange.addresses.own, stop)
    stores.stores.append(store)
    return store


def chain(name: int, num: int) -> list[bytes]:
    """Keys of a chain."""
    return [key(1_000_000 * name + position) for position in range(num)]


def payload_of(block_key: bytes) -> bytes:
    return payload(int.from_bytes(block_key, "big"))


def tls_files(folder: Path, hosts: Sequence[str]) -> TlsFiles:
    """Certificates for addresses, signed by an authority of their own. Takes the `openssl` command."""
    import subprocess

    def run(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=folder, timeout=60)

    key_type = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    run("req", "-x509", *key_type, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=stores", "-days", "2")
    run("req", "-new", *key_type, "-keyout", "own.key", "-out", "own.csr", "-subj", "/CN=store")
    names = ",".join(f"IP:{host}" for host in hosts)
    (folder / "names").write_text(f"subjectAltName={names}\n")
    signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
    run("x509", "-req", "-in", "own.csr", "-out", "own.pem", *signing)
    return TlsFiles(str(folder / "own.pem"), str(folder / "own.key"), str(folder / "ca.pem"))


@contextmanager
def black_hole(host: str) -> Iterator[str]:
    """An address that takes connections and never answers."""
    with socket.create_server((host, 0)) as listener:
        yield f"{host}:{listener.getsockname()[1]}"
