"""What people are told of an InferenceService, by what is on the cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from shoal.operator.api import parse_manifest
from shoal.operator.api.crd import custom_resource_definition
from shoal.operator.api.status import Condition, Endpoints, InferenceServiceStatus, RoleStatus
from shoal.operator.planner.kubernetes import Manifest, Owner, Platform, plan
from shoal.operator.reconcile.caches import CachesState
from shoal.operator.reconcile.events import events_of
from shoal.operator.reconcile.observing import RoleState, external_host_of, observe_roles
from shoal.operator.reconcile.routes import RoutesState
from shoal.operator.reconcile.status import Findings, status_of
from support.manifests import MINIMAL_ON_KUBERNETES, with_fields

SERVICE = parse_manifest(MINIMAL_ON_KUBERNETES, "m")
PLAN = plan(SERVICE, Platform(), Owner(namespace="n"))
NOW, LATER = "2030-01-01T00:00:00Z", "2030-01-01T00:01:00Z"
READY = {name: RoleState(name, 1, 1, True) for name in ("gateway", "tokenizer", "worker")}
CONNECTED = RoutesState(num_envoys=1)
FLOWING = CachesState("True", "Flowing", "one gateway told by one worker")
OBJECT = {"metadata": {"name": "smol", "namespace": "n", "uid": "u", "resourceVersion": "5"}}


def told(
    roles: Mapping[str, RoleState], before: tuple[Condition, ...] = (), now: str = NOW, **fields: Any
) -> InferenceServiceStatus:
    findings = Findings(
        generation=3, roles=roles, **{"service": SERVICE, "routes": CONNECTED, "caches": FLOWING, **fields}
    )
    return status_of(findings, before, now)


def states(status: InferenceServiceStatus) -> dict[str, str]:
    return {condition.type: condition.status for condition in status.conditions or ()}


def with_worker(**fields: Any) -> dict[str, RoleState]:
    return {
        **READY,
        "worker": RoleState(**{"component": "worker", "desired": 2, "ready": 0, "is_current": True, **fields}),
    }


def test_all_is_well() -> None:
    status = told(READY)
    assert (status.phase, status.message, status.observed_generation) == ("Ready", "", 3)
    assert set(states(status).values()) == {"True", "False"}
    assert [kind for kind, state in states(status).items() if state == "False"] == ["Degraded"]


@pytest.mark.parametrize(
    ("roles", "phase", "message"),
    [
        ({}, "Starting", "there is no plan yet; there is no plan yet"),
        (with_worker(), "Starting", "0 of 2 workers ready"),
        (with_worker(ready=1), "Degraded", "1 of 2 workers ready"),
        (with_worker(trouble="a: b", reason="X"), "Starting", "0 of 2 workers ready; a: b"),
        (with_worker(ready=2, is_current=False), "Updating", "2 of 2 workers ready, being replaced"),
    ],
)
def test_what_is_missing(roles: dict[str, RoleState], phase: str, message: str) -> None:
    status = told(roles)
    assert (status.phase, status.message) == (phase, message)
    assert states(status)["Ready"] == ("False" if phase == "Starting" else "True")


def test_what_nobody_checked_and_what_workers_will_refuse_is_said() -> None:
    """Where no webhook answered, nobody was warned."""
    fields = {"spec.workers": {"device": "cuda", "parallelism": {"tensor": 2}}}
    service = parse_manifest(yaml.safe_dump(with_fields(MINIMAL_ON_KUBERNETES, fields)), "m")
    [accepted] = [found for found in told(READY, service=service).conditions or () if found.type == "Accepted"]
    assert (accepted.status, accepted.reason) == ("True", "ValidWithWarnings")
    assert "spec.model.config: what smol needs of its GPUs was not checked" in accepted.message
    assert "spec.workers.parallelism: workers of this version refuse it" in accepted.message
    [accepted] = [found for found in told(READY).conditions or () if found.type == "Accepted"]
    assert (accepted.reason, accepted.message) == ("Valid", "the spec is valid")


def test_pods_that_are_not_made_are_said() -> None:
    """A StatefulSet has no condition for that."""
    wanted = next(found for found in PLAN if found["kind"] == "StatefulSet")
    wanted = {**wanted, "spec": {**wanted["spec"], "replicas": 3}}
    live = {**wanted, "metadata": {**wanted["metadata"], "generation": 1}}
    status = {"observedGeneration": 1, "replicas": 1, "readyReplicas": 1, "updatedReplicas": 1}
    role = observe_roles([wanted], [{**live, "status": status}])["worker"]
    assert role.trouble.startswith("smol-worker: 2 of 3 pods have not been made")
    assert not observe_roles([wanted], [{**live, "status": {**status, "observedGeneration": 0}}])["worker"].trouble
    assert not observe_roles([wanted], [{**live, "status": {**status, "replicas": 3}}])["worker"].trouble


def test_an_invalid_spec_says_why() -> None:
    status = told({}, service=None, invalid="spec.x: is wrong")
    assert (status.phase, status.message) == ("Failed", "spec.x: is wrong")
    assert states(status) == {"Accepted": "False", "Ready": "False"}


def test_what_cannot_be_applied_says_why_and_what_runs_goes_on() -> None:
    status = told(READY, not_applied=("Forbidden", "may not"))
    assert (status.phase, status.message) == ("Failed", "may not")
    assert states(status)["Ready"] == "True"


def test_routes_that_envoy_refuses_are_told_of() -> None:
    status = told(READY, routes=RoutesState(2, "malformed IP address"))
    assert status.phase == "Degraded"
    assert status.message == "Envoy goes on with what it had, and refuses: malformed IP address"
    assert states(status)["RoutesProgrammed"] == "False"


@pytest.mark.parametrize(
    ("routes", "state", "message"),
    [
        (RoutesState(), "Unknown", "no Envoy is connected to an operator"),
        (RoutesState(2, num_waiting=1), "Unknown", "1 of 2 Envoys have yet to accept what they are told"),
        (RoutesState(2), "True", "2 Envoys have accepted what they are told"),
    ],
)
def test_envoys_that_only_connected_have_accepted_nothing(routes: RoutesState, state: str, message: str) -> None:
    status = told(READY, routes=routes)
    [found] = [each for each in status.conditions or () if each.type == "RoutesProgrammed"]
    assert (found.status, found.message, status.phase) == (state, message, "Ready")


def test_a_cache_that_silently_stopped_working_is_told_of() -> None:
    stopped = told(READY, caches=CachesState("False", "EventsStopped", "a hears nothing of b"))
    assert (stopped.phase, stopped.message) == ("Degraded", "a hears nothing of b")
    assert states(stopped)["CacheEventsFlowing"] == "False"
    assert states(stopped)["Ready"] == "True", "it serves"
    degraded = next(found for found in stopped.conditions or () if found.type == "Degraded")
    assert (degraded.status, degraded.reason) == ("True", "EventsStopped")
    again = told(READY, stopped.conditions or (), LATER)
    events = events_of(OBJECT, stopped.conditions or (), again.conditions or (), LATER)
    assert [event["reason"] for event in events] == ["CacheEventsFlowing", "NotDegraded"]
    assert told(READY, caches=CachesState()).phase == "Ready", "nobody asked yet"


def test_the_two_halves_of_a_service_are_told_apart() -> None:
    halves = {name: RoleState(name, 2, 2, True) for name in ("gateway", "tokenizer", "prefill")}
    halves["decode"] = RoleState("decode", 4, 0, True, "d: no", "Unschedulable")
    status = told(halves)
    workers = RoleStatus(desired=6, ready=2, current=0)
    assert (status.workers, status.workers_ready, status.phase) == (workers, "2/6", "Starting")
    assert status.message == "0 of 4 decode workers ready; d: no"
    assert status.prefill is not None
    assert status.prefill.ready == 2
    assert status.workers is not None
    assert status.workers.ready == 2
    assert status.worker_selector == "shoal.dev/inferenceservice=smol,shoal.dev/endpoint"
    assert told({**halves, "decode": RoleState("decode", 4, 1, True)}).phase == "Degraded"
    stores = {**READY, "kv-store": RoleState("kv-store", 2, 0, True)}
    assert (told(stores).phase, told(stores).message) == ("Degraded", "0 of 2 KV stores ready")


def test_an_outage_is_told_from_a_start() -> None:
    def degraded(status: InferenceServiceStatus) -> tuple[str, str, str | None]:
        [found] = [each for each in status.conditions or () if each.type == "Degraded"]
        return found.status, found.message, status.phase

    starting = told(with_worker())
    assert degraded(starting) == ("False", "nothing is served yet", "Starting")
    still = told(with_worker(), starting.conditions or ())
    assert degraded(still) == ("False", "nothing is served yet", "Starting")
    served = told(READY, still.conditions or ())
    out = told(with_worker(), served.conditions or (), LATER)
    assert degraded(out) == ("True", "nothing is served any more", "Degraded")
    assert degraded(told(with_worker(), out.conditions or ())) == ("True", "nothing is served any more", "Degraded")
    assert degraded(told(READY, out.conditions or ()))[0] == "False"


def test_autoscalers_count_workers_that_start_and_none_that_only_take_over() -> None:
    """They take the status for what there is, and ask for more or fewer than that."""
    service = parse_manifest(MINIMAL_ON_KUBERNETES.replace("spec:", "spec:\n  workers: {replicas: 3}", 1), "m")
    starting = told({**READY, "worker": RoleState("worker", 3, 1, True, current=3)}, service=service)
    surging = told({**READY, "worker": RoleState("worker", 4, 3, False, current=4)}, service=service)
    for status in (starting, surging):
        assert status.workers is not None
        assert status.workers.current == 3
    scale = custom_resource_definition()["spec"]["versions"][0]["subresources"]["scale"]
    assert scale["statusReplicasPath"] == ".status.workers.current"


def test_endpoints_are_those_that_answer() -> None:
    only_grpc = parse_manifest(
        MINIMAL_ON_KUBERNETES.replace("spec:", "spec:\n  gateway: {http: {enabled: false}}", 1), "m"
    )
    inside = Endpoints(grpc="smol.default.svc:8080", http="http://smol.default.svc:8080")
    assert told(READY).endpoints == inside
    assert told(READY, service=only_grpc).endpoints == Endpoints(grpc="smol.default.svc:8080")
    balanced: dict[str, Any] = {"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}]}}}
    outside = told(READY, external_host=external_host_of(balanced)).endpoints
    assert outside is not None
    assert outside.external == "192.0.2.7:8080"
    assert external_host_of(None) == external_host_of({}) == external_host_of({"status": {"loadBalancer": {}}}) == ""


def test_conditions_remember_when_they_changed() -> None:
    first = told(with_worker())
    second = told(with_worker(ready=1), first.conditions or (), LATER)
    times = {condition.type: condition.last_transition_time for condition in second.conditions or ()}
    assert times["Accepted"] == NOW
    assert times["WorkersReady"] == NOW, "not ready before, not ready now"
    assert times["Ready"] == LATER


def test_events_are_of_what_changed() -> None:
    first = told(with_worker())
    second = told(READY, first.conditions or (), LATER)
    began = [event["reason"] for event in events_of(OBJECT, (), first.conditions or (), NOW)]
    assert began == ["Accepted", "Planned", "GatewaysReady"]
    then = events_of(OBJECT, first.conditions or (), second.conditions or (), LATER)
    assert [(event["reason"], event["type"]) for event in then] == [
        ("WorkersReady", "Normal"),
        ("NotDegraded", "Normal"),
        ("Ready", "Normal"),
    ]
    assert events_of(OBJECT, second.conditions or (), second.conditions or (), LATER) == []
    broken = told({}, second.conditions or (), LATER, service=None, invalid="x")
    assert events_of(OBJECT, second.conditions or (), broken.conditions or (), LATER)[0]["type"] == "Warning"


def live(component: str, kind: str, **status: Any) -> Manifest:
    wanted = next(found for found in PLAN if found["kind"] == kind and found["metadata"]["name"] == f"smol-{component}")
    return {**wanted, "metadata": {**wanted["metadata"], "generation": 2}, "status": status}


def pod(**status: Any) -> Manifest:
    labels = live("worker", "StatefulSet")["metadata"]["labels"]
    return {"kind": "Pod", "metadata": {"name": "smol-worker-0", "labels": labels}, "status": status}


WAITING = {
    "containerStatuses": [{"name": "worker", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no"}}}]
}
CRASHED = {
    "containerStatuses": [
        {
            "name": "worker",
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "later"}},
            "lastState": {"terminated": {"exitCode": 2}},
        }
    ]
}
UNSCHEDULED = {
    "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes"}]
}
STARTING = {"containerStatuses": [{"name": "worker", "state": {"waiting": {"reason": "ContainerCreating"}}}]}


@pytest.mark.parametrize(
    ("status", "reason", "trouble"),
    [
        (WAITING, "ImagePullBackOff", "smol-worker: smol-worker-0, worker: ImagePullBackOff: no"),
        (
            CRASHED,
            "CrashLoopBackOff",
            "smol-worker: smol-worker-0, worker: CrashLoopBackOff, last exit code 2: later",
        ),
        (UNSCHEDULED, "Unschedulable", "smol-worker: smol-worker-0 fits on no node: 0/2 nodes"),
        (STARTING, "", ""),
    ],
)
def test_what_keeps_a_pod_is_told(status: dict[str, Any], reason: str, trouble: str) -> None:
    workers = live("worker", "StatefulSet", replicas=1, updatedReplicas=1, observedGeneration=2)
    role = observe_roles(PLAN, [workers, pod(**status)])["worker"]
    assert (role.ready, role.reason, role.trouble) == (0, reason, trouble)


def test_a_workload_that_its_controller_has_not_seen_is_not_ready() -> None:
    counts = {"replicas": 1, "updatedReplicas": 1, "readyReplicas": 1}
    for seen, is_ready in ((1, False), (2, True)):
        roles = observe_roles(PLAN, [live("worker", "StatefulSet", observedGeneration=seen, **counts)])
        assert roles["worker"].is_ready is is_ready
    assert roles["gateway"] == RoleState("gateway", 1, 0, False)


def test_pods_that_may_not_be_made_are_told_of() -> None:
    failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota"}
    role = observe_roles(PLAN, [live("gateway", "Deployment", observedGeneration=2, conditions=[failure])])["gateway"]
    assert (role.reason, role.trouble) == ("FailedCreate", "smol-gateway: exceeded quota")


def test_two_groups_of_a_component_are_one_being_replaced() -> None:
    old, new = live("worker", "StatefulSet"), live("worker", "StatefulSet")
    counts = {"replicas": 1, "updatedReplicas": 1, "readyReplicas": 1, "observedGeneration": 2}
    found = [
        {**each, "metadata": {**each["metadata"], "name": name}, "status": counts}
        for each, name in ((old, "smol-worker"), (new, "smol-worker-0a1b2c3d"))
    ]
    role = observe_roles(found, found)["worker"]
    assert (role.desired, role.ready, role.is_ready, role.reason) == (2, 2, False, "BeingReplaced")
    for ready, missing in ((1, 0), (0, 1)):
        one = [{**found[0], "status": {**counts, "readyReplicas": ready}}, {**found[1], "status": {}}]
        role = observe_roles(one, one, {"worker": 1})["worker"]
        assert (role.desired - role.ready, role.is_ready, role.reason) == (missing, False, "BeingReplaced")
    leaving = observe_roles(found[:1], found, {"prefill": 1})["worker"]
    assert (leaving.ready, leaving.is_ready, leaving.reason) == (1, False, "BeingReplaced")
    assert observe_roles(found[:1], found)["worker"].is_ready


@pytest.mark.parametrize(
    ("kind", "spec", "status", "wanted"),
    [
        (
            "DaemonSet",
            {},
            {
                "observedGeneration": 2,
                "desiredNumberScheduled": 3,
                "currentNumberScheduled": 3,
                "numberReady": 2,
                "updatedNumberScheduled": 3,
            },
            (3, 2, True),
        ),
        ("DaemonSet", {}, {}, (0, 0, False)),
        # Its status names no generation.
        ("LeaderWorkerSet", {"replicas": 2}, {"replicas": 2, "readyReplicas": 1, "updatedReplicas": 2}, (2, 1, True)),
        # Left to an autoscaler, whose wish the cluster has.
        (
            "StatefulSet",
            {},
            {"observedGeneration": 2, "replicas": 5, "readyReplicas": 5, "updatedReplicas": 5},
            (5, 5, True),
        ),
    ],
)
def test_each_kind_says_how_many_pods_it_has(
    kind: str, spec: dict[str, Any], status: dict[str, Any], wanted: tuple[int, int, bool]
) -> None:
    labels = {"app.kubernetes.io/component": "worker"}
    planned: Manifest = {"kind": kind, "metadata": {"name": "x", "labels": labels}, "spec": spec}
    found = {**planned, "metadata": {**planned["metadata"], "generation": 2}, "spec": {"replicas": 5}, "status": status}
    role = observe_roles([planned], [found])["worker"]
    assert (role.desired, role.ready, role.is_current) == wanted
