"""Any spec that the types allow, and any that follows it: a reconcile answers, by a plan or by a status that says why
there is none, and comes to rest."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
import structlog.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.operator.api.status import InferenceServiceStatus
from shoal.operator.planner.kubernetes import OPTIONAL_APIS, Platform
from shoal.operator.reconcile.controller import Controller
from shoal.operator.xds import Kind
from support.fake_api import FakeApi
from support.manifests import specs
from support.valid_specs import manifest_of, without_contradictions

KEY = ("models", "smol")
MAX_ROUNDS = 30
WORKLOADS = ("statefulsets", "deployments", "daemonsets", "leaderworkersets")
LARGE = [HealthCheck.too_slow, HealthCheck.data_too_large]


def stored(spec: Any) -> dict[str, Any]:
    manifest: dict[str, Any] = msgspec.to_builtins(manifest_of(spec))
    return {**manifest, "metadata": {"name": KEY[1], "namespace": KEY[0]}}


def make_ready(api: FakeApi, share: float) -> None:
    """That share of the pods, as Kubernetes would report them."""
    for where, found in list(api.objects.items()):
        if where[0] in WORKLOADS:
            replicas = int(found["spec"].get("replicas", 1))
            ready, generation = int(share * replicas), found["metadata"]["generation"]
            status = {"replicas": replicas, "readyReplicas": ready, "updatedReplicas": replicas}
            counts = {"desiredNumberScheduled": replicas, "numberReady": ready}
            api.put({**found, "status": {**status, **counts, "observedGeneration": generation}})


async def come_to_rest(controller: Controller, api: FakeApi, share: float) -> InferenceServiceStatus:
    """The status, once nothing is written any more."""
    for _ in range(MAX_ROUNDS):
        before = api.version
        await controller.reconciler.reconcile(KEY)
        make_ready(api, share)
        if api.version == before:
            status = api.objects["inferenceservices", *KEY]["status"]
            return msgspec.convert(status, InferenceServiceStatus)
    raise AssertionError(f"it goes on writing: {api.writes[-5:]}")


async def live_through(steps: list[tuple[dict[str, Any], float]]) -> None:
    api = FakeApi()
    controller = Controller(api, Platform(apis=OPTIONAL_APIS))
    for manifest, share in steps:
        api.put(manifest)
        await controller.relist()
        api.observer = controller.inventory
        status = await come_to_rest(controller, api, share)
        facts = {condition.type: (condition.status, condition.reason) for condition in status.conditions or ()}
        if facts["Accepted"][0] == "False":
            assert status.phase == "Failed"
            assert status.message
            continue
        assert facts["Planned"][1] in ("Applied", "Infeasible", "Paused")
        if facts["Planned"][1] == "Applied":
            snapshot = controller.snapshots.get("/".join(KEY))
            assert snapshot is not None
            assert all(snapshot.of(kind) for kind in Kind)
    # Another operator finds nothing to do.
    later = Controller(api, Platform(apis=OPTIONAL_APIS))
    await later.relist()
    version = api.version
    await later.reconciler.reconcile(KEY)
    assert api.version == version


def run(steps: list[tuple[dict[str, Any], float]]) -> None:
    with structlog.testing.capture_logs():
        asyncio.run(live_through(steps))


shares = st.sampled_from([0.0, 0.5, 1.0])
valid = specs().map(lambda spec: stored(without_contradictions(spec).spec))


@settings(max_examples=12, deadline=None, suppress_health_check=LARGE)
@given(steps=st.lists(st.tuples(st.one_of(valid, specs().map(stored)), shares), min_size=1, max_size=3))
def test_any_specs_one_after_the_other(steps: list[tuple[dict[str, Any], float]]) -> None:
    run(steps)


@pytest.mark.exhaustive
@settings(max_examples=400, deadline=None, suppress_health_check=LARGE)
@given(steps=st.lists(st.tuples(st.one_of(valid, specs().map(stored)), shares), min_size=1, max_size=4))
def test_many_specs_one_after_the_other(steps: list[tuple[dict[str, Any], float]]) -> None:
    run(steps)
