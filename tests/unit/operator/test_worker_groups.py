"""How groups of workers are named, and how a new one takes over from an old one, step by step."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.operator.api import InferenceService
from shoal.operator.api.checking import check
from shoal.operator.api.roles import worker_roles
from shoal.operator.planner.kubernetes import Manifest, Observed, Owner, Platform, observe, plan
from shoal.operator.planner.kubernetes.groups import group_hash, plan_groups
from shoal.operator.planner.kubernetes.observed import GROUP_KINDS
from support.manifests import MINIMAL_ON_KUBERNETES, with_fields

OWNER = Owner(namespace="models", uid="0d6ef4bd-5f1c-4a76-a8a0-3f2f6d0f0e3c")
PLATFORM = Platform(apis=frozenset({"leaderworkerset.x-k8s.io/v1"}))
PREFILL_AND_DECODE = {"spec.workers.device": "cuda", "spec.prefill": {"replicas": 2}, "spec.decode": {"replicas": 3}}
ON_TWO_PODS = {"spec.workers": {"device": "cuda", "parallelism": {"tensor": 8, "pipeline": 2}, "replicas": 2}}


def service_of(**fields: Any) -> InferenceService:
    paths = {path.replace("__", "."): value for path, value in fields.items()}
    service, problems = check(InferenceService, with_fields(MINIMAL_ON_KUBERNETES, paths))
    assert service is not None, problems
    return service


def workloads(service: InferenceService, observed: Observed | None = None) -> dict[str, Manifest]:
    """Name -> workload of engines."""
    objects = plan(service, PLATFORM, OWNER, observed)
    return {found["metadata"]["name"]: found for found in objects if found["kind"] in GROUP_KINDS}


def running(found: Manifest, ready: int | None = None, **metadata: Any) -> Manifest:
    """As it is on the cluster once `ready` workers are; None: all."""
    replicas = found["spec"]["replicas"]
    status = {"readyReplicas": min(replicas, replicas if ready is None else ready), "replicas": replicas}
    return {**found, "metadata": {**found["metadata"], "uid": "u", **metadata}, "status": status}


def settle(service: InferenceService, live: dict[str, Manifest], steps: int = 100) -> dict[str, Manifest]:
    """Reconciles with pods that become ready at once, until nothing changes."""
    for _ in range(steps):
        planned = workloads(service, observe(live.values()))
        after = {name: running(found) for name, found in planned.items()}
        if after == live:
            return live
        live = after
    raise AssertionError("it does not come to an end")


def test_a_first_group_has_the_plain_name() -> None:
    assert set(workloads(service_of())) == {"smol-worker"}
    assert set(workloads(service_of(**PREFILL_AND_DECODE))) == {"smol-prefill", "smol-decode"}


@pytest.mark.parametrize(
    "fields",
    [
        {"spec.workers.replicas": 5},
        {"spec.workers.resources": {"cpu": 2}},
        {"spec.model.name": "other"},
        {"spec.model.maxModelLen": 1000},
        {"spec.kvCache.memory": "1Gi"},
        {"spec.model.dtype": "auto"},
        {"spec.workers.parallelism": {"tensor": 1}},
    ],
    ids=str,
)
def test_what_changes_in_place_is_the_same_group(fields: dict[str, Any]) -> None:
    before = running(workloads(service_of())["smol-worker"])
    after = workloads(service_of(**fields), observe([before]))
    assert set(after) == {"smol-worker"}
    assert after["smol-worker"]["spec"]["selector"] == before["spec"]["selector"]


@pytest.mark.parametrize(
    "fields",
    [
        {"spec.model.uri": "hf://org/next"},
        {"spec.model.revision": "v2"},
        {"spec.model.dtype": "float32"},
        {"spec.workers.device": "cuda"},
        {"spec.workers": {"device": "cuda", "parallelism": {"tensor": 2}}},
        ON_TWO_PODS,
    ],
    ids=str,
)
def test_another_group_starts_beside_the_old_one_and_takes_over(fields: dict[str, Any]) -> None:
    old = workloads(service_of())["smol-worker"]
    service = service_of(**fields)
    digest = group_hash(service, worker_roles(service.spec)[0])
    live = {"smol-worker": running(old)}
    step = workloads(service, observe(live.values()))
    assert set(step) == {"smol-worker", f"smol-worker-{digest}"}
    assert step["smol-worker"] == old, "the old one is left as it is"
    assert set(settle(service, live)) == {f"smol-worker-{digest}"}


def test_the_old_group_stays_until_somebody_is_ready() -> None:
    service = service_of(**{"spec.model.revision": "v2"})
    live = {"smol-worker": running(workloads(service_of())["smol-worker"])}
    for _ in range(3):
        planned = workloads(service, observe(live.values()))
        assert "smol-worker" in planned
        live = {name: running(found, None if name == "smol-worker" else 0) for name, found in planned.items()}


def test_an_old_group_that_serves_nobody_goes_at_once() -> None:
    service = service_of(**{"spec.model.revision": "v2"})
    live = [running(workloads(service_of())["smol-worker"], ready=0)]
    assert len(workloads(service, observe(live))) == 1


def test_going_back_goes_on_with_the_old_group() -> None:
    first, second = service_of(), service_of(**{"spec.model.revision": "v2"})
    live = {"smol-worker": running(workloads(first)["smol-worker"])}
    live = {name: running(found) for name, found in workloads(second, observe(live.values())).items()}
    assert len(live) == 2
    assert set(settle(first, live)) == {"smol-worker"}


def test_the_next_change_finds_the_plain_name_free_again() -> None:
    live = {"smol-worker": running(workloads(service_of())["smol-worker"])}
    live = settle(service_of(**{"spec.model.revision": "v2"}), live)
    assert set(settle(service_of(**{"spec.model.revision": "v3"}), live)) == {"smol-worker"}


def test_a_copy_under_another_name_is_nobodys() -> None:
    mine = running(workloads(service_of())["smol-worker"])
    copy = running(mine, name="smol-copy")
    assert set(workloads(service_of(), observe([copy, mine]))) == {"smol-worker"}


def test_a_name_is_taken_until_its_object_is_gone() -> None:
    ending = running(workloads(service_of())["smol-worker"], deletionTimestamp="2026-01-01T00:00:00Z")
    (name,) = workloads(service_of(), observe([ending]))
    assert name.startswith("smol-worker-")


def test_recreate_makes_room_first() -> None:
    service = service_of(**{"spec.model.revision": "v2", "spec.rollout": {"strategy": "Recreate"}})
    live = running(workloads(service_of())["smol-worker"])
    (name,) = workloads(service, observe([live]))
    assert name.startswith("smol-worker-")


def test_roles_take_over_from_a_group_that_did_everything_and_back() -> None:
    both, apart = service_of(**{"spec.workers.device": "cuda"}), service_of(**PREFILL_AND_DECODE)
    live = {"smol-worker": running(workloads(both)["smol-worker"])}
    step = workloads(apart, observe(live.values()))
    assert set(step) == {"smol-worker", "smol-prefill", "smol-decode"}
    live = settle(apart, live)
    assert set(live) == {"smol-prefill", "smol-decode"}
    assert set(settle(both, live)) == {"smol-worker"}


def test_what_a_leaving_role_needs_stays_with_it() -> None:
    both, apart = service_of(**{"spec.workers.device": "cuda"}), service_of(**PREFILL_AND_DECODE)
    live = {name: running(found) for name, found in workloads(apart).items()}
    step = {(found["kind"], found["metadata"]["name"]) for found in plan(both, PLATFORM, OWNER, observe(live.values()))}
    for name in ("smol-worker", "smol-prefill", "smol-decode"):
        assert {(kind, name) for kind in ("ServiceAccount", "NetworkPolicy", "PodDisruptionBudget")} <= step
    after = {found["metadata"]["name"] for found in plan(both, PLATFORM, OWNER)}
    assert "smol-decode" not in after


def test_ranks_of_a_leaving_group_still_reach_each_other() -> None:
    whole = service_of(**{"spec.workers": {"device": "cuda", "replicas": 2}})
    live = {name: running(found) for name, found in workloads(service_of(**ON_TWO_PODS)).items()}

    def has_ranks(observed: Observed | None) -> bool:
        objects = plan(whole, PLATFORM, OWNER, observed)
        policies = {found["metadata"]["name"]: found for found in objects if found["kind"] == "NetworkPolicy"}
        return any("ports" not in rule for rule in policies["smol-worker"]["spec"]["ingress"])

    assert has_ranks(observe(live.values()))
    assert not has_ranks(None)


def test_an_old_group_is_applied_as_it_is() -> None:
    """What the API server filled in stays, and so does what an earlier operator had planned otherwise."""
    live = running(workloads(service_of())["smol-worker"], annotations={"a": "b"}, resourceVersion="5")
    live["spec"] = {**live["spec"], "revisionHistoryLimit": 10}
    step = workloads(service_of(**{"spec.model.revision": "v2"}), observe([live]))["smol-worker"]
    assert step["spec"] == live["spec"]
    assert set(step["metadata"]) == {"name", "namespace", "labels", "ownerReferences"}
    assert "status" not in step


def test_a_group_older_than_hashes_is_replaced() -> None:
    old = running(workloads(service_of())["smol-worker"])
    labels = {key: value for key, value in old["metadata"]["labels"].items() if key != "shoal.dev/group"}
    old["metadata"]["labels"] = labels
    assert len(settle(service_of(), {"smol-worker": old})) == 1


def test_names_fit_the_labels_that_controllers_make_of_them() -> None:
    service = service_of(**{"metadata.name": "a" * 40, **PREFILL_AND_DECODE})
    live = {name: running(found) for name, found in workloads(service).items()}
    for name in settle(
        service_of(**{"metadata.name": "a" * 40, **PREFILL_AND_DECODE, "spec.model.revision": "v2"}), live
    ):
        assert len(name) <= 49
        assert name.startswith("aaaa")


@settings(max_examples=40, deadline=None)
@given(
    wanted=st.integers(1, 8),
    surge=st.integers(1, 3),
    old=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=3),
    speeds=st.lists(st.integers(0, 2), min_size=1, max_size=60),
)
def test_taking_over_keeps_its_bounds_and_ends(
    wanted: int, surge: int, old: list[tuple[int, int]], speeds: list[int]
) -> None:
    """Pods become ready at any pace, also in groups that are on their way out."""
    fields = {"spec.workers.replicas": wanted, "spec.rollout": {"maxSurge": surge}}
    live: dict[str, Manifest] = {}
    for index, (replicas, ready) in enumerate(old):
        earlier = service_of(**{"spec.model.revision": f"v{index}", "spec.workers.replicas": max(1, replicas)})
        found = workloads(earlier, observe(live.values()))
        name = next(name for name in found if name not in live)
        found[name]["spec"]["replicas"] = replicas
        live[name] = running(found[name], ready)
    service = service_of(**fields)
    for speed in [*speeds, *[1] * 40]:
        asked = sum(found["spec"]["replicas"] for found in live.values())
        ready = sum(found["status"]["readyReplicas"] for found in live.values())
        planned = workloads(service, observe(live.values()))
        assert plan_groups(service, observe(live.values())) == plan_groups(service, observe(live.values()))
        assert sum(found["spec"]["replicas"] for found in planned.values()) <= max(wanted + surge, asked)
        before = {name: found["status"]["readyReplicas"] for name, found in live.items()}
        still = sum(min(before.get(name, 0), found["spec"]["replicas"]) for name, found in planned.items())
        assert still >= min(wanted, ready) - unready_places(live)
        live = {name: running(found, before.get(name, 0) + speed) for name, found in planned.items()}
    assert len(live) == 1
    assert next(iter(live.values()))["spec"]["replicas"] == wanted


def unready_places(live: dict[str, Manifest]) -> int:
    """Places of old groups that are kept for pods which are not ready: which pods go Kubernetes decides."""
    return sum(found["spec"]["replicas"] - found["status"]["readyReplicas"] for found in live.values())


def test_pods_of_a_worker_are_a_leader_worker_set() -> None:
    (found,) = workloads(service_of(**ON_TWO_PODS)).values()
    assert (found["kind"], found["spec"]["replicas"]) == ("LeaderWorkerSet", 2)
    template = found["spec"]["leaderWorkerTemplate"]
    assert template["size"] == 2
    leader, follower = template["leaderTemplate"], template["workerTemplate"]
    for pod in (leader, follower):
        (engine,) = pod["spec"]["containers"]
        assert engine["resources"]["limits"] == {"nvidia.com/gpu": "8"}
        assert {"--tensor-parallel-size=8", "--pipeline-parallel-size=2"} <= set(engine["args"])
    assert leader["metadata"]["labels"]["shoal.dev/endpoint"] == "worker"
    assert "shoal.dev/endpoint" not in follower["metadata"]["labels"]
    assert "readinessProbe" in leader["spec"]["containers"][0]
    assert "readinessProbe" not in follower["spec"]["containers"][0]


def test_requests_go_to_those_who_answer() -> None:
    objects = plan(service_of(**PREFILL_AND_DECODE), PLATFORM, OWNER)
    services = {found["metadata"]["name"]: found["spec"] for found in objects if found["kind"] == "Service"}
    chosen = {
        name: [
            found["metadata"]["name"]
            for found in objects
            if found["kind"] in GROUP_KINDS
            and services[name]["selector"].items() <= found["spec"]["template"]["metadata"]["labels"].items()
        ]
        for name in ("smol-worker", "smol-prefill")
    }
    assert chosen == {"smol-worker": ["smol-decode"], "smol-prefill": ["smol-prefill"]}


def test_one_number_scales_both_roles() -> None:
    for total, expected in ((1, (1, 1)), (2, (1, 1)), (8, (2, 6)), (9, (2, 7))):
        fields = {
            **PREFILL_AND_DECODE,
            "spec.prefill": {},
            "spec.decode": {},
            "spec.ratio": {"prefill": 1, "decode": 3},
        }
        found = workloads(service_of(**fields, **{"spec.workers.replicas": total}))
        assert (found["smol-prefill"]["spec"]["replicas"], found["smol-decode"]["spec"]["replicas"]) == expected
