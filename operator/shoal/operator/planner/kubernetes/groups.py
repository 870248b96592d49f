"""Groups of workers: what they are called, and how a new one takes over from an old one.

A group is a workload whose workers are alike. What can change in place, pod by pod (`rolling`), leaves it the same
group. What cannot (the model, how it is divided, the role) makes another one: the new group starts beside the old one,
has its part of the requests as its workers become ready, and the old one goes as they do.

    groups = plan_groups(service, observed)   # at each reconcile, with what the last one led to

Nothing is remembered between calls: where a takeover stands follows from what is there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from shoal.operator.api import InferenceService
from shoal.operator.api.roles import WorkerRole, worker_roles
from shoal.operator.api.spec import Parallelism, Rollout
from shoal.operator.planner.kubernetes.names import object_name
from shoal.operator.planner.kubernetes.observed import Observed, ObservedGroup
from shoal.operator.planner.kubernetes.platform import Manifest

_MAX_NAME: Final = 49
"""Of a group: a StatefulSet puts 11 characters after its name into a label of 63; a LeaderWorkerSet 3 before those."""
_MODEL_FIELDS: Final = {
    "uri": None, "sha256": None, "revision": None, "dtype": "auto", "quantization": "auto", "load_format": "auto",
}  # fmt: skip
"""What other weights or other arithmetic comes from, and what counts as not said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedGroup:
    """A group that the spec asks for, as it should be next."""

    role: WorkerRole
    name: str
    hash: str
    replicas: int
    """Workers for the moment: fewer than the role's while an old group has their places."""
    governing: str
    """Service whose endpoints its answering pods are."""
    known: ObservedGroup | None = None
    """It as it is, while no old group has a part of its places."""

    @property
    def kind(self) -> str:
        """One pod a worker, or several."""
        return workload_kind(self.role)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPlan:
    """All groups of a service, for the moment."""

    groups: tuple[PlannedGroup, ...]
    """One for each role of the spec."""
    draining: tuple[Manifest, ...]
    """Workloads of earlier specs that still have work, with as many workers as they should keep, else as they are.
    What is neither here nor in `groups` is to be deleted: its pods drain by themselves."""


def plan_groups(service: InferenceService, observed: Observed) -> GroupPlan:
    """The next step from what is there to what the spec says; the same again once that is reached."""
    spec = service.spec
    groups: list[PlannedGroup] = []
    draining: list[Manifest] = []
    current: set[tuple[str, str]] = set()
    for role in worker_roles(spec):
        digest = group_hash(service, role)
        name = _name(service, role, digest, observed)
        known = _find(observed, workload_kind(role), name)
        current.add((workload_kind(role), name))
        old = [each for each in _going_on(observed) if each.role == role.component and not _is_same(each, role, digest)]
        replicas, kept = _take_over(role.replicas, spec.rollout, known, old)
        governing = object_name(service, endpoint_of(role))
        group = PlannedGroup(role=role, name=name, hash=digest, replicas=replicas, governing=governing)
        groups.append(group if old else replace(group, known=known))
        draining += [_resized(each, kept[each.name]) for each in old if kept[each.name]]
    draining += _of_other_roles(groups, observed, spec.rollout)
    return GroupPlan(groups=tuple(groups), draining=tuple(draining))


def endpoint_of(role: WorkerRole) -> str:
    """Whose Service has the role's pods: requests go to `worker`, whether they do all of it or only write answers."""
    return "prefill" if role.name == "prefill" else "worker"


def workload_kind(role: WorkerRole) -> str:
    """A StatefulSet, or a LeaderWorkerSet where a worker is several pods."""
    return "StatefulSet" if role.num_pods == 1 else "LeaderWorkerSet"


def group_hash(service: InferenceService, role: WorkerRole) -> str:
    """Eight hexadecimal digits of what cannot change in place.

    Fields that are as if not said do not count, so that one that a later version adds leaves running groups alone.
    """
    spec = service.spec
    model = {name: getattr(spec.model, name) for name in _MODEL_FIELDS}
    immutable = {
        "service": service.metadata.name,
        "role": role.component,
        "device": spec.workers.device,
        "model": _said(model, _MODEL_FIELDS),
        "parallelism": _said(msgspec.structs.asdict(role.parallelism), msgspec.structs.asdict(Parallelism())),
        "pods": role.num_pods,
    }
    return hashlib.sha256(json.dumps(immutable, sort_keys=True).encode()).hexdigest()[:8]


def _name(service: InferenceService, role: WorkerRole, digest: str, observed: Observed) -> str:
    """That of the group if it is there; otherwise `NAME-worker`, or `NAME-worker-HASH` if another one has that."""
    plain, suffix = object_name(service, role.component), f"-{role.component}-{digest}"
    hashed = service.metadata.name[: _MAX_NAME - len(suffix)].rstrip("-") + suffix
    there = {each.name for each in _going_on(observed) if each.role == role.component and _is_same(each, role, digest)}
    taken = {each.name for each in observed.groups}
    if plain in there or (hashed not in there and plain not in taken):
        return plain
    return hashed


def _is_same(each: ObservedGroup, role: WorkerRole, digest: str) -> bool:
    return each.hash == digest and each.kind == workload_kind(role)


def _going_on(observed: Observed) -> list[ObservedGroup]:
    return [each for each in observed.groups if not each.is_ending]


def _find(observed: Observed, kind: str, name: str) -> ObservedGroup | None:
    return next((each for each in observed.groups if (each.kind, each.name) == (kind, name)), None)


def _take_over(
    wanted: int, rollout: Rollout, new: ObservedGroup | None, old: Sequence[ObservedGroup]
) -> tuple[int, Mapping[str, int]]:
    """Workers of the new group, and of each old one by name.

    Together never more than `wanted + maxSurge`, unless there were more before; and as many ready ones as there were,
    up to `wanted`. Neither side ever steps back, so it ends, if the new workers become ready.
    """
    if rollout.strategy == "Recreate" or not old:
        return wanted, {each.name: 0 for each in old}
    ready, asked = (0, 0) if new is None else (new.ready, new.replicas)
    to_keep = max(0, wanted - ready)
    kept = {}
    for each in old:
        # One without a ready worker serves nobody, and may be why there is a new one.
        kept[each.name] = min(each.replicas, to_keep) if each.ready else 0
        to_keep -= kept[each.name]
    # Those that are asked to go count until they are asked: their GPUs are free only later, and the new pods wait.
    room = wanted + rollout.max_surge - sum(each.replicas for each in old)
    return min(wanted, max(asked, room, 0)), kept


def _of_other_roles(groups: Sequence[PlannedGroup], observed: Observed, rollout: Rollout) -> list[Manifest]:
    """Groups of roles that the spec has no more stay as they are until all that take over are ready."""
    roles = {group.role.component for group in groups}
    left = [each for each in _going_on(observed) if each.role not in roles and each.ready]
    if not left or rollout.strategy == "Recreate":
        return []
    found = [(group, _find(observed, group.kind, group.name)) for group in groups]
    if all(known is not None and known.ready >= group.role.replicas for group, known in found):
        return []
    return [_resized(each, each.replicas) for each in left]


def _resized(each: ObservedGroup, replicas: int) -> Manifest:
    """All of what it is, so that to apply it changes nothing else."""
    return {**each.manifest, "spec": {**each.manifest["spec"], "replicas": replicas}}


def _said(values: Mapping[str, Any], unsaid: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value != unsaid.get(name)}
