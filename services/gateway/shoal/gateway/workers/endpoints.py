"""Where the list of workers comes from. Envoy's own EDS file is the first source, so both always see the same list."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import structlog

POLL_INTERVAL_S: Final = 0.5
MAX_FILE_BYTES: Final = 16 << 20
_log = structlog.get_logger("shoal.gateway.workers")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One worker's address, as Envoy knows it."""

    address: str
    """ip:port; an IPv6 address in brackets."""
    healthy: bool = True
    """False while EDS says UNHEALTHY, DRAINING or TIMEOUT: kept, but not picked."""


class EndpointSource(Protocol):
    """A list of workers that changes."""

    def updates(self) -> AsyncIterator[frozenset[Endpoint]]:
        """The whole list, now and after each change. Never ends by itself."""
        ...


class FixedEndpoints:
    """A list that never changes."""

    def __init__(self, endpoints: frozenset[Endpoint]) -> None:
        self._endpoints = endpoints

    async def updates(self) -> AsyncIterator[frozenset[Endpoint]]:
        """See EndpointSource."""
        yield self._endpoints
        await asyncio.Event().wait()


class EdsFile:
    """A filesystem-xDS `DiscoveryResponse` in JSON, watched by polling `stat`.

    Polling costs one system call twice a second and sees renames on every filesystem; inotify misses some network ones.
    A file that is missing or wrong keeps the last good list and is logged once a change, as Envoy does.
    """

    def __init__(self, path: Path, poll_interval_s: float = POLL_INTERVAL_S) -> None:
        self._path = path
        self._poll_interval_s = poll_interval_s

    async def updates(self) -> AsyncIterator[frozenset[Endpoint]]:
        """See EndpointSource."""
        seen: tuple[int, ...] | None = None
        current: frozenset[Endpoint] | None = None
        while True:
            version = self._version()
            if version != seen:
                seen = version
                endpoints = self._read()
                if endpoints is not None and endpoints != current:
                    current = endpoints
                    yield endpoints
            await asyncio.sleep(self._poll_interval_s)

    def _version(self) -> tuple[int, ...]:
        try:
            stat = self._path.stat()
        except OSError:
            return ()
        return (stat.st_mtime_ns, stat.st_ino, stat.st_size)

    def _read(self) -> frozenset[Endpoint] | None:
        try:
            if self._path.stat().st_size > MAX_FILE_BYTES:
                raise ValueError(f"larger than {MAX_FILE_BYTES} bytes")
            return parse_eds(self._path.read_bytes())
        except (OSError, ValueError, msgspec.DecodeError) as error:
            _log.warning("workers file unusable; keeping the last list", path=str(self._path), error=str(error))
            return None


def parse_eds(data: bytes) -> frozenset[Endpoint]:
    """Endpoints of every ClusterLoadAssignment in a DiscoveryResponse. Raises ValueError saying what is missing where.

    Both spellings of protobuf's JSON (lb_endpoints, lbEndpoints) are read.
    """
    response = msgspec.json.decode(data)
    endpoints: set[Endpoint] = set()
    for assignment in _list(response, "resources", "resources"):
        for locality in _list(assignment, "endpoints", "endpoints"):
            for entry in _list(locality, "lb_endpoints", "lbEndpoints"):
                address = _get(_get(_get(entry, "endpoint"), "address"), "socket_address", "socketAddress")
                host, port = _get(address, "address"), _get(address, "port_value", "portValue")
                if not isinstance(host, str) or not isinstance(port, int):
                    raise ValueError(f"socket_address needs an address and a port_value, got {address!r}")
                status = entry.get("health_status", entry.get("healthStatus", "UNKNOWN"))
                name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
                endpoints.add(Endpoint(name, healthy=status in {"UNKNOWN", "HEALTHY", "DEGRADED", 0, 1, 5}))
    return frozenset(endpoints)


def _get(value: Any, *names: str) -> Any:
    for name in names:
        if isinstance(value, dict) and name in value:
            return value[name]
    raise ValueError(f"{names[0]} is missing")


def _list(value: Any, *names: str) -> list[Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected an object around {names[0]}, got {type(value).__name__}")
    found: Any = next((value[name] for name in names if name in value), [])
    if not isinstance(found, list):
        raise ValueError(f"{names[0]} must be a list")
    return found
