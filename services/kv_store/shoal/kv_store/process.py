"""Builds the store from its settings and keeps house while it serves."""

from __future__ import annotations

import asyncio
import contextlib
import tomllib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

from shoal.kv_store.arena import Arena
from shoal.kv_store.config import KvStoreConfig
from shoal.kv_store.control import Control
from shoal.kv_store.disk import OutOfService, SegmentLog
from shoal.kv_store.disk_tier import DiskTier, Worth
from shoal.kv_store.policy import make_policy
from shoal.kv_store.store import Store, StoreLimits
from shoal.kv_store.unix_server import UnixServer

EXPIRE_EVERY_S: Final = 1.0


class SettingsProblem(Exception):
    """Settings that do not fit each other, or a file of theirs that cannot be used."""


def build_store(config: KvStoreConfig) -> Store:
    """Raises SettingsProblem."""
    if config.chunk_bytes % 4096 or config.chunk_bytes > config.memory_bytes:
        problem = f"chunk_bytes = {config.chunk_bytes}: give a multiple of 4096 up to memory_bytes"
        raise SettingsProblem(f"{problem} ({config.memory_bytes})")
    limits = StoreLimits(
        tenant_quota_bytes=config.tenant_quota_bytes or config.memory_bytes,
        lease_timeout_s=config.lease_timeout_s,
        max_sessions=config.max_sessions,
        max_staging_bytes=config.max_staging_bytes,
        event_buffer=config.event_buffer,
    )
    arena = Arena(config.memory_bytes, config.chunk_bytes, config.huge_pages)
    return Store(arena, partial(make_policy, config.policy), limits, huge_pages=config.huge_pages)


def read_tokens(path: str) -> dict[str, str] | None:
    """Hex sha256 of each tenant's token; None without a file. Raises SettingsProblem."""
    if not path:
        return None
    try:
        tenants = tomllib.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise SettingsProblem(f"tenants_file: {error}") from error
    for tenant, digest in tenants.items():
        if not isinstance(digest, str) or len(digest) != 64:
            raise SettingsProblem(f"tenants_file: {tenant} needs the sha256 of its token, 64 hexadecimal digits")
    return {tenant: digest.lower() for tenant, digest in tenants.items()}


def open_disk(config: KvStoreConfig, store: Store) -> DiskTier:
    """The SSD tier of a store, for the running loop. Raises SettingsProblem, OSError."""
    loop = asyncio.get_running_loop()

    def post(call: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the store with it
            loop.call_soon_threadsafe(call)

    worth = Worth(store.index, post, config.recompute_s)
    sizes = (config.disk_bytes, config.disk_segment_bytes, config.disk_io_timeout_s)
    try:
        log = SegmentLog(config.disk_folder, *sizes, retention=worth)
    except ValueError as error:
        raise SettingsProblem(f"disk_bytes, disk_segment_bytes: {error}") from error
    except OutOfService as error:
        raise OSError(str(error)) from error
    tier = DiskTier(log, store.memory, store.index, store.scopes, store.events, store.counters, post)
    worth.belong_to(tier)
    return tier


@asynccontextmanager
async def open_control(config: KvStoreConfig) -> AsyncIterator[Control]:
    """A store with its Unix socket, ended with the context. Raises SettingsProblem, OSError."""
    tokens = read_tokens(config.tenants_file)
    store = build_store(config)
    with ThreadPoolExecutor(config.copy_threads, thread_name_prefix="copy") as copiers:
        control = Control(store, copiers, config.max_batch_size, tokens)
        if config.disk_folder:
            store.attach_disk(open_disk(config, store))
        server = UnixServer(Path(config.socket_path), control)
        server.start(int(config.socket_mode, 8))
        housekeeping = asyncio.create_task(_keep_house(store, server))
        try:
            yield control
        finally:
            housekeeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await housekeeping
            await server.close()
            store.close()


async def _keep_house(store: Store, server: UnixServer) -> None:
    while True:
        await asyncio.sleep(EXPIRE_EVERY_S)
        for session in store.expire():
            server.end_session(session)
