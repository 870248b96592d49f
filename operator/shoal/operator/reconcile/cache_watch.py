"""Asks every gateway now and then what it thinks of the workers' caches."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final

import aiohttp
import structlog

from shoal.operator.planner.kubernetes import Manifest
from shoal.operator.planner.kubernetes.names import COMPONENT_LABEL
from shoal.operator.reconcile.caches import CachesState, Reading, judge_caches, parse_reading
from shoal.operator.reconcile.object_store import Key

_TIMEOUT_S: Final = 2.0
_MAX_BYTES: Final = 8 << 20
_MAX_AT_ONCE: Final = 32
_WINDOW: Final = 7
"""Readings of a gateway that are kept: a minute, at one each ten seconds."""
_UNKNOWN: Final = CachesState()
_log = structlog.get_logger("shoal.operator")
Fetch = Callable[[str], Awaitable[str]]
"""URL -> text of a page. Raises OSError, saying why, when it cannot be had in time."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """A pod that can be asked."""

    pod: str
    uid: str
    url: str


class CacheWatch:
    """What the gateways of each InferenceService said last. Belongs to one event loop."""

    def __init__(self, fetch: Fetch, on_change: Callable[[Key], object]) -> None:
        """on_change: called with the InferenceService whose state is another than before."""
        self._fetch = fetch
        self._on_change = on_change
        self._readings: dict[Key, dict[str, tuple[str, deque[Reading]]]] = {}
        """By pod: its uid, and what it said, oldest first."""
        self._states: dict[Key, CachesState] = {}
        self._slots = asyncio.Semaphore(_MAX_AT_ONCE)

    def state(self, key: Key) -> CachesState:
        """As of the last look."""
        return self._states.get(key, _UNKNOWN)

    async def look(self, gateways: Mapping[Key, Iterable[Gateway]]) -> None:
        """Asks all of them once; who is not among them is forgotten."""
        for key in self._states.keys() - gateways.keys():
            self._states.pop(key)
            self._readings.pop(key, None)
        await asyncio.gather(*(self._look_at(key, tuple(pods)) for key, pods in gateways.items()))

    async def _look_at(self, key: Key, gateways: tuple[Gateway, ...]) -> None:
        known = self._readings.get(key, {})
        unreachable: dict[str, str] = {}
        readings: dict[str, tuple[str, deque[Reading]]] = {}
        for gateway, found in zip(gateways, await asyncio.gather(*map(self._read, gateways)), strict=True):
            if isinstance(found, str):
                unreachable[gateway.pod] = found
                continue
            uid, kept = known.get(gateway.pod, (gateway.uid, deque[Reading](maxlen=_WINDOW)))
            if uid != gateway.uid or (kept and _has_restarted(kept[-1], found)):
                kept = deque(maxlen=_WINDOW)
            kept.append(found)
            readings[gateway.pod] = gateway.uid, kept
        self._readings[key] = readings
        state = judge_caches({pod: kept for pod, (_, kept) in readings.items()}, unreachable)
        before = self._states.get(key, _UNKNOWN)
        self._states[key] = state
        if state != before:
            self._on_change(key)

    async def _read(self, gateway: Gateway) -> Reading | str:
        async with self._slots:
            try:
                return parse_reading(await self._fetch(gateway.url))
            except OSError as error:
                return str(error)
            except ValueError as error:
                return f"its metrics make no sense: {error}"
            except Exception as error:  # what one pod says must not keep the others from being asked
                _log.exception("a gateway cannot be asked", pod=gateway.pod)
                return f"the operator has a bug: {type(error).__name__}"


class MetricsFetcher:
    """Fetches pages over HTTP, with a deadline and a limit. Use as an asynchronous context manager."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> MetricsFetcher:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S), trust_env=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def fetch(self, url: str) -> str:
        """Raises OSError."""
        assert self._session is not None, "entered"
        try:
            async with self._session.get(url) as response:
                if response.status != 200:
                    raise OSError(f"{url} answers {response.status}")
                content = b""
                async for chunk in response.content.iter_any():
                    content += chunk
                    if len(content) > _MAX_BYTES:
                        raise OSError(f"{url} answers with more than {_MAX_BYTES} bytes")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise OSError(f"{url}: {error or type(error).__name__}") from None
        return content.decode(errors="replace")


def gateways_among(pods: Iterable[Manifest]) -> list[Gateway]:
    """Ready gateways, by their pods."""
    found = []
    for pod in pods:
        metadata, status = pod["metadata"], pod.get("status", {})
        address = status.get("podIP")
        is_ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", ()))
        if metadata["labels"].get(COMPONENT_LABEL) != "gateway" or not address or not is_ready:
            continue
        port = _metrics_port(pod)
        if port is not None and not metadata.get("deletionTimestamp"):
            host = f"[{address}]" if ":" in address else address
            found.append(Gateway(metadata["name"], metadata["uid"], f"http://{host}:{port}/metrics"))
    return found


def _metrics_port(pod: Manifest) -> int | None:
    for container in pod["spec"].get("containers", ()):
        for port in container.get("ports", ()):
            if container["name"] == "gateway" and port.get("name") == "metrics":
                return int(port["containerPort"])
    return None


def _has_restarted(before: Reading, found: Reading) -> bool:
    """Counters only grow."""
    return sum(found.predicted_tokens.values()) < sum(before.predicted_tokens.values())
