"""One InferenceService, from what is to what should be."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import structlog

from shoal.operator.api import InferenceService, find_contradictions
from shoal.operator.api.checking import check
from shoal.operator.api.crd import PLURAL
from shoal.operator.api.kubernetes_rules import find_kubernetes_contradictions
from shoal.operator.api.roles import worker_roles
from shoal.operator.api.spec import API_VERSION, KIND
from shoal.operator.api.status import Condition, InferenceServiceStatus
from shoal.operator.envoy import render_resources
from shoal.operator.measures import OBJECTS
from shoal.operator.planner.kubernetes import Manifest, Observed, Owner, Platform, find_infeasible, observe, plan
from shoal.operator.planner.kubernetes.envoy import envoy_options
from shoal.operator.planner.kubernetes.plan import Kind
from shoal.operator.planner.kubernetes.scaling import within_bounds
from shoal.operator.reconcile.api_client import ApiClient, ApiError, collection_path
from shoal.operator.reconcile.applying import Applier, LeadLost, NameTaken
from shoal.operator.reconcile.caches import CachesState
from shoal.operator.reconcile.events import events_of, refused_status_event
from shoal.operator.reconcile.object_store import Key, ObjectStore, version_of
from shoal.operator.reconcile.observing import external_host_of, observe_roles
from shoal.operator.reconcile.routes import RoutesState
from shoal.operator.reconcile.status import Findings, status_of
from shoal.operator.xds import encode

SERVICE_KIND: Final = Kind(API_VERSION, KIND, PLURAL)
EVENT_KIND: Final = Kind("v1", "Event", "events")
_log = structlog.get_logger("shoal.operator")


@dataclass(frozen=True, slots=True)
class _Read:
    """A spec, read once: what wakes a reconcile is a pod more often than a spec."""

    version: tuple[str, int]
    """Uid and generation."""
    spec: Any
    """What the object held: another definition changes it without another generation."""
    service: InferenceService | None
    invalid: str


@dataclass(frozen=True, slots=True)
class _Plan:
    """Of a spec and what was there."""

    service: InferenceService
    observed: Observed
    objects: tuple[Manifest, ...]


class Reconciler:
    """Brings InferenceServices, one at a time, to what their specs say. Knows no events, only keys."""

    def __init__(
        self,
        api: ApiClient,
        store: ObjectStore,
        platform: Platform,
        *,
        routes_of: Callable[[Key], RoutesState],
        caches_of: Callable[[Key], CachesState] = lambda key: CachesState(),
        now: Callable[[], str] = lambda: datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    ) -> None:
        """routes_of: called at each reconcile, after what was to be applied was; tells Envoys of it if it is other than
        before, and what they make of that.
        caches_of: what its gateways think of the workers' caches."""
        self.services: dict[Key, Manifest] = {}
        """What the API server holds, as last told. The caller keeps it."""
        self._api = api
        self._store = store
        self._platform = platform
        self._applier = Applier(api, store, self._is_writing)
        self._routes_of = routes_of
        self._caches_of = caches_of
        self._now = now
        self._specs: dict[Key, _Read] = {}
        self._plans: dict[Key, _Plan] = {}
        self.writes = True
        """False: nothing is applied and no status written, as long as another operator does."""
        self.may_write: Callable[[], bool] = lambda: True
        """Whether that is still so, asked before each write."""

    async def reconcile(self, key: Key) -> None:
        """Raises ApiError or NameTaken when it is to be tried again; the status says so if it could be written."""
        found = self.services.get(key)
        if found is None or found["metadata"].get("deletionTimestamp"):
            # What it owned goes by itself: Kubernetes collects what has no owner.
            self.forget_applied(key)
            return
        try:
            findings, failure = await self._bring_about(key, found)
        except LeadLost:  # who gets it looks at everything
            return
        except Exception as error:  # one spec that nobody foresaw must be seen where people look
            findings, failure = self._find_bug(key, found, error), error
        if self._is_writing():
            await self._show(found, findings)
        if failure is not None:
            raise failure

    def forget_applied(self, key: Key) -> None:
        """The next reconcile applies every object, whatever it looks like."""
        self._applier.forget(key)
        self._specs.pop(key, None)
        self._plans.pop(key, None)

    def _is_writing(self) -> bool:
        return self.writes and self.may_write()

    def set_platform(self, platform: Platform) -> None:
        """The cluster has come to have other APIs: every plan may be another."""
        self._platform = platform
        self._plans.clear()

    async def _bring_about(self, key: Key, found: Manifest) -> tuple[Findings, Exception | None]:
        metadata = found["metadata"]
        generation, namespace = int(metadata["generation"]), str(metadata["namespace"])
        service, invalid = self._read(key, found)
        if service is None:
            self._tell_routes(key)  # what runs goes on, and its pods come and go
            return Findings(generation=generation, invalid=invalid, namespace=namespace), None
        # Without an owner Kubernetes leaves them when the service goes: nothing has to be done then, by nobody.
        outlive = service.spec.deletion_policy == "Orphan"
        owner = Owner(namespace=namespace, uid=None if outlive else metadata["uid"])
        objects = self._plan(key, service, owner)
        failure: Exception | None = None
        not_applied: tuple[str, str] | None = None
        infeasible = find_infeasible(service, self._platform)
        if infeasible:
            not_applied = ("Infeasible", "; ".join(map(str, infeasible)))
        elif self.writes and not service.spec.paused:
            try:
                changes = await self._applier.apply(key, metadata["uid"], objects)
                OBJECTS.labels("applied").inc(len(changes.applied))
                OBJECTS.labels("pruned").inc(len(changes.pruned))
                if changes.applied or changes.pruned:
                    _log.info("applied", service="/".join(key), applied=changes.applied, pruned=changes.pruned)
            except NameTaken as error:
                failure, not_applied = error, ("NameTaken", str(error))
            except ApiError as error:
                failure, not_applied = error, (error.reason or "ApiError", str(error))
        routes = self._tell_routes(key)
        num_workers = {role.component: role.replicas for role in worker_roles(within_bounds(service.spec))}
        roles = observe_roles(objects, self._store.of(key), num_workers)
        findings = Findings(
            generation=generation,
            service=service,
            not_applied=not_applied,
            roles=roles,
            routes=routes,
            caches=self._caches_of(key),
            namespace=namespace,
            external_host=external_host_of(self._store.get(key, "Service", service.metadata.name)),
        )
        return findings, failure

    def _find_bug(self, key: Key, found: Manifest, error: Exception) -> Findings:
        metadata = found["metadata"]
        return Findings(
            generation=int(metadata["generation"]),
            service=self._read(key, found)[0],
            not_applied=(
                "PlanFailed", f"the operator has a bug: it cannot plan this ({type(error).__name__}: {error})"
            ),
            routes=self._tell_routes(key),
            namespace=str(metadata["namespace"]),
        )  # fmt: skip

    def _tell_routes(self, key: Key) -> RoutesState:
        try:
            return self._routes_of(key)
        except Exception as error:
            _log.exception("Envoys cannot be told", service="/".join(key))
            return RoutesState(rejection=f"what the operator has a bug in ({type(error).__name__}: {error})")

    def _read(self, key: Key, found: Manifest) -> tuple[InferenceService | None, str]:
        version = (str(found["metadata"]["uid"]), int(found["metadata"]["generation"]))
        spec, known = found.get("spec"), self._specs.get(key)
        if known is None or known.version != version or known.spec != spec:
            known = self._specs[key] = _Read(version, spec, *read_service(found))
        return known.service, known.invalid

    def _plan(self, key: Key, service: InferenceService, owner: Owner) -> tuple[Manifest, ...]:
        """While one group of workers replaces another, the plan changes with what is there."""
        observed = observe(self._store.of(key))
        known = self._plans.get(key)
        if known is None or known.service is not service or known.observed != observed:
            objects = plan(service, self._platform, owner, observed)
            # Fails before anything is applied, should this be something that Envoy has no words for.
            encode(render_resources(envoy_options(service, self._platform, owner), {}))
            known = self._plans[key] = _Plan(service, observed, objects)
        return known.objects

    async def _show(self, found: Manifest, findings: Findings) -> None:
        """Writes the status if it differs, and Events of what changed."""
        before, conditions = found.get("status") or {}, conditions_of(found)
        now = self._now()
        status = status_of(findings, conditions, now)
        shown = as_json(status)
        if shown == before:
            return
        try:
            written = await self._api.patch_status(SERVICE_KIND, found, _difference(before, shown))
        except ApiError as error:
            if error.code == 404:  # deleted meanwhile
                return
            if not error.is_temporary:
                await self._tell([refused_status_event(found, str(error), now)])
            raise
        self._remember(written)
        await self._tell(events_of(found, conditions, status.conditions or (), now))

    async def _tell(self, events: Sequence[Manifest]) -> None:
        for event in events:
            try:
                await self._api.request("POST", collection_path(EVENT_KIND, event["metadata"]["namespace"]), event)
            except ApiError as error:  # the status, or the log, has it as well
                if error.code != 409:  # it was told
                    _log.warning("no event", name=event["metadata"]["name"], error=str(error))

    def _remember(self, written: Manifest) -> None:
        """So that the next reconcile does not compare with a status that the watch has yet to bring."""
        key = (written["metadata"]["namespace"], written["metadata"]["name"])
        known = self.services.get(key)
        if known is not None and known["metadata"]["uid"] == written["metadata"]["uid"]:
            self.services[key] = max(known, written, key=version_of)


