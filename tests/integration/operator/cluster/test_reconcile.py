"""The operator against a real API server, its controllers and a scheduler; pods run as far as kwok says so."""

from __future__ import annotations

from typing import Any

import pytest
from envoy_data_plane.envoy.config.endpoint.v3 import ClusterLoadAssignment

from shoal.operator.planner.kubernetes import Owner, Platform, plan
from shoal.operator.planner.kubernetes.plan import Kind
from shoal.operator.reconcile.controller import Controller
from shoal.operator.reconcile.reconciler import SERVICE_KIND, read_service
from shoal.operator.xds import Kind as EnvoyKind
from support.control_plane.cluster import ControlPlane
from support.eventually import eventually
from support.manifests import MINIMAL_ON_KUBERNETES, with_fields
from support.operator_running import EVENT, POD, Namespace, running_controller

pytestmark = pytest.mark.cluster
STATEFUL_SET = Kind("apps/v1", "StatefulSet", "statefulsets")
DEPLOYMENT = Kind("apps/v1", "Deployment", "deployments")
SERVICE = Kind("v1", "Service", "services")
CONFIG_MAP = Kind("v1", "ConfigMap", "configmaps")
NETWORK_POLICY = Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")


@pytest.fixture
def space(control_plane: ControlPlane, namespace: str) -> Namespace:
    return Namespace(control_plane, namespace)


def manifest(**fields: Any) -> dict[str, Any]:
    return with_fields(MINIMAL_ON_KUBERNETES, {name.replace("__", "."): value for name, value in fields.items()})


def conditions(status: dict[str, Any]) -> dict[str, str]:
    return {condition["type"]: condition["status"] for condition in status["conditions"]}


def versions(objects: dict[tuple[str, str], dict[str, Any]]) -> dict[tuple[str, str], tuple[str, Any]]:
    """What changes when somebody wants something else of an object."""
    return {
        key: (found["metadata"]["uid"], found["metadata"].get("generation", found["metadata"]["resourceVersion"]))
        for key, found in objects.items()
    }


async def test_a_service_comes_up_scales_and_goes(space: Namespace) -> None:
    async with running_controller(space.plane, space.name) as controller:
        created = await space.create(manifest(spec__workers={"replicas": 2}))
        status = await space.until_phase("smol", "Ready")
        assert conditions(status) == {
            "Accepted": "True",
            "Planned": "True",
            "WorkersReady": "True",
            "GatewaysReady": "True",
            "RoutesProgrammed": "Unknown",  # kwok runs no Envoy
            "CacheEventsFlowing": "Unknown",  # nor any gateway
            "Degraded": "False",
            "Ready": "True",
        }
        assert status["workers"] == {"desired": 2, "ready": 2, "current": 2}
        assert status["endpoints"]["grpc"] == f"smol.{space.name}.svc:8080"
        service, _ = read_service(created)
        assert service is not None
        owner = Owner(namespace=space.name, uid=created["metadata"]["uid"])
        planned = {(found["kind"], found["metadata"]["name"]) for found in plan(service, Platform(), owner)}
        assert set(await space.objects("smol")) == planned
        assert len(await space.list(POD, "app.kubernetes.io/component=worker")) == 2

        changed = await space.patch(SERVICE_KIND, "smol", {"spec": {"workers": {"replicas": 3}}})
        status = await space.until_phase("smol", "Ready", changed["metadata"]["generation"])
        assert status["workers"] == {"desired": 3, "ready": 3, "current": 3}
        await eventually(lambda: len(told(controller, space.name)) == 3, "Envoys would be told of 3 workers")

        reasons = [event["reason"] for event in await space.list(EVENT)]
        assert {"Accepted", "Planned", "Ready", "WorkersReady"} <= set(reasons)
        await space.delete(SERVICE_KIND, "smol")
        await eventually(lambda: _is_empty(space), "everything that it owned is collected", 30)
        await eventually(lambda: not controller.store.of((space.name, "smol")), "it is forgotten")


