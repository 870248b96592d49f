"""The operator's life: what the API server tells it, what it does about that, and when it looks again by itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

import kopf
import structlog

from shoal.operator.api import InferenceService, Problem
from shoal.operator.api.crd import APPLY_COMMAND
from shoal.operator.planner.kubernetes import (
    KINDS,
    OPTIONAL_KINDS,
    Platform,
    find_infeasible,
)
from shoal.operator.planner.kubernetes.envoy import applied_choices, node_cluster, options_of
from shoal.operator.planner.kubernetes.gateways import COMPONENT as GATEWAY
from shoal.operator.planner.kubernetes.plan import Kind
from shoal.operator.reconcile import envoy_reports
from shoal.operator.reconcile.api_client import ApiClient, ApiError
from shoal.operator.reconcile.background import repeat, running
from shoal.operator.reconcile.cache_watch import CacheWatch, Fetch, Gateway, MetricsFetcher, gateways_among
from shoal.operator.reconcile.envoy_reports import EnvoyReports
from shoal.operator.reconcile.handlers import WatchHandlers, make_registry
from shoal.operator.reconcile.inventory import OURS, Inventory
from shoal.operator.reconcile.leadership import Leadership
from shoal.operator.reconcile.no_storage import NoDiffBase, NoProgress
from shoal.operator.reconcile.object_store import Key, ObjectStore
from shoal.operator.reconcile.reconciler import SERVICE_KIND, Reconciler
from shoal.operator.reconcile.rights import DERIVED
from shoal.operator.reconcile.routes import RoutesState, backends
from shoal.operator.reconcile.work_queue import WorkQueue
from shoal.operator.xds import Publisher, SnapshotStore

_ALWAYS_WATCHED: Final = (*KINDS, *DERIVED)
"""What is seen of every cluster beside InferenceServices: what plans hold, and what Kubernetes makes of it."""
_WATCH_END_TIMEOUT_S: Final = 10.0
_DEFINED_INTERVAL_S: Final = 5.0
_DEFINE: Final = f"{APPLY_COMMAND}, or install the chart"
_log = structlog.get_logger("shoal.operator")


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerOptions:
    """How the operator works."""

    namespaces: tuple[str, ...] = ()
    """Those that it looks after; empty: all."""
    num_reconcilers: int = 4
    lease_namespace: str = ""
    """Where the Lease is by which several operators agree on one that writes; empty: this one writes in any case."""
    lease_duration_s: float = 15.0
    """How long it is whose it is without being renewed."""
    identity: str = "shoal-operator"
    """Who this one is among them."""
    resync_interval_s: float = 60.0
    """How often everything is listed and compared, should a watch have missed something."""
    cache_check_interval_s: float = 10.0
    """How often gateways are asked whether KV events flow."""


class Controller:
    """Reconciles until `stop` is set. One for each operator process."""

    def __init__(
        self,
        api: ApiClient,
        platform: Platform,
        options: ControllerOptions | None = None,
        fetch: Fetch | None = None,
    ) -> None:
        """fetch: how gateways' metrics are read; by HTTP if it is not given."""
        self._api = api
        self._options = options or ControllerOptions()
        self._platform = platform
        self.store = ObjectStore()
        self.snapshots = SnapshotStore(self._envoys_changed)
        """What Envoys are told: for the discovery server."""
        self.queue: WorkQueue[Key] = WorkQueue()
        self._fetcher = MetricsFetcher()
        self.caches = CacheWatch(fetch or self._fetcher.fetch, self.queue.add)
        self.reconciler = Reconciler(
            api, self.store, platform, routes_of=self._tell_routes, caches_of=self.caches.state
        )
        identity, lease_namespace = self._options.identity, self._options.lease_namespace
        self._reports = EnvoyReports(api, lease_namespace, identity, on_change=self._envoys_changed)
        self.reconciler.writes = not self._options.lease_namespace  # until it is this one's
        self._publisher = Publisher(self.snapshots)
        self.inventory = Inventory(self.reconciler.services, self.store, self.queue, self._publisher)
        """What watches tell goes there."""
        self._watched: tuple[Kind, ...] = _ALWAYS_WATCHED
        self._apis_changed = asyncio.Event()
        self._at_work: set[asyncio.Task[None]] = set()
        """Reconciles that are under way."""
        self.listed_unix_s = 0.0
        """When everything was last listed."""

    async def run(self, stop: asyncio.Event, ready: asyncio.Event | None = None) -> None:
        """Sets `ready` once everything is watched. Raises ApiError when the API server cannot be read at first."""
        await self._until_defined(stop)
        if stop.is_set():
            return
        await self._discover()
        await self.relist()
        async with contextlib.AsyncExitStack() as stack:
            options = self._options
            reconciling = (self._reconcile() for _ in range(options.num_reconcilers))
            resyncing = repeat("listing", options.resync_interval_s, self._resync)
            checking = repeat("asking gateways", options.cache_check_interval_s, self._check_caches)
            await stack.enter_async_context(self._fetcher)
            await stack.enter_async_context(running(resyncing, checking, *reconciling))
            if options.lease_namespace:
                leadership = Leadership(
                    self._api,
                    options.lease_namespace,
                    options.identity,
                    on_change=self._lead,
                    duration_s=options.lease_duration_s,
                    renew_s=options.lease_duration_s / 7.5,
                )
                self.reconciler.may_write = lambda: leadership.holds
                await stack.enter_async_context(leadership.held())
                sharing = repeat("sharing what Envoys do", envoy_reports.INTERVAL_S, self._share_envoys)
                await stack.enter_async_context(running(sharing))
            await self._watch(stop, ready)

    async def _watch(self, stop: asyncio.Event, ready: asyncio.Event | None) -> None:
        """Until told to stop; begins anew when the cluster has other APIs than before. Raises ApiError when nobody
        can have InferenceServices any more; kopf's watches do not come back from that, another process does."""
        while True:
            self._apis_changed.clear()
            tasks = await kopf.spawn_tasks(
                registry=make_registry(WatchHandlers(self.inventory), self._api.configuration, self._watched),
                settings=_settings(self._watched),
                clusterwide=not self._options.namespaces,
                namespaces=self._options.namespaces,
                standalone=True,
                stop_flag=stop,
                ready_flag=ready,
            )
            ready = None
            try:
                await self._until_one_ends(tasks)
            except Exception as error:
                if await self._api.serves(SERVICE_KIND):
                    raise
                raise ApiError(404, "NotFound", f"InferenceServices are not defined any more: {_DEFINE}") from error
            # kopf takes signals for itself: its tasks end, and `stop` is not set.
            if stop.is_set() or not self._apis_changed.is_set():
                return

    async def _until_one_ends(self, tasks: Collection[asyncio.Task[Any]]) -> None:
        """kopf's own `operator()` would end every other task of the loop as well."""
        changing = asyncio.ensure_future(self._apis_changed.wait())
        try:
            done, _ = await asyncio.wait({changing, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            changing.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=_WATCH_END_TIMEOUT_S)

    async def _until_defined(self, stop: asyncio.Event) -> None:
        """Waits until there can be InferenceServices, or for `stop`; says what is missing."""
        while not await self._api.serves(SERVICE_KIND):
            if stop.is_set():
                return
            _log.error("there are no InferenceServices on this cluster", fix=_DEFINE, again_in_s=_DEFINED_INTERVAL_S)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _DEFINED_INTERVAL_S)

    async def _discover(self) -> None:
        """Which kinds the cluster has that only some clusters have."""
        there = [kind for kind in OPTIONAL_KINDS if await self._api.serves(kind)]
        watched = (*_ALWAYS_WATCHED, *there)
        if watched == self._watched:
            return
        _log.info("apis", found=[kind.api_version for kind in there])
        self._watched = watched
        self._platform = replace(self._platform, apis=frozenset(kind.api_version for kind in there))
        self.reconciler.set_platform(self._platform)
        self._apis_changed.set()

    def find_infeasible(self, service: InferenceService) -> list[Problem]:
        """What the cluster, as it was last looked at, has no means for."""
        return find_infeasible(service, self._platform)

    def _lead(self, leads: bool) -> None:
        """Everything is looked at anew: what was not to be written so far may have to be. What is being written when
        the lead is lost is given up: another operator is about to begin."""
        self.reconciler.writes = leads
        for task in () if leads else self._at_work:
            task.cancel()
        for key in list(self.reconciler.services):
            self.reconciler.forget_applied(key)
            self.queue.add(key)

    def _tell_routes(self, key: Key) -> RoutesState:
        """Envoys are told what was applied."""
        namespace, name = key
        applied = self.store.get(key, "ConfigMap", f"{name}-{GATEWAY}")
        choices = None if applied is None else applied_choices(applied)
        if choices is not None:
            options = options_of(choices, self._platform, namespace, name)
            self._publisher.configure(namespace, options, backends(name))
        cluster = node_cluster(namespace, name)
        return self._own_envoys(cluster).joined(self._reports.of_others(cluster))

    def _own_envoys(self, cluster: str) -> RoutesState:
        num_envoys, num_waiting = self.snapshots.envoys(cluster)
        rejections = self.snapshots.rejections(cluster)
        return RoutesState(num_envoys, rejections[0].message if rejections else "", num_waiting)

    async def _share_envoys(self) -> None:
        """Only one operator writes the status, and Envoys may be connected to others."""
        own = {cluster: self._own_envoys(cluster) for cluster in self.snapshots.clusters}
        await self._reports.exchange(own, is_writer=self.reconciler.writes)

    def _envoys_changed(self, cluster: str) -> None:
        namespace, _, name = cluster.partition("/")
        if (namespace, name) in self.reconciler.services:
            self.queue.add((namespace, name))

    async def _reconcile(self) -> None:
        while True:
            key = await self.queue.get()
            task = asyncio.ensure_future(self.reconciler.reconcile(key))
            self._at_work.add(task)
            try:
                await asyncio.wait({task})
                task.result()
            except asyncio.CancelledError:
                if not task.cancelled():  # it is this one that is to end
                    raise
                self.queue.done(key)  # and is there again, since the lead was lost
            except Exception as error:  # one service must not keep the others from being looked after
                delay_s = self.queue.failed(key)
                is_told = isinstance(error, ApiError) and error.is_temporary
                _log.warning(
                    "not reconciled", service="/".join(key), error=str(error) or type(error).__name__,
                    again_in_s=round(delay_s, 1), exc_info=not is_told and not isinstance(error, ApiError),
                )  # fmt: skip
            else:
                self.queue.done(key)
            finally:
                task.cancel()
                self._at_work.discard(task)

    async def _resync(self) -> None:
        await self._discover()
        await self.relist()
        for key in list(self.reconciler.services):
            self.queue.add(key)

    async def _check_caches(self) -> None:
        if not self.reconciler.writes:
            return  # who writes the status asks
        gateways: dict[Key, list[Gateway]] = {}
        for key in self.reconciler.services:
            if found := gateways_among(self.store.of(key, "Pod")):
                gateways[key] = found
        await self.caches.look(gateways)

    async def relist(self) -> None:
        """Reads everything anew: watches tell of what changes, lists of what is."""
        started = time.monotonic()
        for kind in self._watched:
            for namespace in self._namespaces():
                await self.inventory.list_objects(self._api, kind, namespace)
        num_services = 0
        for namespace in self._namespaces():
            num_services += await self.inventory.list_services(self._api, namespace)
        self.listed_unix_s = time.time()
        _log.info("listed", services=num_services, took_s=round(time.monotonic() - started, 2))

    def _namespaces(self) -> Iterable[str | None]:
        return self._options.namespaces or (None,)


def _settings(watched: Iterable[Kind]) -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.process.ultimate_exiting_timeout = None  # the kubelet sees to that
    settings.persistence.diffbase_storage = NoDiffBase()
    settings.persistence.progress_storage = NoProgress()
    settings.scanning.disabled = True  # which kinds there are is known
    settings.posting.enabled = False
    settings.posting.loggers = False
    settings.watching.server_timeout = 300
    settings.watching.reconnect_backoff = 0.2
    # A closed connection of a dead API server is noticed by the missing bookmarks; one that drops packets, by this.
    settings.watching.connect_timeout = 10
    for kind in watched:
        settings.watching.label_selectors[kind.plural] = OURS
    logging.getLogger("kopf").setLevel(logging.WARNING)
    return settings
