"""A KV store in a thread of this process, with its Unix socket, for clients in the test's own thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from shoal.kv_client import KvClient, KvClientOptions
from shoal.kv_store.arena import Arena
from shoal.kv_store.arena.chunk import chunk_file_bytes
from shoal.kv_store.control import Control
from shoal.kv_store.policy import make_policy
from shoal.kv_store.store import Store, StoreLimits
from shoal.kv_store.tenants import Tenants
from shoal.kv_store.unix_server import UnixServer

BLOCK_BYTES = 8192
ROOT = b"n" * 16
_T = TypeVar("_T")


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def payload(number: int, num_bytes: int = BLOCK_BYTES) -> bytes:
    return (number.to_bytes(8, "little") * (num_bytes // 8 + 1))[:num_bytes]


@dataclass(slots=True)
class RunningStore:
    """The store; touched only through `do`, which runs in its thread."""

    store: Store
    server: UnixServer
    path: Path
    loop: asyncio.AbstractEventLoop
    control: Control

    def do(self, call: Callable[[Store], _T]) -> _T:
        async def run() -> _T:
            return call(self.store)

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(timeout=10)

    def client(self, **options: Any) -> KvClient:
        defaults: dict[str, Any] = {
            "socket_path": str(self.path),
            "tenant": "a",
            "fingerprint": b"f",
            "block_bytes": BLOCK_BYTES,
            "num_staging_blocks": 16,
            "min_backoff_s": 0.0,
            "timeout_s": 5.0,
        }
        return KvClient(KvClientOptions(**(defaults | options)))


def num_stored(store: RunningStore) -> int:
    """Blocks that it has."""
    return store.do(lambda running: len(running.index))


def arena_bytes(num_blocks: int, block_bytes: int, blocks_per_chunk: int) -> int:
    """Memory for so many blocks, the generations of their slots included."""
    return -(-num_blocks // blocks_per_chunk) * chunk_file_bytes(blocks_per_chunk, block_bytes, "off")


@contextmanager
def running_store(
    folder: Path,
    *,
    num_blocks: int = 64,
    blocks_per_chunk: int = 8,
    limits: StoreLimits | None = None,
    clock: Callable[[], float] = time.monotonic,
    tenants: Tenants | None = None,
    policy: str = "lru",
) -> Iterator[RunningStore]:
    """An arena of `num_blocks` blocks of BLOCK_BYTES, ended with the context."""
    chunk_bytes = blocks_per_chunk * BLOCK_BYTES
    arena = Arena(arena_bytes(num_blocks, BLOCK_BYTES, blocks_per_chunk), chunk_bytes, "off")
    store = Store(arena, partial(make_policy, policy), limits or StoreLimits(), tenants, clock=clock)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> UnixServer:
        server = UnixServer(folder / "kv.sock", control)
        server.start(0o600)
        return server

    async def end(server: UnixServer) -> None:
        await server.close()
        store.close()

    with concurrent.futures.ThreadPoolExecutor(2) as copiers:
        control = Control(store, copiers, 1024)
        server = asyncio.run_coroutine_threadsafe(start(), loop).result(timeout=10)
        try:
            yield RunningStore(store, server, folder / "kv.sock", loop, control)
        finally:
            asyncio.run_coroutine_threadsafe(end(server), loop).result(timeout=10)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(timeout=10)
            loop.close()


def put(client: KvClient, *numbers: int, parent: bytes = ROOT) -> int:
    """Stores the payloads of some numbers, each the parent of the next; how many can be found then."""
    keys = [key(number) for number in numbers]
    result = client.put(keys, [payload(number) for number in numbers], parent_key=parent, namespace_key=ROOT)
    return result.num_visible