def told(controller: Controller, namespace: str) -> list[Any]:
    """Workers in the snapshot for Envoys."""
    snapshot = controller.snapshots.get(f"{namespace}/smol")
    assert snapshot is not None
    assignment = ClusterLoadAssignment.parse(snapshot.of(EnvoyKind.ENDPOINTS)["worker"].body.value)
    return [endpoint for group in assignment.endpoints for endpoint in group.lb_endpoints]


async def _is_empty(space: Namespace) -> bool:
    return not await space.objects("smol") and not await space.list(POD)


async def test_what_others_change_is_put_right(space: Namespace) -> None:
    async with running_controller(space.plane, space.name):
        await space.create(manifest())
        await space.until_phase("smol", "Ready")
        before = await space.objects("smol")

        await space.patch(STATEFUL_SET, "smol-worker", {"spec": {"replicas": 0}})
        await space.patch(SERVICE, "smol", {"spec": {"selector": {"app.kubernetes.io/component": "wrong"}}})
        await space.patch(CONFIG_MAP, "smol-gateway", {"data": {"envoy.json": "{}"}})
        await space.delete(NETWORK_POLICY, "smol-worker")
        await space.patch(DEPLOYMENT, "smol-gateway", {"metadata": {"ownerReferences": None}})

        async def is_restored() -> bool:
            after = await space.objects("smol")
            return after.keys() == before.keys() and all(
                wanted_of(after[key]) == wanted_of(before[key]) for key in before
            )

        await eventually(is_restored, "every object is as planned again", 20)


def wanted_of(found: dict[str, Any]) -> dict[str, Any]:
    metadata = {key: found["metadata"].get(key) for key in ("labels", "ownerReferences")}
    return {"metadata": metadata, **{key: found[key] for key in ("spec", "data") if key in found}}


async def test_what_others_add_stays(space: Namespace) -> None:
    """Server-side apply owns the planned fields, and no others."""
    async with running_controller(space.plane, space.name):
        await space.create(manifest())
        await space.until_phase("smol", "Ready")
        await space.patch(SERVICE, "smol", {"metadata": {"annotations": {"team": "a"}}})
        changed = await space.patch(SERVICE_KIND, "smol", {"spec": {"gateway": {"port": 9000}}})
        await space.until_phase("smol", "Ready", changed["metadata"]["generation"])
        service = (await space.objects("smol"))["Service", "smol"]
        assert service["metadata"]["annotations"]["team"] == "a"
        assert [port["port"] for port in service["spec"]["ports"]] == [9000]


async def test_what_the_plan_no_longer_holds_goes(space: Namespace) -> None:
    async with running_controller(space.plane, space.name):
        created = await space.create(manifest())
        await space.until_phase("smol", "Ready")
        template = (await space.objects("smol"))["ConfigMap", "smol-gateway"]
        metadata = {key: template["metadata"][key] for key in ("labels", "ownerReferences")}
        # As an earlier version of the operator may have left it.
        old = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {**metadata, "name": "smol-old"}}
        stranger = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "smol-other"}}
        for body in (old, stranger):
            await space.call("POST", f"/api/v1/namespaces/{space.name}/configmaps", body)
        assert created["metadata"]["uid"]

        async def is_pruned() -> bool:
            names = {found["metadata"]["name"] for found in await space.list(CONFIG_MAP)}
            return "smol-old" not in names and "smol-other" in names

        await eventually(is_pruned, "the old object is gone, and only that")


