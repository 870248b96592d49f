"""How the pods of a group that stays are replaced, step by step, beside a model of a StatefulSet's controller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.operator.api import InferenceService
from shoal.operator.api.checking import check
from shoal.operator.planner.kubernetes import Manifest, Owner, Platform, observe, plan
from support.manifests import MINIMAL_ON_KUBERNETES, with_fields

OWNER = Owner(namespace="models", uid="0d6ef4bd-5f1c-4a76-a8a0-3f2f6d0f0e3c")
PLATFORM = Platform(apis=frozenset({"leaderworkerset.x-k8s.io/v1"}))
OTHER_FLAGS = {"spec.model.maxModelLen": 1000}


def service_of(fields: dict[str, Any]) -> InferenceService:
    service, problems = check(InferenceService, with_fields(MINIMAL_ON_KUBERNETES, fields))
    assert service is not None, problems
    return service


@dataclass
class Cluster:
    """A namespace with one StatefulSet of workers, `podManagementPolicy: Parallel`, and its controller's rules."""

    applied: Manifest | None = None
    generation: int = 0
    current: str = ""
    """Template of all pods before the change."""
    status: dict[str, Any] = field(default_factory=dict)
    """As the controller wrote it last."""
    pods: dict[int, tuple[str, bool]] = field(default_factory=dict)
    """Ordinal -> its template, and whether it is ready."""

    @property
    def template(self) -> str:
        assert self.applied is not None
        return str(self.applied["spec"]["template"])

    @property
    def replicas(self) -> int:
        assert self.applied is not None
        return int(self.applied["spec"]["replicas"])

    @property
    def num_ready(self) -> int:
        return sum(is_ready for _, is_ready in self.pods.values())

    def reconcile(self, fields: dict[str, Any]) -> None:
        """The operator's part."""
        live = [] if self.applied is None else [self.seen()]
        found = plan(service_of(fields), PLATFORM, OWNER, observe(live))
        [workload] = [each for each in found if each["kind"] == "StatefulSet"]
        if workload != self.applied:
            self.applied, self.generation = workload, self.generation + 1

    def seen(self) -> Manifest:
        """As the API server has it."""
        assert self.applied is not None
        metadata = {**self.applied["metadata"], "uid": "u", "generation": self.generation}
        return {**self.applied, "metadata": metadata, "status": self.status}

    def control(self) -> None:
        """The controller's part."""
        self.current = self.current or self.template
        self.pods = {ordinal: pod for ordinal, pod in self.pods.items() if ordinal < self.replicas}
        for ordinal in range(self.replicas):
            self.pods.setdefault(ordinal, (self.template, False))
        self._replace_one()
        if len(self.pods) == self.replicas and all(pod == (self.template, True) for pod in self.pods.values()):
            self.current = self.template
        self.status = {
            "observedGeneration": self.generation,
            "readyReplicas": self.num_ready,
            "currentRevision": self.current,
            "updateRevision": self.template,
        }

    def _replace_one(self) -> None:
        """Of an earlier template, the highest first, if all above it are ready."""
        for ordinal in sorted(self.pods, reverse=True):
            template, is_ready = self.pods[ordinal]
            if template != self.template:
                del self.pods[ordinal]
                return
            if not is_ready:
                return

    def start(self, number: int) -> None:
        """So many pods become ready."""
        waiting = [ordinal for ordinal, (_, is_ready) in sorted(self.pods.items()) if not is_ready]
        for ordinal in waiting[:number]:
            self.pods[ordinal] = (self.pods[ordinal][0], True)


def settled(fields: dict[str, Any]) -> Cluster:
    cluster = Cluster()
    run(cluster, fields)
    return cluster


def run(cluster: Cluster, fields: dict[str, Any], starts: Sequence[int] = ()) -> list[tuple[int, int]]:
    """(ready pods, pods asked for) after each step, until nothing is to be done. `starts`: pods that become ready in
    the first steps; then all of them do."""
    seen: list[tuple[int, int]] = []
    for number in [*starts, *[9] * 60]:
        before = cluster.generation, cluster.status, dict(cluster.pods)
        cluster.reconcile(fields)
        cluster.control()
        seen.append((cluster.num_ready, cluster.replicas))
        cluster.start(number)
        seen.append((cluster.num_ready, cluster.replicas))
        if (cluster.generation, cluster.status, cluster.pods) == before and cluster.num_ready == cluster.replicas:
            break
    assert cluster.current == cluster.template
    return seen


@settings(max_examples=60, deadline=None)
@given(wanted=st.integers(1, 5), surge=st.integers(1, 3), starts=st.lists(st.integers(0, 2), max_size=30))
def test_other_flags_leave_no_moment_with_fewer_workers(wanted: int, surge: int, starts: list[int]) -> None:
    fields = {"spec.workers.replicas": wanted, "spec.rollout": {"maxSurge": surge}}
    cluster = settled(fields)
    seen = run(cluster, {**fields, **OTHER_FLAGS}, starts)
    assert min(ready for ready, _ in seen) >= wanted
    assert max(asked for _, asked in seen) == wanted + surge
    assert cluster.replicas == wanted


def test_with_recreate_one_goes_first() -> None:
    fields = {"spec.rollout": {"strategy": "Recreate"}}
    cluster = settled(fields)
    seen = run(cluster, {**fields, **OTHER_FLAGS})
    assert min(ready for ready, _ in seen) == 0
    assert {asked for _, asked in seen} == {1}


def test_what_changes_no_pod_takes_no_other_pods() -> None:
    cluster = settled({})
    assert {asked for _, asked in run(cluster, {"spec.rollout": {"maxSurge": 3}})} == {1}
    assert {asked for _, asked in run(cluster, {"spec.workers.replicas": 3})} == {3}


def test_flags_that_do_not_start_leave_the_old_worker_and_are_put_right() -> None:
    cluster = settled({})
    for _ in range(20):
        cluster.reconcile(OTHER_FLAGS)
        cluster.control()
    assert (cluster.num_ready, cluster.replicas) == (1, 2)
    assert min(ready for ready, _ in run(cluster, {"spec.model.maxModelLen": 900})) == 1
    assert cluster.replicas == 1


def test_with_nobody_to_take_over_from_pods_are_replaced_where_they_are() -> None:
    cluster = Cluster()
    cluster.reconcile({})
    cluster.control()
    assert {asked for _, asked in run(cluster, OTHER_FLAGS)} == {1}
