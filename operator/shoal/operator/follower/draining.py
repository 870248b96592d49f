"""`python -m shoal.operator.follower.draining`: sends an Envoy's clients elsewhere, and waits until it serves nobody.

The preStop hook of a gateway's pod. When a gateway goes, its Envoy has connections on which clients go on to send
requests, which it leads to other gateways: only when they have been answered may it end.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from dataclasses import dataclass
from typing import Annotated, Final

from msgspec import Meta

from shoal.config import load_or_exit, option
from shoal.operator.substrate.probes import http_get, http_post

_TIMEOUT_S: Final = 5.0
_INTERVAL_S: Final = 0.2
_QUIET_S: Final = 1.0
"""Without a request for so long: those that were under way when their client was told to go have arrived."""
_GAUGE: Final = re.compile(r"^http\.(?:edge[^.]*)\.(downstream_cx_active|downstream_rq_active): (\d+)$", re.MULTILINE)
_STATS: Final = "/stats?filter=%5Ehttp%5C.edge.*downstream_(cx%7Crq)_active$"


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainConfig:
    """Ends what an Envoy does for clients."""

    admin_socket: str = option(help="Path of the Envoy's admin interface.")
    leave_s: Annotated[float, Meta(ge=0)] = option(
        5.0, "So long nothing is done: proxies hear meanwhile that the pod goes, and clients find others."
    )
    timeout_s: Annotated[float, Meta(ge=0)] = option(60.0, "After that, requests are cut.")


@dataclass(frozen=True, slots=True)
class Clients:
    """Of an Envoy's edge."""

    num_connections: int
    num_requests: int


async def drain(config: DrainConfig) -> Clients:
    """Returns whom it still has at the end: nobody, or those that the time did not suffice for. Raises OSError,
    TimeoutError or ValueError when the admin interface is gone or answers nonsense.

    Each connection gets its next answer with the word that it was the last (GOAWAY, `connection: close`). Listeners go
    on to take what comes, since a proxy may be late.
    """
    await asyncio.sleep(config.leave_s)
    status, body = await http_post(config.admin_socket, "/healthcheck/fail", _TIMEOUT_S)
    if status != 200:
        raise ValueError(f"Envoy answers {status} {body[:200]!r}")
    deadline_s = time.monotonic() + config.timeout_s
    quiet_since_s: float | None = None
    while True:
        clients = await _clients(config.admin_socket)
        now_s = time.monotonic()
        if clients.num_requests:
            quiet_since_s = None
        elif quiet_since_s is None:
            quiet_since_s = now_s
        is_quiet = quiet_since_s is not None and now_s - quiet_since_s >= _QUIET_S
        if is_quiet or not clients.num_connections or now_s >= deadline_s:
            return clients
        await asyncio.sleep(_INTERVAL_S)


async def _clients(admin_socket: str) -> Clients:
    status, body = await http_get(admin_socket, _STATS, _TIMEOUT_S)
    found = _GAUGE.findall(body.decode(errors="replace"))
    if status != 200 or not found:
        raise ValueError(f"Envoy's statistics lack its edge: {status} {body[:200]!r}")
    counts = {"downstream_cx_active": 0, "downstream_rq_active": 0}
    for name, count in found:
        counts[name] += int(count)
    return Clients(counts["downstream_cx_active"], counts["downstream_rq_active"])


def main() -> None:
    """Exits 1, with a line that kubelets show in an Event, when requests are left, or Envoy is not to be reached."""
    config = load_or_exit(DrainConfig, program="shoal-drain")
    try:
        clients = asyncio.run(drain(config))
    except (OSError, TimeoutError, ValueError) as error:
        sys.exit(f"cannot drain Envoy: {error or type(error).__name__}")
    if clients.num_requests:
        sys.exit(f"{clients.num_requests} requests are cut after {config.timeout_s:g} s; see rollout.drainSeconds")


if __name__ == "__main__":
    main()