async def test_another_operator_takes_over_and_changes_nothing(space: Namespace) -> None:
    async with running_controller(space.plane, space.name):
        await space.create(manifest())
        await space.until_phase("smol", "Ready")
        before = versions(await space.objects("smol"))
    # Meanwhile nobody looks after it.
    await space.patch(STATEFUL_SET, "smol-worker", {"spec": {"replicas": 5}})
    async with running_controller(space.plane, space.name) as controller:
        await eventually(lambda: _has_replicas(space, 1), "the new one puts it right")
        await space.until_phase("smol", "Ready")
        after = versions(await space.objects("smol"))
        changed = {key for key in before if before[key] != after[key]}
        assert changed == {("StatefulSet", "smol-worker")}
        assert controller.store.of((space.name, "smol"), "Pod")


async def _has_replicas(space: Namespace, replicas: int) -> bool:
    return bool((await space.objects("smol"))["StatefulSet", "smol-worker"]["spec"]["replicas"] == replicas)


async def test_a_paused_service_is_left_alone(space: Namespace) -> None:
    async with running_controller(space.plane, space.name):
        await space.create(manifest())
        await space.until_phase("smol", "Ready")
        changed = await space.patch(SERVICE_KIND, "smol", {"spec": {"paused": True, "workers": {"replicas": 4}}})
        status = await space.until_phase("smol", "Paused", changed["metadata"]["generation"])
        assert "nothing is changed" in status["message"]
        assert await _has_replicas(space, 1)
        await space.patch(SERVICE_KIND, "smol", {"spec": {"paused": False}})
        await eventually(lambda: _has_replicas(space, 4), "it goes on")


async def test_what_is_to_outlive_its_service_does_and_is_taken_over_by_the_next(space: Namespace) -> None:
    async with running_controller(space.plane, space.name):
        await space.create(manifest(spec__deletionPolicy="Orphan"))
        await space.until_phase("smol", "Ready")
        before = versions(await space.objects("smol"))
        await space.delete(SERVICE_KIND, "smol")
        # Collected at the same time, if it were: what belongs to another service that is deleted after it.
        await space.create({**manifest(), "metadata": {"name": "other"}})
        await space.until_phase("other", "Ready")
        await space.delete(SERVICE_KIND, "other")

        async def is_collected() -> bool:
            return not await space.objects("other")

        await eventually(is_collected, "what other owned is collected", 30)
        assert versions(await space.objects("smol")) == before
        assert len(await space.list(POD)) >= 3

        await space.create(manifest())
        await space.until_phase("smol", "Ready")
        after = await space.objects("smol")
        assert {key: found["metadata"]["uid"] for key, found in after.items()} == {
            k: uid for k, (uid, _) in before.items()
        }
        # And the other way round, of one that runs.
        changed = await space.patch(SERVICE_KIND, "smol", {"spec": {"deletionPolicy": "Orphan"}})
        await space.until_phase("smol", "Ready", changed["metadata"]["generation"])
        await eventually(lambda: _has_no_owner(space), "nobody owns them")
        changed = await space.patch(SERVICE_KIND, "smol", {"spec": {"deletionPolicy": "Delete"}})
        await space.until_phase("smol", "Ready", changed["metadata"]["generation"])
        await space.delete(SERVICE_KIND, "smol")
        await eventually(lambda: _is_empty(space), "everything that it owned is collected", 30)


async def _has_no_owner(space: Namespace) -> bool:
    return not any(found["metadata"].get("ownerReferences") for found in (await space.objects("smol")).values())


async def test_pods_that_fit_nowhere_are_told_of(space: Namespace) -> None:
    async with running_controller(space.plane, space.name):
        await space.create(manifest(spec__workers={"replicas": 1, "resources": {"cpu": 900}}))

        async def is_told() -> bool:
            status = (await space.service("smol")).get("status", {})
            gateways_are = {c["type"]: c["status"] for c in status.get("conditions", ())}.get("GatewaysReady")
            return "smol-worker-0 fits on no node" in status.get("message", "") and gateways_are == "True"

        await eventually(is_told, "the status says why no worker is ready", 20)
        status = (await space.service("smol"))["status"]
        assert status["phase"] == "Starting"
        assert "Insufficient cpu" in status["message"]
        ready = next(c for c in status["conditions"] if c["type"] == "WorkersReady")
        assert (ready["status"], ready["reason"]) == ("False", "Unschedulable")


