"""The operator's life as a whole, on an API server in memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from shoal.operator.planner.kubernetes import FIELD_MANAGER, MANAGED_BY, OWNER_LABEL, Platform
from shoal.operator.reconcile.api_client import ApiError
from shoal.operator.reconcile.background import running
from shoal.operator.reconcile.controller import Controller
from shoal.operator.xds import Kind as EnvoyKind
from support.eventually import eventually
from support.fake_api import FakeApi
from support.manifests import MINIMAL_ON_KUBERNETES, with_fields

KEY = ("models", "smol")


@pytest.fixture
def api() -> FakeApi:
    api = FakeApi()
    api.put(with_fields(MINIMAL_ON_KUBERNETES, {"metadata.namespace": "models"}))
    return api


@asynccontextmanager
async def working(api: FakeApi) -> AsyncIterator[Controller]:
    """One that was told of everything, and reconciles what is put into its queue."""
    controller = Controller(api, Platform())
    await controller.relist()
    api.observer = controller.inventory
    async with running(controller._reconcile()):
        yield controller


async def test_a_plan_under_way_is_given_up_when_the_lead_is_lost(api: FakeApi) -> None:
    """Also by a write that waits for its answer, or to be tried again."""
    hanging, passed = asyncio.Event(), asyncio.Event()

    async def hang(method: str, path: str) -> None:
        if method == "PATCH" and len(api.writes) == 5:
            hanging.set()
            await passed.wait()

    api.before = hang
    async with working(api) as controller:
        await asyncio.wait_for(hanging.wait(), 5)
        controller._lead(False)
        passed.set()
        await eventually(lambda: controller.snapshots.get("/".join(KEY)) is not None, "Envoys are told all the same")
        await eventually(lambda: sum(controller.queue.sizes.values()) == 0, "everything was looked at")
        assert len(api.writes) == 5
        controller._lead(True)
        await eventually(lambda: "status" in api.objects["inferenceservices", *KEY], "the whole plan is applied")


async def test_a_plan_ends_before_the_next_write_when_the_lease_is_over(api: FakeApi) -> None:
    """Whatever the task that looks after the Lease had no time for."""
    async with working(api) as controller:
        controller.reconciler.may_write = lambda: len(api.writes) < 7
        await eventually(lambda: sum(controller.queue.sizes.values()) == 0, "everything was looked at")
        assert len(api.writes) == 7


async def test_a_lost_lead_while_something_is_deleted_is_no_failure(api: FakeApi) -> None:
    """What was applied is forgotten then."""
    async with working(api) as controller:
        await eventually(lambda: "status" in api.objects["inferenceservices", *KEY], "everything is there")
        account = controller.store.get(KEY, "ServiceAccount", "smol-gateway")
        assert account is not None
        metadata = {name: account["metadata"][name] for name in ("namespace", "labels", "ownerReferences")}

        def lose(method: str, path: str) -> None:
            if method == "DELETE":
                controller.reconciler.forget_applied(KEY)

        api.after = lose
        api.put({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {**metadata, "name": "smol-old"}})
        await eventually(lambda: "smol-old" not in api.names("ServiceAccount"), "what is not planned goes")
        await eventually(lambda: sum(controller.queue.sizes.values()) == 0, "nothing is tried again")


def told(controller: Controller) -> dict[EnvoyKind, dict[str, str]]:
    """Versions of what the service's Envoys are told."""
    snapshot = controller.snapshots.get("/".join(KEY))
    assert snapshot is not None
    return {kind: {name: each.version for name, each in snapshot.of(kind).items()} for kind in EnvoyKind}


def other_routes(**fields: Any) -> dict[str, Any]:
    """A spec that changes clusters, listeners and routes."""
    changed = {
        "spec.routing": {"policy": "prefix_hash"},
        "spec.workers": {"replicas": 3},
        "spec.gateway": {"http": {"enabled": False}},
    }
    return with_fields(MINIMAL_ON_KUBERNETES, {"metadata.namespace": "models", **changed, **fields})


def slice_of(*addresses: str) -> dict[str, Any]:
    labels = {"kubernetes.io/service-name": "smol-worker", MANAGED_BY: FIELD_MANAGER, OWNER_LABEL: "smol"}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "smol-worker-a", "namespace": "models", "labels": labels},
        "addressType": "IPv4",
        "ports": [{"name": "grpc", "port": 50051}],
        "endpoints": [{"addresses": [address]} for address in addresses],
    }


def forbid(method: str, path: str) -> None:
    if method == "PATCH" and "/configmaps/" in path:
        raise ApiError(403, "Forbidden", "may not")


KEPT: dict[str, tuple[dict[str, Any], str]] = {
    "paused": ({"spec.paused": True}, "Paused"),
    "infeasible": ({"spec.autoscaling": {"maxReplicas": 4, "engine": "keda"}}, "Infeasible"),
    "refused": ({}, "Forbidden"),
    "invalid": ({"spec.routing": {"policy": "of_tomorrow"}}, "InvalidSpec"),
}