def read_service(found: Manifest) -> tuple[InferenceService | None, str]:
    """The object's spec, or everything that is wrong with it in one text.

    Objects of other schemas come here too: one written before a field was taken away, or with a value of a later
    version.
    """
    metadata = found["metadata"]
    value = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
        "spec": found.get("spec") or {},
    }
    service, problems = check(InferenceService, value)
    if service is not None:
        problems = find_contradictions(service) + find_kubernetes_contradictions(service)
    if service is None or problems:
        return None, "; ".join(map(str, problems))
    return service, ""


def conditions_of(found: Manifest) -> Sequence[Condition]:
    """Those that the object shows; none if they are not ours to read."""
    try:
        return msgspec.convert((found.get("status") or {}).get("conditions") or (), tuple[Condition, ...])
    except msgspec.ValidationError:
        return ()


def as_json(status: InferenceServiceStatus) -> dict[str, Any]:
    """Without what is not said."""
    shown = msgspec.to_builtins(status)
    cleaned: dict[str, Any] = _without_none(shown)
    return cleaned


def _difference(before: Any, after: Any) -> Any:
    """As a merge patch (RFC 7386): what is not said any more is taken away by null."""
    if not isinstance(before, dict) or not isinstance(after, dict):
        return after
    return dict.fromkeys(before.keys() - after.keys()) | {
        name: _difference(before.get(name), value) for name, value in after.items()
    }


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, (list, tuple)) else value