async def test_a_cache_that_silently_stopped_working_is_a_condition(space: Namespace) -> None:
    """What the gateway says is made up: kwok runs none. That a real one says it is tested with the whole mesh."""
    page = 'shoal_gateway_kv_event_age_seconds{worker="10.0.0.1:50051"} 40\nshoal_gateway_workers_without_kv_events '
    num_stale = 0

    async def fetch(url: str) -> str:
        [gateway] = await space.list(POD, "app.kubernetes.io/component=gateway")
        assert url == f"http://{gateway['status']['podIP']}:9090/metrics"
        return f"{page}{num_stale}\n"

    async def is_now(state: str) -> bool:
        status = (await space.service("smol")).get("status", {})
        return bool(status and conditions(status).get("CacheEventsFlowing") == state)

    async with running_controller(space.plane, space.name, fetch=fetch, cache_check_interval_s=0.2):
        await space.create(manifest())
        await eventually(lambda: is_now("True"), "caches are heard of")
        num_stale = 1
        await eventually(lambda: is_now("False"), "they stopped")
        status = await space.until_phase("smol", "Degraded")
        assert "hears nothing of 10.0.0.1:50051" in status["message"]
        num_stale = 0
        await eventually(lambda: is_now("True"), "they go on")
        await space.until_phase("smol", "Ready")
    events = {event["reason"]: event["type"] for event in await space.list(EVENT)}
    assert events["NotCacheEventsFlowing"] == "Warning"
    assert events["CacheEventsFlowing"] == "Normal"


async def test_a_spec_that_the_planner_fails_at_is_told_of(space: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise KeyError("unforeseen")

    async with running_controller(space.plane, space.name):
        with monkeypatch.context() as patched:
            patched.setattr("shoal.operator.reconcile.reconciler.plan", fail)
            await space.create(manifest())
            status = await space.until_phase("smol", "Failed")
            assert "cannot plan this (KeyError: 'unforeseen')" in status["message"]
        await space.until_phase("smol", "Ready")


async def test_a_name_that_is_taken_is_told_of_and_left_alone(space: Namespace) -> None:
    stranger = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "smol-gateway"}}
    await space.call("POST", f"/api/v1/namespaces/{space.name}/serviceaccounts", stranger)
    async with running_controller(space.plane, space.name):
        await space.create(manifest())
        status = await space.until_phase("smol", "Failed")
        assert "there is a ServiceAccount smol-gateway already" in status["message"]
        accounts = {found["metadata"]["name"]: found for found in await space.list(Kind("v1", "", "serviceaccounts"))}
        assert "labels" not in accounts["smol-gateway"]["metadata"]
        await space.call("DELETE", f"/api/v1/namespaces/{space.name}/serviceaccounts/smol-gateway")
        await space.until_phase("smol", "Ready")


async def test_a_spec_of_another_schema_is_told_of(control_plane: ControlPlane, space: Namespace) -> None:
    """Written before a rule was there, or by a later version: nothing crashes, and what runs goes on."""
    async with running_controller(space.plane, space.name) as controller:
        await space.create(manifest())
        await space.until_phase("smol", "Ready")
        found = await space.service("smol")
        found["spec"]["routing"]["policy"] = "of_tomorrow"
        found["spec"]["shards"] = 3
        found["metadata"]["generation"] += 1
        key = (space.name, "smol")
        controller.inventory.seen(found)

        async def is_told() -> bool:
            status = (await space.service("smol"))["status"]
            return bool(status["phase"] == "Failed" and "of_tomorrow" in status["message"])

        await eventually(is_told, "the status says what is wrong")
        assert ("StatefulSet", "smol-worker") in await space.objects("smol")
        assert key in controller.reconciler.services
