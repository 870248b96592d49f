"""How the pods of a group that stays are replaced: those that take over start first.

A StatefulSet deletes a pod before it makes another of its ordinal, so that a service of one worker has none meanwhile.
But it starts with the highest ordinal, and waits there until that pod is ready: asked for more pods together with
the new template, it makes those of the new template, and takes from the others as they become ready.

    workload = make_room(workload, known, rollout)   # at each reconcile

As in `groups`, nothing is remembered between calls. A LeaderWorkerSet does all of this itself.
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from shoal.operator.api.spec import Rollout
from shoal.operator.planner.kubernetes.names import TEMPLATE_ANNOTATION
from shoal.operator.planner.kubernetes.observed import ObservedGroup
from shoal.operator.planner.kubernetes.platform import Manifest

_DIGITS: Final = 16


def make_room(workload: Manifest, known: ObservedGroup | None, rollout: Rollout) -> Manifest:
    """The same workload; a StatefulSet whose pods are to be replaced is asked for `maxSurge` more of them, until all of
    them are of its template. known: it as it is on the cluster."""
    if workload["kind"] != "StatefulSet":
        return workload
    metadata, spec = workload["metadata"], workload["spec"]
    digest = hashlib.sha256(msgspec.json.encode(spec["template"], order="deterministic")).hexdigest()[:_DIGITS]
    replicas = spec["replicas"]
    if known is not None and rollout.strategy == "Surge":
        replicas = _places(replicas, digest, known, rollout.max_surge)
    annotations = {**metadata.get("annotations", {}), TEMPLATE_ANNOTATION: digest}
    return {
        **workload,
        "metadata": {**metadata, "annotations": annotations},
        "spec": {**spec, "replicas": replicas},
    }


def _places(wanted: int, digest: str, known: ObservedGroup, max_surge: int) -> int:
    """Pods to ask for. More only where there is somebody to take over from, but then to the end: a pod that takes over
    must not go because the others went."""
    if known.is_rolling or known.template != digest:
        return wanted + max_surge if known.ready or known.replicas > wanted else wanted
    if known.is_seen:
        return wanted
    # It has yet to be seen whether pods must be replaced: what was asked for stays.
    return min(max(known.replicas, wanted), wanted + max_surge)
