"""Stands in for `shoal.operator.substrate` where a command is tested: a mesh that is whatever a test says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self


class MeshInterrupted(Exception):
    """As in the operator."""


class MeshError(Exception):
    """As in the operator."""


@dataclass(frozen=True)
class Event:
    """As in the operator."""

    component: str
    state: str
    detail: str = ""
    progress: float | None = None


class FakeSubstrate:
    """Give it to a command as the module. `on_ready` runs once a mesh is up; `on_drain` when it is left, and then the
    mesh drains until it is killed.
    """

    MeshInterrupted = MeshInterrupted
    MeshError = MeshError

    def __init__(
        self,
        endpoint: str = "127.0.0.1:1",
        *,
        kv_store: str = "",
        fail: Exception | None = None,
        on_ready: Callable[[], None] = lambda: None,
        on_drain: Callable[[], None] | None = None,
    ) -> None:
        self.endpoint, self.kv_store = endpoint, kv_store
        self.fail = fail
        self.on_ready = on_ready
        self.on_drain = on_drain
        self.left = False

    def LocalMesh(self, service: Any, *, on_event: Callable[[Event], None], **options: Any) -> FakeMesh:
        return FakeMesh(self, on_event)


class FakeMesh:
    """As LocalMesh, without processes."""

    def __init__(self, substrate: FakeSubstrate, on_event: Callable[[Event], None]) -> None:
        self._substrate = substrate
        self._on_event = on_event
        self._stop = asyncio.Event()
        self._killed = asyncio.Event()
        self.endpoint, self.kv_store = substrate.endpoint, substrate.kv_store

    async def __aenter__(self) -> Self:
        self._on_event(Event("worker-0", "starting"))
        if self._substrate.fail is not None:
            raise self._substrate.fail
        self._on_event(Event("worker-0", "ready"))
        asyncio.get_running_loop().call_soon(self._substrate.on_ready)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._stop.set()
        if self._substrate.on_drain is not None:
            self._substrate.on_drain()
            await asyncio.wait_for(self._killed.wait(), 10)
        self._substrate.left = True

    async def wait(self) -> None:
        await self._stop.wait()

    def request_stop(self) -> None:
        if self._stop.is_set():
            self._killed.set()
        self._stop.set()