@pytest.mark.parametrize(("fields", "reason"), KEPT.values(), ids=KEPT)
@pytest.mark.parametrize("restarts", [False, True], ids=["told", "restarted"])
async def test_what_is_not_applied_is_not_told_to_envoys_and_endpoints_move(
    api: FakeApi, fields: dict[str, Any], reason: str, restarts: bool
) -> None:
    """By an operator that saw what was before, and by one that comes later."""
    first = Controller(api, Platform())
    await first.relist()
    await first.reconciler.reconcile(KEY)
    await first.reconciler.reconcile(KEY)
    before = told(first)
    api.put(other_routes(**fields))
    api.before = forbid
    controller = Controller(api, Platform()) if restarts else first
    await controller.relist()
    api.observer = controller.inventory
    with contextlib.suppress(ApiError):
        await controller.reconciler.reconcile(KEY)
    assert told(controller) == before
    conditions = api.objects["inferenceservices", *KEY]["status"]["conditions"]
    assert reason in {found["reason"] for found in conditions}
    api.put(slice_of("10.0.0.1"))
    moved = told(controller)
    assert moved.pop(EnvoyKind.ENDPOINTS) != before.pop(EnvoyKind.ENDPOINTS)
    assert moved == before
    # Once it can be applied.
    api.before = lambda method, path: None
    api.put(other_routes())
    await controller.reconciler.reconcile(KEY)
    after = told(controller)
    assert {kind.name for kind in before if after[kind] != before[kind]} >= {"CLUSTER", "ROUTES"}


async def test_who_does_not_write_tells_what_was_applied_by_another(api: FakeApi) -> None:
    writer, other = Controller(api, Platform()), Controller(api, Platform())
    other.reconciler.writes = False
    for each in (other, writer, other):
        await each.relist()
        await each.reconciler.reconcile(KEY)
    before = told(other)
    assert before == told(writer)
    api.put(other_routes())
    for each in (other, writer):
        await each.relist()
    await other.reconciler.reconcile(KEY)
    assert told(other) == before, "nobody has applied it yet"
    await writer.reconciler.reconcile(KEY)
    await other.relist()
    await other.reconciler.reconcile(KEY)
    assert told(other) == told(writer) != before


@pytest.mark.parametrize("text", ["", "{", '{"num_workers": 0}', '{"balancing": "by_chance"}', "[]"])
async def test_choices_that_make_no_sense_change_nothing(api: FakeApi, text: str) -> None:
    """Somebody edits the ConfigMap."""
    controller = Controller(api, Platform())
    await controller.relist()
    api.observer = controller.inventory
    await controller.reconciler.reconcile(KEY)
    before = told(controller)
    found = api.objects["configmaps", "models", "smol-gateway"]
    controller.reconciler.writes = False
    api.put({**found, "data": {**found["data"], "routes.json": text}})
    await controller.reconciler.reconcile(KEY)
    assert told(controller) == before
    controller.reconciler.writes = True
    await controller.reconciler.reconcile(KEY)
    assert api.objects["configmaps", "models", "smol-gateway"]["data"] == found["data"], "it is put right"


async def test_what_cannot_be_told_to_envoys_is_a_failed_plan(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything of it is applied; and the status says so."""

    def fail(*_: object) -> None:
        raise ValueError("no such type")

    monkeypatch.setattr("shoal.operator.reconcile.reconciler.encode", fail)
    controller = Controller(api, Platform())
    await controller.relist()
    with pytest.raises(ValueError, match="no such type"):
        await controller.reconciler.reconcile(KEY)
    status = api.objects["inferenceservices", *KEY]["status"]
    assert "it cannot plan this (ValueError: no such type)" in status["message"]
    assert api.names("ConfigMap") == []


async def test_a_bug_anywhere_on_the_way_is_told_of(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("phase")

    monkeypatch.setattr("shoal.operator.reconcile.reconciler.observe_roles", fail)
    controller = Controller(api, Platform())
    await controller.relist()
    with pytest.raises(KeyError):
        await controller.reconciler.reconcile(KEY)
    assert "KeyError: 'phase'" in api.objects["inferenceservices", *KEY]["status"]["message"]
    assert told(controller), "Envoys are told what was applied"


async def test_planned_annotations_are_put_right_and_others_stay(api: FakeApi) -> None:
    """A load balancer is internal by one."""
    wanted = {"spec.gateway": {"service": {"annotations": {"lb": "internal"}}}}
    api.put(with_fields(MINIMAL_ON_KUBERNETES, {"metadata.namespace": "models", **wanted}))
    controller = Controller(api, Platform())
    await controller.relist()
    api.observer = controller.inventory
    await controller.reconciler.reconcile(KEY)
    where = ("services", "models", "smol")

    async def annotated(annotations: dict[str, str]) -> dict[str, str]:
        """And what becomes of that."""
        found = api.objects[where]
        api.put({**found, "metadata": {**found["metadata"], "annotations": annotations}})
        await controller.reconciler.reconcile(KEY)
        return dict(api.objects[where]["metadata"]["annotations"])

    assert await annotated({}) == {"lb": "internal"}
    assert await annotated({"lb": "external", "a": "b"}) == {"lb": "internal", "a": "b"}
    num_writes = len(api.writes)
    assert await annotated({"lb": "internal", "c": "d"}) == {"lb": "internal", "c": "d"}
    assert len(api.writes) == num_writes, "nobody needs to be told"


async def test_a_status_that_is_refused_is_told_by_an_event(api: FakeApi) -> None:
    def refuse(method: str, path: str) -> None:
        if path.endswith("/status"):
            raise ApiError(422, "Invalid", "status.phase: Unsupported value")

    api.before = refuse
    async with working(api):
        await eventually(lambda: bool(api.events), "an Event tells of it")
    assert (api.events[0]["type"], api.events[0]["reason"]) == ("Warning", "Degraded")
    assert "StatusRefused: " in api.events[0]["message"]
    assert "status.phase: Unsupported value" in api.events[0]["message"]
