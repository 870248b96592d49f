"""Runs all processes of a plan: up in the order of their dependencies, down in reverse."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Mapping
from pathlib import Path

import msgspec

from shoal.operator.envoy import clusters
from shoal.operator.planner import LocalPlan, ProcessPlan, ReadinessKind
from shoal.operator.substrate.events import OnEvent
from shoal.operator.substrate.failures import MeshError
from shoal.operator.substrate.guard import MARKER_VARIABLE, Guard
from shoal.operator.substrate.keeper import Keeper, Surroundings
from shoal.operator.substrate.logs import keep_logs_bounded
from shoal.operator.substrate.membership import Membership
from shoal.operator.substrate.options import SupervisorOptions
from shoal.operator.substrate.probes import http_get
from shoal.operator.substrate.process import base_environment

_ENVOY_VIEW_TIMEOUT_S = 30.0


class Supervisor:
    """Owns the processes of one plan. `start`, then `stop`; `kill` at any time."""

    def __init__(
        self,
        plan: LocalPlan,
        *,
        run_dir: Path,
        log_dir: Path,
        guard: Guard,
        on_event: OnEvent,
        options: SupervisorOptions,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        environ = os.environ if environ is None else environ
        around = Surroundings(
            environ=base_environment(environ, (MARKER_VARIABLE, guard.run_id)),
            log_dir=log_dir,
            guard=guard,
            membership=Membership(run_dir),
            options=options,
            on_event=on_event,
        )
        self._options = options
        self.keepers = {process.name: Keeper(process, around) for process in plan.processes}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._log_task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns when all processes are ready and Envoy sends calls to them. Raises ProcessFailed or MeshError."""
        log_paths = [path for keeper in self.keepers.values() for path in keeper.log_paths]
        bounding = keep_logs_bounded(log_paths, self._options.max_log_bytes, self._options.log_check_interval_s)
        self._log_task = asyncio.create_task(bounding, name="keep logs bounded")
        for name, keeper in self.keepers.items():
            dependencies = [self.keepers[other] for other in keeper.plan.depends_on]
            self._tasks[name] = asyncio.create_task(keeper.run(dependencies), name=f"keep {name}")
        await self._unless_failed(self._await_all_ready())
        for keeper in self.keepers.values():
            if keeper.plan.readiness.kind is ReadinessKind.ENVOY_ADMIN:
                await self._unless_failed(self._await_envoy_view(keeper.plan))

    async def watch(self) -> None:
        """Raises what ended a keeper, which nothing should once all were ready. Otherwise returns after `stop`."""
        for task in asyncio.as_completed(self._tasks.values()):
            await task

    async def stop(self) -> None:
        """Ends all processes, each before those it depends on. Safe to call at any stage, also after a failure."""
        stopping: dict[str, asyncio.Task[None]] = {}
        for name in reversed(self.keepers):
            dependents = [stopping[k.plan.name] for k in self.keepers.values() if name in k.plan.depends_on]
            stopping[name] = asyncio.create_task(self._stop_one(name, dependents), name=f"stop {name}")
        await asyncio.gather(*stopping.values())
        if self._log_task is not None:
            self._log_task.cancel()
            await asyncio.gather(self._log_task, return_exceptions=True)

    def kill(self) -> None:
        """Ends all processes at once; `stop` then returns quickly."""
        for keeper in self.keepers.values():
            keeper.kill()

    async def _stop_one(self, name: str, dependents: list[asyncio.Task[None]]) -> None:
        await asyncio.gather(*dependents)
        self.keepers[name].request_stop()
        if name in self._tasks:
            # What it may have raised came out of `start` or `watch`.
            await asyncio.gather(self._tasks[name], return_exceptions=True)

    async def _await_all_ready(self) -> None:
        await asyncio.gather(*(keeper.ready.wait() for keeper in self.keepers.values()))

    async def _await_envoy_view(self, envoy: ProcessPlan) -> None:
        """Waits until Envoy's own health checks have passed for every endpoint of the plan."""
        wanted = {
            (cluster, str(endpoint))
            for keeper in self.keepers.values()
            for cluster, endpoint in keeper.plan.serves.items()
            if cluster in clusters.NAMES
        }
        missing = wanted
        try:
            async with asyncio.timeout(_ENVOY_VIEW_TIMEOUT_S):
                while missing:
                    missing = wanted - await read_healthy_hosts(envoy.readiness.target, self._options.probe_timeout_s)
                    if missing:
                        await asyncio.sleep(self._options.probe_interval_s)
        except TimeoutError:
            hosts = ", ".join(f"{cluster} {host}" for cluster, host in sorted(missing))
            raise MeshError(f"Envoy's health checks do not pass for {hosts} although they answer directly") from None

    async def _unless_failed(self, awaitable: Awaitable[None]) -> None:
        """Awaits, but raises as soon as any keeper gives up."""
        waiting = asyncio.ensure_future(awaitable)
        try:
            await asyncio.wait({waiting, *self._tasks.values()}, return_when=asyncio.FIRST_COMPLETED)
            for task in self._tasks.values():
                if task.done():
                    task.result()
            if waiting.done():
                waiting.result()
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)


async def read_healthy_hosts(admin: str, timeout_s: float) -> set[tuple[str, str]]:
    """(cluster, host:port) of every host to which Envoy sends calls. Empty when its admin interface does not answer."""
    try:
        status, body = await http_get(admin, "/clusters?format=json", timeout_s)
    except (OSError, ValueError, TimeoutError):
        return set()
    if status != 200:
        return set()
    healthy = set()
    for cluster in msgspec.json.decode(body).get("cluster_statuses", ()):
        for host in cluster.get("host_statuses", ()):
            health = host.get("health_status", {})
            if health.get("eds_health_status") == "HEALTHY" and len(health) == 1:
                address = host["address"]["socket_address"]
                healthy.add((cluster["name"], f"{address['address']}:{address['port_value']}"))
    return healthy
