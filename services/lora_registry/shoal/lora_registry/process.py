"""Builds the registry from its settings and takes it down again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from shoal.lora_registry.config import LoraRegistryConfig
from shoal.lora_registry.events import EventLog
from shoal.lora_registry.metrics import DAMAGED, PUBLISHES
from shoal.lora_registry.publishing import FetchOptions, Publisher
from shoal.lora_registry.servicer import Limits, LoraRegistryServicer
from shoal.lora_registry.settings_file import FollowOptions, SettingsFollower
from shoal.lora_registry.store import AdapterStore, StoreLimits

_READERS: Final = 4
_log = structlog.get_logger("shoal.lora_registry")


@dataclass(frozen=True, slots=True)
class Registry:
    """Its parts while it runs."""

    store: AdapterStore
    events: EventLog
    follower: SettingsFollower
    servicer: LoraRegistryServicer


def open_store(config: LoraRegistryConfig) -> AdapterStore:
    """Verifies everything that is kept. Blocks. Raises OSError."""
    limits = StoreLimits(max_bytes=config.max_bytes, max_adapter_bytes=min(config.max_adapter_bytes, config.max_bytes))
    store = AdapterStore(Path(config.folder).expanduser().absolute(), limits)
    for what in store.dropped:
        DAMAGED.inc()
        _log.error("damaged, and gone", what=what)
    _log.info("verified", num_versions=len(store.versions()), num_bytes=store.used_bytes, num_names=len(store.names()))
    return store


@asynccontextmanager
async def open_registry(config: LoraRegistryConfig, store: AdapterStore) -> AsyncIterator[Registry]:
    """Answers calls and follows the settings' file, until the context ends."""
    events = EventLog(store, config.event_buffer)
    options = FetchOptions(
        work_dir=store.incoming,
        cache_dir=Path(config.source_cache) if config.source_cache else None,
        base_config=config.base_config,
        offline=config.offline,
        timeout_s=config.fetch_timeout_s,
        max_concurrent=config.max_publishes,
    )
    publisher = Publisher(store, events, options, count=lambda result: PUBLISHES.labels(result).inc())
    follow = FollowOptions(poll_s=config.adapters_poll_s, retry_s=config.adapters_retry_s)
    path = Path(config.adapters_file) if config.adapters_file else None
    follower = SettingsFollower(path, store, publisher, follow)
    limits = Limits(read_only=config.read_only, max_pending=config.max_pending, max_fetches=config.max_fetches)
    with ThreadPoolExecutor(_READERS, thread_name_prefix="read") as readers:
        following = asyncio.create_task(follower.run())
        try:
            servicer = LoraRegistryServicer(store, publisher, events, follower, readers, limits)
            yield Registry(store, events, follower, servicer)
        finally:
            events.close()
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following


async def wait_for_adapters(registry: Registry, timeout_s: float, stop: asyncio.Event) -> None:
    """Until every adapter of the file was tried, the time is over, or the process is told to end."""
    waits = [asyncio.ensure_future(each.wait()) for each in (registry.follower.looked, stop)]
    try:
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    if not registry.follower.looked.is_set():
        _log.warning("answers calls before all adapters are there", timeout_s=timeout_s)
