"""From a source to a name: fetch, check, keep, tell."""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import structlog

from shoal.artifacts import LogProgress, parse_adapter_source, resolve, resolve_adapter
from shoal.lora_registry.adapters import CONFIG_FILE, WEIGHTS_FILE, Adapter, BaseModel, read_base_model
from shoal.lora_registry.detached import run_detached
from shoal.lora_registry.errors import AdapterRefused
from shoal.lora_registry.events import EventLog
from shoal.lora_registry.store import AdapterStore, Published

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
_T = TypeVar("_T")
_log = structlog.get_logger("shoal.lora_registry")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """An adapter that is to be there."""

    name: str
    uri: str
    sha256: str = ""
    """Of the weights; empty: any."""
    rank: int = 0
    """0: any."""
    digest: str = ""
    """Of the version; empty: any."""
    is_set: bool = False
    """Whether the settings want it."""

    def check(self, adapter: Adapter, weights: str) -> None:
        """weights: their sha256. Raises AdapterRefused when it is another one."""
        if self.rank and adapter.rank != self.rank:
            raise AdapterRefused(f"{CONFIG_FILE}: r: {adapter.rank}; rank {self.rank} was asked for")
        if self.sha256 and weights != self.sha256.lower():
            raise AdapterRefused(f"{WEIGHTS_FILE}: sha256 is {weights}; {self.sha256.lower()} was asked for")
        if self.digest and adapter.digest != self.digest.lower():
            raise AdapterRefused(f"its digest is {adapter.digest}; {self.digest.lower()} was asked for")


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchOptions:
    """How sources are read."""

    work_dir: Path
    """Where what is fetched is until it is kept."""
    cache_dir: Path | None = None
    """Where it stays, for the next time; None: nowhere."""
    base_config: str = ""
    """config.json of the base model; empty: adapters are not compared with it."""
    offline: bool = False
    timeout_s: float = 1800.0
    max_concurrent: int = 4


class Publisher:
    """One at a time for a name, a few at a time in all. Used by one event loop alone."""

    def __init__(
        self,
        store: AdapterStore,
        events: EventLog,
        options: FetchOptions,
        count: Callable[[str], None] = lambda result: None,
    ) -> None:
        """count: told `changed`, `unchanged` or `failed` of each that is published."""
        self._count = count
        self._store = store
        self._events = events
        self._options = options
        self._slots = asyncio.Semaphore(options.max_concurrent)
        self._names: dict[str, tuple[asyncio.Lock, list[None]]] = {}
        self._base_model: BaseModel | None = None
        self._base_lock = threading.Lock()
        self._jobs: set[asyncio.Task[object]] = set()

    @property
    def num_pending(self) -> int:
        """Waiting or under way, also for callers that have left."""
        return len(self._jobs)

    async def publish(self, wanted: Wanted) -> Published:
        """Raises AdapterRefused, NoRoom, ArtifactError, OSError. Goes on if the caller leaves."""
        return await self._finish(self._publish(wanted))

    async def remove(self, name: str) -> bool:
        """Whether it was there. Raises OSError. Goes on if the caller leaves."""
        return await self._finish(self._remove(name))

    async def _finish(self, work: Coroutine[object, object, _T]) -> _T:
        job = asyncio.ensure_future(work)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        job.add_done_callback(lambda done: done.cancelled() or done.exception())  # heard, also when nobody waits
        return await asyncio.shield(job)

    async def drop(self, digest: str) -> list[str]:
        """Takes a damaged version away. The names that pointed to it. Raises OSError."""
        lost = await run_detached(partial(self._store.drop, digest), "drop")
        for record in lost:
            self._events.note(record.name)
        _log.error("a version was damaged and is gone", digest=digest, names=[record.name for record in lost])
        return [record.name for record in lost]

    async def _publish(self, wanted: Wanted) -> Published:
        try:
            async with self._alone(wanted.name), self._slots:
                published = await run_detached(partial(self._fetch_and_keep, wanted), "publish")
        except Exception:
            self._count("failed")
            raise
        self._count("changed" if published.changed else "unchanged")
        self._events.note(wanted.name)
        _log.info(
            "published",
            name=wanted.name,
            version=published.name.current,
            digest=published.record.digest,
            rank=published.record.adapter.rank,
            num_bytes=published.record.num_bytes,
            changed=published.changed,
        )
        return published

    async def _remove(self, name: str) -> bool:
        async with self._alone(name):
            removed = await run_detached(partial(self._store.remove, name), "remove")
        self._events.note(name)
        if removed:
            _log.info("removed", name=name)
        return removed

    def _fetch_and_keep(self, wanted: Wanted) -> Published:
        base_model = self._read_base_model()
        kept = self._kept(wanted)
        if kept is not None:
            if base_model is not None:
                self._store.fits(kept.record.digest, base_model)
            return kept
        options = self._options
        with self._folder() as folder:
            source = resolve_adapter(
                wanted.uri,
                folder,
                sha256=wanted.sha256 or None,
                cache_dir=options.cache_dir or folder,
                progress=LogProgress(wanted.name),
                max_bytes=self._store.limits.max_adapter_bytes,
                offline=options.offline,
                timeout_s=options.timeout_s,
            )
            return self._store.publish(
                wanted.name, source, wanted.uri, check=wanted.check, base_model=base_model, is_set=wanted.is_set
            )

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        folder = Path(tempfile.mkdtemp(dir=self._options.work_dir))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _kept(self, wanted: Wanted) -> Published | None:
        """What the name points to, if that is for certain what is wanted: its digest is pinned."""
        pin = parse_adapter_source(wanted.uri, wanted.sha256 or None).sha256
        name, found = self._store.name(wanted.name), self._store.resolve(wanted.name)
        if name is None or found is None or name.is_set != wanted.is_set or found[1].uri != wanted.uri:
            return None
        weights = found[1].files[WEIGHTS_FILE].sha256.hex()
        if not wanted.digest and weights != pin:
            return None
        try:
            wanted.check(found[1].adapter, weights)
        except AdapterRefused:
            return None
        return Published(name, found[1], changed=False)

    def _read_base_model(self) -> BaseModel | None:
        source = self._options.base_config
        if not source:
            return None
        with self._base_lock:
            if self._base_model is None:
                with self._folder() as folder:
                    cache_dir = self._options.cache_dir or folder
                    path = resolve(source, cache_dir=cache_dir, offline=self._options.offline, timeout_s=120)
                    try:
                        self._base_model = read_base_model(path)
                    except (OSError, ValueError) as error:
                        raise AdapterRefused(f"the base model's {source} cannot be read: {error}") from error
            return self._base_model

    @asynccontextmanager
    async def _alone(self, name: str) -> AsyncIterator[None]:
        lock, users = self._names.setdefault(name, (asyncio.Lock(), []))
        users.append(None)
        try:
            async with lock:
                yield
        finally:
            users.pop()
            if not users:
                del self._names[name]
