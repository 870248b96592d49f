"""Kubernetes objects to what they say about a role: how many pods are wanted, how many are ready, what is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from shoal.operator.planner.kubernetes import Manifest
from shoal.operator.planner.kubernetes.names import COMPONENT_LABEL

ENGINES: Final = ("worker", "prefill", "decode")
"""Components that run a model: workers that do everything, or the two halves of it."""
FRONTS: Final = ("gateway", "tokenizer")
"""Components that every service needs beside them. What else there is only makes it better."""
PODS: Final = {
    "gateway": "gateways",
    "tokenizer": "tokenizers",
    "worker": "workers",
    "prefill": "prefill workers",
    "decode": "decode workers",
    "kv-store": "KV stores",
    "lora-registry": "LoRA registries",
}
"""Component -> what people call its pods."""
_WORKLOADS: Final = ("DaemonSet", "Deployment", "LeaderWorkerSet", "StatefulSet")
_WAITING_WELL: Final = ("ContainerCreating", "PodInitializing")
_MAX_TROUBLE: Final = 400


@dataclass(frozen=True, slots=True)
class RoleState:
    """One component, as it is."""

    component: str
    desired: int
    ready: int
    is_current: bool
    """Whether all pods are of the plan's template, and the workload's controller has seen it."""
    trouble: str = ""
    """What keeps a pod from being ready, in words for people; empty: nothing, or only time."""
    reason: str = ""
    """The same in one word."""
    current: int = 0
    """How many there are, ready or not."""

    @property
    def is_ready(self) -> bool:
        """Everything is there."""
        return self.ready >= self.desired and self.is_current


def observe_roles(
    plan: Iterable[Manifest], live: Sequence[Manifest], num_workers: Mapping[str, int] | None = None
) -> dict[str, RoleState]:
    """Component -> state, for each planned workload. `live`: the service's objects, pods among them. `num_workers`: as
    the spec asks for them, by component; while workers are replaced the plan has more, and components that the spec
    lacks.
    """
    workloads = {(found["kind"], found["metadata"]["name"]): found for found in live}
    roles: dict[str, RoleState] = {}
    for wanted in plan:
        if wanted["kind"] not in _WORKLOADS:
            continue
        component = wanted["metadata"]["labels"][COMPONENT_LABEL]
        found = workloads.get((wanted["kind"], wanted["metadata"]["name"]))
        role = _observe(component, wanted, found, _pods_of(component, live))
        roles[component] = role if component not in roles else _join(roles[component], role)
    if num_workers is None:
        return roles
    return {
        component: _as_asked(role, num_workers.get(component)) if component in ENGINES else role
        for component, role in roles.items()
    }


def external_host_of(service: Manifest | None) -> str:
    """Name or address by which the Service is reached from outside; empty if it has none."""
    status: dict[str, Any] = (service or {}).get("status") or {}
    ingress: list[dict[str, Any]] = status.get("loadBalancer", {}).get("ingress") or [{}]
    return str(ingress[0].get("hostname") or ingress[0].get("ip") or "")


def _observe(component: str, wanted: Manifest, found: Manifest | None, pods: Sequence[Manifest]) -> RoleState:
    if found is None:
        return RoleState(component, int(wanted["spec"].get("replicas", 1)), 0, False)
    counts = _counts_of(found, wanted)
    is_current = counts.is_seen and counts.updated >= counts.desired and counts.all == counts.desired
    name, trouble, reason = found["metadata"]["name"], "", ""
    if not (is_current and counts.ready >= counts.desired):
        told = _trouble_of_workload(found) or next(filter(None, map(_trouble_of_pod, pods)), None)
        reason, trouble = told or ("", _unmade(found, counts))
    ready, text = min(counts.ready, counts.desired), _shorten(f"{name}: {trouble}", trouble)
    return RoleState(component, counts.desired, ready, is_current, text, reason, counts.all)


@dataclass(frozen=True, slots=True)
class _Counts:
    desired: int
    all: int
    ready: int
    updated: int
    is_seen: bool


def _counts_of(found: Manifest, wanted: Manifest) -> _Counts:
    """As each kind says it."""
    status, generation = found.get("status", {}), found["metadata"].get("generation", 0)
    is_seen = status.get("observedGeneration", generation if found["kind"] == "LeaderWorkerSet" else 0) >= generation
    if found["kind"] == "DaemonSet":
        desired = int(status.get("desiredNumberScheduled", 0))
        of_all, of_ready, of_updated = "currentNumberScheduled", "numberReady", "updatedNumberScheduled"
    else:
        # A plan that leaves them to an autoscaler wants what it says.
        desired = int(wanted["spec"].get("replicas", found.get("spec", {}).get("replicas", 1)))
        of_all, of_ready, of_updated = "replicas", "readyReplicas", "updatedReplicas"
    count = {name: int(status.get(name, 0)) for name in (of_all, of_ready, of_updated)}
    return _Counts(desired, count[of_all], count[of_ready], count[of_updated], is_seen)


def _join(one: RoleState, other: RoleState) -> RoleState:
    """Of two workloads of a component, which there are while one group of workers replaces another."""
    told = one if one.trouble else other
    desired, ready = one.desired + other.desired, one.ready + other.ready
    reason, current = told.reason or "BeingReplaced", one.current + other.current
    return RoleState(one.component, desired, ready, False, told.trouble, reason, current)


def _as_asked(role: RoleState, asked: int | None) -> RoleState:
    """Without those that only take over: as long as so many are ready nothing is missing. None: the role is to go."""
    if asked is not None and role.desired <= asked:
        return role
    wanted = role.desired if asked is None else asked
    reason = role.reason or "BeingReplaced"
    return replace(role, desired=wanted, ready=min(role.ready, wanted), is_current=False, reason=reason)


def _pods_of(component: str, live: Sequence[Manifest]) -> list[Manifest]:
    return [
        found
        for found in live
        if found["kind"] == "Pod" and found["metadata"]["labels"].get(COMPONENT_LABEL) == component
    ]


def _trouble_of_workload(found: Manifest) -> tuple[str, str] | None:
    """Pods that cannot even be made: a quota, an admission webhook."""
    for condition in found.get("status", {}).get("conditions", ()):
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            return condition.get("reason", "ReplicaFailure"), condition.get("message", "")
    return None


def _unmade(found: Manifest, counts: _Counts) -> str:
    """StatefulSets and DaemonSets say in Events alone why their pods are refused, which the operator may not read."""
    missing = counts.desired - counts.all
    if found["kind"] not in ("StatefulSet", "DaemonSet") or not counts.is_seen or missing <= 0:
        return ""
    return f"{missing} of {counts.desired} pods have not been made; if that lasts, `shoal doctor` says who refuses them"


def _trouble_of_pod(pod: Manifest) -> tuple[str, str] | None:
    name, status = pod["metadata"]["name"], pod.get("status", {})
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return condition.get("reason", "Unschedulable"), f"{name} fits on no node: {condition.get('message', '')}"
    for container in [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]:
        found = _trouble_of_container(container)
        if found is not None:
            return found[0], f"{name}, {container['name']}: {found[1]}"
    return None


def _trouble_of_container(container: dict[str, Any]) -> tuple[str, str] | None:
    state, last = container.get("state", {}), container.get("lastState", {})
    waiting, ended = state.get("waiting"), state.get("terminated") or last.get("terminated")
    if waiting is not None and waiting.get("reason") not in _WAITING_WELL:
        reason = waiting.get("reason", "Waiting")
        ending = f", last exit code {ended['exitCode']}" if ended is not None else ""
        return reason, f"{reason}{ending}: {waiting.get('message', '')}".rstrip(": ")
    if ended is not None and not container.get("ready") and ended.get("exitCode"):
        return ended.get("reason", "Error"), f"ended with exit code {ended['exitCode']}"
    return None


def _shorten(text: str, trouble: str) -> str:
    if not trouble:
        return ""
    return text if len(text) <= _MAX_TROUBLE else f"{text[:_MAX_TROUBLE]}..."
