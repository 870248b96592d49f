"""Kubernetes objects to what they say about a role: how many pods are wanted, how many are ready, what is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from shoal.operator.planner.kubernetes import Manifest
from shoal.operator.planner.kubernetes.names import COMPONENT_LABEL

COMPONENTS: Final = {"gateway": "gateways", "tokenizer": "tokenizers", "worker": "workers"}
"""Component -> what people call its pods."""
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

    @property
    def is_ready(self) -> bool:
        """Everything is there."""
        return self.ready >= self.desired and self.is_current


def observe_roles(plan: Iterable[Manifest], live: Sequence[Manifest]) -> dict[str, RoleState]:
    """Component -> state, for each planned workload. `live`: the service's objects, pods among them."""
    workloads = {(found["kind"], found["metadata"]["name"]): found for found in live}
    roles = {}
    for wanted in plan:
        if wanted["kind"] not in ("Deployment", "StatefulSet"):
            continue
        component = wanted["metadata"]["labels"][COMPONENT_LABEL]
        found = workloads.get((wanted["kind"], wanted["metadata"]["name"]))
        roles[component] = _observe(component, wanted, found, _pods_of(component, live))
    return roles


def _observe(component: str, wanted: Manifest, found: Manifest | None, pods: Sequence[Manifest]) -> RoleState:
    desired = int(wanted["spec"]["replicas"])
    if found is None:
        return RoleState(component, desired, 0, False)
    status = found.get("status", {})
    is_seen = status.get("observedGeneration", 0) >= found["metadata"].get("generation", 0)
    is_current = is_seen and status.get("updatedReplicas", 0) >= desired and status.get("replicas", 0) == desired
    ready = int(status.get("readyReplicas", 0))
    name, trouble, reason = found["metadata"]["name"], "", ""
    if not (is_current and ready >= desired):
        reason, trouble = _trouble_of_workload(found) or next(filter(None, map(_trouble_of_pod, pods)), ("", ""))
    return RoleState(
        component, desired, min(ready, desired), is_current, _shorten(f"{name}: {trouble}", trouble), reason
    )


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
