"""Builds the store from its settings and keeps house while it serves."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from shoal.kv_store.arena import Arena, HugePagesMissing, grant_huge_pages
from shoal.kv_store.config import KvStoreConfig
from shoal.kv_store.control import Control
from shoal.kv_store.disk import LogOptions, OutOfService, SegmentLog, ShuffledZstd
from shoal.kv_store.disk_tier import DiskTier
from shoal.kv_store.policy import make_policy
from shoal.kv_store.remote.exchange import Exchange
from shoal.kv_store.remote.opening import SharingProblem, open_exchange, read_settings
from shoal.kv_store.store import Store, StoreLimits
from shoal.kv_store.tenants import TenantsProblem, read_tenants
from shoal.kv_store.unix_server import UnixServer
from shoal.kv_store.worth import Worth

_log = structlog.get_logger("shoal.kv_store")
EXPIRE_EVERY_S: Final = 1.0


class SettingsProblem(Exception):
    """Settings that do not fit each other, or a file of theirs that cannot be used."""


def check_control(config: KvStoreConfig) -> None:
    """Raises SettingsProblem where tokens would travel in the clear."""
    if config.tenants_file and not _is_loopback(config.host):
        raise SettingsProblem(
            f"host = {config.host} with tenants_file: calls on this port carry tokens, and the port has no TLS; listen "
            "on 127.0.0.1 or ::1, where a proxy with TLS may reach it, or let clients use the Unix socket"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def build_store(config: KvStoreConfig) -> Store:
    """Raises SettingsProblem."""
    check_control(config)
    if config.chunk_bytes % 4096 or config.chunk_bytes > config.memory_bytes:
        problem = f"chunk_bytes = {config.chunk_bytes}: give a multiple of 4096 up to memory_bytes"
        raise SettingsProblem(f"{problem} ({config.memory_bytes})")
    try:
        tenants = read_tenants(
            config.tenants_file,
            config.tenant_quota_bytes or config.memory_bytes,
            config.tenant_disk_quota_bytes or config.disk_bytes,
        )
    except TenantsProblem as problem:
        raise SettingsProblem(str(problem)) from problem
    limits = StoreLimits(
        lease_timeout_s=config.lease_timeout_s,
        max_sessions=config.max_sessions,
        max_staging_bytes=config.max_staging_bytes,
        event_buffer=config.event_buffer,
        ttl_s=config.ttl_s,
        pinned_fraction=config.pinned_fraction,
    )
    try:
        huge_pages = grant_huge_pages(config.huge_pages, config.memory_bytes)
    except HugePagesMissing as problem:
        raise SettingsProblem(str(problem)) from problem
    if huge_pages.problem:
        _log.warning("no huge pages", asked=huge_pages.asked, error=huge_pages.problem)
    arena = Arena(config.memory_bytes, config.chunk_bytes, config.huge_pages)
    return Store(arena, partial(make_policy, config.policy), limits, tenants, huge_pages=huge_pages)


def open_disk(config: KvStoreConfig, store: Store) -> DiskTier:
    """The SSD tier of a store, for the running loop. Raises SettingsProblem, OSError."""
    loop = asyncio.get_running_loop()

    def post(call: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the store with it
            loop.call_soon_threadsafe(call)

    worth = Worth(store.index, post, config.recompute_s)
    sizes = (config.disk_bytes, config.disk_segment_bytes, config.disk_io_timeout_s)
    try:
        codec = ShuffledZstd(config.disk_element_bytes) if config.disk_codec == "zstd" else None
    except ModuleNotFoundError as error:
        raise SettingsProblem(f"disk_codec: {error}") from error
    try:
        log = SegmentLog(config.disk_folder, *sizes, retention=worth, options=LogOptions(codec=codec))
    except ValueError as error:
        raise SettingsProblem(f"disk_bytes, disk_segment_bytes: {error}") from error
    except OutOfService as error:
        raise OSError(str(error)) from error
    quota_bytes = store.tenants.disk_quota
    parts = (store.memory, store.index, store.scopes, store.events, store.counters)
    tier = DiskTier(log, *parts, post, quota_bytes, store.clock)
    worth.belong_to(tier)
    return tier


@asynccontextmanager
async def open_control(config: KvStoreConfig) -> AsyncIterator[Control]:
    """A store with its Unix socket, ended with the context. Raises SettingsProblem, OSError."""
    store = build_store(config)
    with ThreadPoolExecutor(config.copy_threads, thread_name_prefix="copy") as copiers:
        control = Control(store, copiers, config.max_batch_size)
        if config.disk_folder:
            store.attach_disk(open_disk(config, store))
        server = UnixServer(Path(config.socket_path), control)
        server.start(int(config.socket_mode, 8))
        housekeeping = asyncio.create_task(
            store.housekeeping.repeat("expiry", EXPIRE_EVERY_S, partial(_keep_house, store, server))
        )
        try:
            async with _sharing(config, store) as control.exchange:
                yield control
        finally:
            housekeeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await housekeeping
            await server.close()
            store.close()


@asynccontextmanager
async def _sharing(config: KvStoreConfig, store: Store) -> AsyncIterator[Exchange | None]:
    """Sharing with other stores, where there are any. Raises SettingsProblem, OSError."""
    if not config.peers:
        yield None
        return
    try:
        async with open_exchange(store, read_settings(config)) as exchange:
            yield exchange
    except SharingProblem as problem:
        raise SettingsProblem(str(problem)) from problem


def _keep_house(store: Store, server: UnixServer) -> None:
    for session in store.expire():
        server.end_session(session)
