"""What a plan depends on beside the spec: the groups of workers that exist already, and where KV stores are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from shoal.operator.planner.kubernetes.names import COMPONENT_LABEL, GROUP_LABEL, TEMPLATE_ANNOTATION
from shoal.operator.planner.kubernetes.platform import Manifest

ROLES: Final = ("worker", "prefill", "decode")
"""Components whose pods are engines."""
KV_STORE: Final = "kv-store"
GROUP_KINDS: Final = ("StatefulSet", "LeaderWorkerSet")


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedGroup:
    """A workload of engines, as it is on the cluster."""

    name: str
    kind: str
    """StatefulSet or LeaderWorkerSet."""
    role: str
    hash: str
    """Of its immutable part; empty for one that is older than these."""
    replicas: int
    """Workers that it is asked to have."""
    ready: int
    """Workers that can serve."""
    template: str = ""
    """Digest of the template that was applied last; empty for one that is older than these."""
    is_rolling: bool = False
    """Some of a StatefulSet's pods are of an earlier template."""
    is_seen: bool = True
    """Its controller has seen what was applied last."""
    is_ending: bool = False
    """It is being deleted; its name is still taken."""
    manifest: Manifest
    """It again, without status: to apply this changes nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """The part of the cluster's state that decides what is planned next. Equal states give equal plans."""

    groups: tuple[ObservedGroup, ...] = ()
    kv_store_addresses: tuple[str, ...] = ()
    """IP addresses of the KV stores' pods, one a node; sorted."""


def observe(live: Iterable[Manifest]) -> Observed:
    """live: objects of one InferenceService, of any kind and in any order."""
    found = list(live)
    groups = [_group(each) for each in found if each["kind"] in GROUP_KINDS and _component(each) in ROLES]
    stores = [each for each in found if each["kind"] == "Pod" and _component(each) == KV_STORE]
    addresses = {str(pod["status"]["podIP"]) for pod in stores if _is_there(pod)}
    return Observed(
        groups=tuple(sorted(groups, key=lambda group: (group.kind, group.name))),
        kv_store_addresses=tuple(sorted(addresses)),
    )


def _component(found: Manifest) -> str:
    return str((found["metadata"].get("labels") or {}).get(COMPONENT_LABEL, ""))


def _is_there(pod: Manifest) -> bool:
    status = pod.get("status") or {}
    return bool(status.get("podIP")) and status.get("phase") == "Running" and not _is_ending(pod)


def _is_ending(found: Manifest) -> bool:
    return bool(found["metadata"].get("deletionTimestamp"))


def _group(found: Manifest) -> ObservedGroup:
    metadata, status = found["metadata"], found.get("status") or {}
    kept: dict[str, Any] = {
        name: metadata[name] for name in ("name", "namespace", "labels", "ownerReferences") if name in metadata
    }
    template = (metadata.get("annotations") or {}).get(TEMPLATE_ANNOTATION, "")
    if template:  # no others: who puts one there keeps it
        kept["annotations"] = {TEMPLATE_ANNOTATION: template}
    replicas = found["spec"].get("replicas", 1)
    return ObservedGroup(
        name=metadata["name"],
        kind=found["kind"],
        role=_component(found),
        hash=str((metadata.get("labels") or {}).get(GROUP_LABEL, "")),
        replicas=int(replicas),
        ready=min(int(status.get("readyReplicas") or 0), int(replicas)),
        template=template,
        is_rolling=status.get("currentRevision") != status.get("updateRevision"),
        is_seen=int(status.get("observedGeneration") or 0) >= int(metadata.get("generation") or 0),
        is_ending=_is_ending(found),
        manifest={
            "apiVersion": found["apiVersion"],
            "kind": found["kind"],
            "metadata": kept,
            "spec": found["spec"],
        },
    )
