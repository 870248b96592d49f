"""Watches and lists tell of the same objects at their own pace: what is newer counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from envoy_data_plane.envoy.config.endpoint.v3 import ClusterLoadAssignment

from shoal.operator.follower.following import endpoints_of
from shoal.operator.planner.kubernetes import FIELD_MANAGER, MANAGED_BY, OWNER_LABEL, Platform
from shoal.operator.reconcile.controller import Controller
from shoal.operator.reconcile.rights import DERIVED
from shoal.operator.xds import Kind
from support.fake_api import FakeApi
from support.manifests import MINIMAL_ON_KUBERNETES, with_fields

KEY = ("models", "smol")
POD, SLICE = DERIVED


def service(name: str = "smol") -> dict[str, Any]:
    return with_fields(MINIMAL_ON_KUBERNETES, {"metadata.name": name, "metadata.namespace": "models"})


def slice_of(address: str) -> dict[str, Any]:
    labels = {"kubernetes.io/service-name": "smol-worker", MANAGED_BY: FIELD_MANAGER, OWNER_LABEL: "smol"}
    return {
        "apiVersion": SLICE.api_version,
        "kind": SLICE.kind,
        "metadata": {"name": "smol-worker-a", "namespace": "models", "labels": labels},
        "addressType": "IPv4",
        "ports": [{"name": "grpc", "port": 50051}],
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
    }


@pytest.fixture
async def api() -> FakeApi:
    api = FakeApi()
    api.put(service())
    api.put(slice_of("10.0.0.1"))
    return api


async def watching(api: FakeApi) -> Controller:
    """One that has listed and planned everything, and is told of every change from then on."""
    controller = Controller(api, Platform())
    await relist(controller)
    api.observer = controller.inventory
    await controller.reconciler.reconcile(KEY)
    return controller


async def relist(controller: Controller) -> None:
    await controller.relist()


def told(controller: Controller) -> list[str]:
    """What Envoys think of where workers are."""
    snapshot = controller.snapshots.get("/".join(KEY))
    assert snapshot is not None
    assignment = ClusterLoadAssignment.parse(snapshot.of(Kind.ENDPOINTS)["worker"].body.value)
    return list(map(str, endpoints_of(assignment)))


def once_listed(api: FakeApi, plural: str, happen: Callable[[], object]) -> None:
    """Between the moment that a list is of, and its arrival."""

    def after(method: str, path: str) -> None:
        if method == "GET" and path.endswith(f"/{plural}"):
            api.after = lambda method, path: None
            happen()

    api.after = after


async def test_a_list_does_not_take_endpoints_back_to_what_they_were(api: FakeApi) -> None:
    controller = await watching(api)
    assert told(controller) == ["10.0.0.1:50051"]
    once_listed(api, SLICE.plural, lambda: api.put(slice_of("10.0.0.2")))
    await relist(controller)
    assert told(controller) == ["10.0.0.2:50051"]
    once_listed(api, SLICE.plural, lambda: api.delete_object(SLICE.plural, "models", "smol-worker-a"))
    await relist(controller)
    assert told(controller) == []
    await relist(controller)
    assert controller.store.get(KEY, SLICE.kind, "smol-worker-a") is None


async def test_a_slice_that_comes_while_it_is_listed_stays(api: FakeApi) -> None:
    api.delete_object(SLICE.plural, "models", "smol-worker-a")
    controller = await watching(api)
    once_listed(api, SLICE.plural, lambda: api.put(slice_of("10.0.0.3")))
    await relist(controller)
    assert told(controller) == ["10.0.0.3:50051"]


async def test_a_service_that_comes_while_services_are_listed_stays(api: FakeApi) -> None:
    controller = await watching(api)
    once_listed(api, "inferenceservices", lambda: api.put(service("late")))
    await relist(controller)
    assert sorted(controller.reconciler.services) == [("models", "late"), KEY]


async def test_a_service_that_goes_while_services_are_listed_is_gone(api: FakeApi) -> None:
    controller = await watching(api)
    once_listed(api, "inferenceservices", lambda: api.delete_object("inferenceservices", *KEY))
    await relist(controller)
    assert not controller.reconciler.services
    assert controller.snapshots.get("/".join(KEY)) is None
    api.put(service())
    assert list(controller.reconciler.services) == [KEY], "one that is made anew is another"


async def test_a_list_finds_what_watches_missed(api: FakeApi) -> None:
    controller = await watching(api)
    api.put(service("other"))
    api.observer = None
    api.put(slice_of("10.0.0.4"))
    api.delete_object("inferenceservices", "models", "other")
    await relist(controller)
    assert told(controller) == ["10.0.0.4:50051"]
    assert list(controller.reconciler.services) == [KEY]
    api.delete_object(SLICE.plural, "models", "smol-worker-a")
    await relist(controller)
    assert told(controller) == []


async def test_an_object_that_went_before_the_answer_to_its_write_stays_gone(api: FakeApi) -> None:
    """Somebody deletes what was just applied."""
    controller = await watching(api)
    account = controller.store.get(KEY, "ServiceAccount", "smol-gateway")
    assert account is not None
    api.delete_object("serviceaccounts", "models", "smol-gateway")
    controller.inventory.object_seen(account)
    assert controller.store.get(KEY, "ServiceAccount", "smol-gateway") is None
    await controller.reconciler.reconcile(KEY)
    assert "smol-gateway" in api.names("ServiceAccount")


async def test_deletions_are_not_remembered_for_ever(api: FakeApi) -> None:
    controller = await watching(api)
    for _ in range(3):
        for _ in range(10):
            api.delete_object(SLICE.plural, "models", "smol-worker-a")
            api.put(slice_of("10.0.0.1"))
        api.delete_object(SLICE.plural, "models", "smol-worker-a")
        await relist(controller)
        api.put(slice_of("10.0.0.1"))
        await relist(controller)
    assert controller.store.num_deletions <= 2
