"""Workers of several pods and KV stores, on a real API server with real controllers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from shoal.operator.planner.kubernetes.plan import Kind
from shoal.operator.planner.kubernetes.scaling import HPA_API
from shoal.operator.planner.kubernetes.workers import LWS_API
from shoal.operator.reconcile.reconciler import SERVICE_KIND
from support.control_plane.cluster import ControlPlane
from support.eventually import eventually
from support.manifests import MINIMAL_ON_KUBERNETES, with_fields
from support.operator_running import POD, Namespace, running_controller

pytestmark = pytest.mark.cluster
CONFIG_MAP = Kind("v1", "ConfigMap", "configmaps")
DAEMON_SET = Kind("apps/v1", "DaemonSet", "daemonsets")
ENDPOINT_SLICE = Kind("discovery.k8s.io/v1", "EndpointSlice", "endpointslices")
LEADER_WORKER_SET = Kind(LWS_API, "LeaderWorkerSet", "leaderworkersets")
STATEFUL_SET = Kind("apps/v1", "StatefulSet", "statefulsets")
OF_WORKERS = "app.kubernetes.io/component=worker"
ON_TWO_PODS = {"device": "cuda", "replicas": 2, "parallelism": {"tensor": 1, "pipeline": 2}, "resources": {"gpus": 1}}
KV_CACHE = {"cpu": "1Gi", "peersSecret": {"name": "kv"}}


@pytest.fixture
def space(control_plane: ControlPlane, namespace: str) -> Namespace:
    return Namespace(control_plane, namespace)


@pytest.fixture
def privileged(control_plane: ControlPlane) -> Iterator[Namespace]:
    """Where pods may have folders of their nodes."""
    with control_plane.fresh_namespace("privileged") as name:
        yield Namespace(control_plane, name)


def manifest(**fields: Any) -> dict[str, Any]:
    return with_fields(MINIMAL_ON_KUBERNETES, {name.replace("__", "."): value for name, value in fields.items()})


async def endpoints(space: Namespace) -> set[str]:
    """Pods that requests go to."""
    slices = await space.list(ENDPOINT_SLICE, "kubernetes.io/service-name=smol-worker")
    return {
        each["targetRef"]["name"]
        for found in slices
        for each in found["endpoints"] or ()
        if each["conditions"].get("ready")
    }


@pytest.mark.usefixtures("leader_worker_sets")
async def test_workers_of_several_pods_answer_by_their_first(space: Namespace) -> None:
    async with running_controller(space.plane, space.name):
        await space.create(manifest(spec__workers=ON_TWO_PODS))
        await space.until_phase("smol", "Ready", timeout_s=60)
        pods = {pod["metadata"]["name"] for pod in await space.list(POD, OF_WORKERS)}
        assert pods == {"smol-worker-0", "smol-worker-0-1", "smol-worker-1", "smol-worker-1-1"}
        await eventually(lambda: _leads_to(space, {"smol-worker-0", "smol-worker-1"}), "the first pod of each answers")

        # Another split is another group, of another kind, beside the old one until it is ready.
        whole = {"parallelism": {"tensor": 2, "pipeline": 1}, "resources": {"gpus": 2}}
        changed = await space.patch(SERVICE_KIND, "smol", {"spec": {"workers": whole}})
        await space.until_phase("smol", "Ready", changed["metadata"]["generation"], timeout_s=60)

        async def is_replaced() -> bool:
            left, groups = await space.list(LEADER_WORKER_SET), await space.list(STATEFUL_SET, OF_WORKERS)
            return not left and len(groups) == 1 and len(await endpoints(space)) == 2

        await eventually(is_replaced, "one kind of workload takes over from the other", 60)


async def test_a_cluster_without_leader_worker_sets_says_so(space: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.operator.reconcile.controller.OPTIONAL_KINDS", ())
    async with running_controller(space.plane, space.name):
        await space.create(manifest(spec__workers=ON_TWO_PODS))
        status = await space.until_phase("smol", "Failed")
        (planned,) = (each for each in status["conditions"] if each["type"] == "Planned")
        assert (planned["status"], planned["reason"]) == ("False", "Infeasible")
        assert "takes LeaderWorkerSet" in planned["message"]


async def test_stores_beside_workers_keep_to_the_least_rights(space: Namespace) -> None:
    async with running_controller(space.plane, space.name):
        await space.create(manifest(spec__workers={"replicas": 2}, spec__kvCache=KV_CACHE))
        await space.until_phase("smol", "Ready")
        (config,) = (each for each in await space.list(CONFIG_MAP) if each["metadata"]["name"] == "smol-kv-store")
        assert len(config["data"]["peers"].split()) == 2
        await space.patch(SERVICE_KIND, "smol", {"spec": {"workers": {"replicas": 3}}})
        names = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in await space.list(POD, OF_WORKERS)}

        async def is_told() -> bool:
            found = await space.list(CONFIG_MAP)
            (config,) = (each for each in found if each["metadata"]["name"] == "smol-kv-store")
            return len(config["data"]["peers"].split()) == 3 and len(await space.list(POD, OF_WORKERS)) == 3

        await eventually(is_told, "stores know of the third")
        after = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in await space.list(POD, OF_WORKERS)}
        assert names.items() <= after.items(), "and none was replaced for that"


async def test_stores_of_nodes_know_each_other(privileged: Namespace) -> None:
    space = privileged
    async with running_controller(space.plane, space.name):
        await space.create(manifest(spec__kvCache={**KV_CACHE, "placement": "Node"}))
        await space.until_phase("smol", "Ready")

        async def is_told() -> bool:
            stores = await space.list(POD, "app.kubernetes.io/component=kv-store")
            addresses = {pod["status"].get("podIP") for pod in stores}
            (config,) = (each for each in await space.list(CONFIG_MAP) if each["metadata"]["name"] == "smol-kv-store")
            peers = {line.rpartition(":")[0] for line in config["data"]["peers"].split()}
            return len(stores) == 2 and peers == addresses

        await eventually(is_told, "every node's store is in the list")
        assert len(await space.list(DAEMON_SET)) == 1


async def test_a_registry_is_told_of_adapters_as_they_change(space: Namespace) -> None:
    of_registry = "app.kubernetes.io/component=lora-registry"

    async def names_told() -> list[str]:
        found = [each for each in await space.list(CONFIG_MAP) if each["metadata"]["name"] == "smol-lora-registry"]
        return [adapter["name"] for each in found for adapter in json.loads(each["data"]["adapters.json"])]

    async with running_controller(space.plane, space.name):
        sql, chat = ({"name": name, "uri": f"hf://org/{name}"} for name in ("sql", "chat"))
        await space.create(manifest(spec__adapters=[sql]))
        status = await space.until_phase("smol", "Ready")
        assert status["loraRegistries"] == {"desired": 1, "ready": 1}
        [worker] = await space.list(POD, OF_WORKERS)
        address = f"--lora-registry=smol-lora-registry.{space.name}.svc.cluster.local:50051"
        assert address in worker["spec"]["containers"][0]["args"]
        assert await names_told() == ["sql"]
        [before] = await space.list(POD, of_registry)

        changed = await space.patch(SERVICE_KIND, "smol", {"spec": {"adapters": [sql, chat]}})
        await space.until_phase("smol", "Ready", changed["metadata"]["generation"])
        assert await names_told() == ["sql", "chat"]
        [after] = await space.list(POD, of_registry)
        assert after["metadata"]["uid"] == before["metadata"]["uid"], "it reads them again by itself"

        changed = await space.patch(SERVICE_KIND, "smol", {"spec": {"adapters": None}})
        await space.until_phase("smol", "Ready", changed["metadata"]["generation"])
        assert await names_told() == []

        async def is_gone() -> bool:
            return not await space.list(POD, of_registry)

        await eventually(is_gone, "nothing is left of it", 30)


async def test_an_autoscaler_scales_the_service_itself(space: Namespace) -> None:
    async with running_controller(space.plane, space.name):
        await space.create(manifest(spec__autoscaling={"minReplicas": 2, "maxReplicas": 4}))
        status = await space.until_phase("smol", "Ready")
        assert status["workers"]["desired"] == 2, "within its bounds from the start"
        space.plane.kubectl("scale", "isvc", "smol", "-n", space.name, "--replicas=3")
        await eventually(lambda: _has_workers(space, 3), "the number that was set is planned")
        (scaler,) = await space.list(Kind(HPA_API, "HorizontalPodAutoscaler", "horizontalpodautoscalers"))
        assert scaler["spec"]["scaleTargetRef"]["kind"] == "InferenceService"


async def test_one_number_scales_both_roles(space: Namespace) -> None:
    async with running_controller(space.plane, space.name):
        roles = {"prefill": {}, "decode": {}, "ratio": {"prefill": 1, "decode": 3}}
        await space.create(
            manifest(spec__workers__replicas=4, **{f"spec__{name}": each for name, each in roles.items()})
        )
        status = await space.until_phase("smol", "Ready")
        assert (status["prefill"]["desired"], status["decode"]["desired"], status["workers"]["ready"]) == (1, 3, 4)
        decode = {f"smol-decode-{number}" for number in range(3)}
        await eventually(lambda: _leads_to(space, decode), "requests go to decode")
        space.plane.kubectl("scale", "isvc", "smol", "-n", space.name, "--replicas=8")
        changed = await space.service("smol")
        status = await space.until_phase("smol", "Ready", changed["metadata"]["generation"])
        assert (status["prefill"]["desired"], status["decode"]["desired"]) == (2, 6)
        scale = json.loads(
            space.plane.kubectl("get", "isvc", "smol", "-n", space.name, "--subresource=scale", "-o", "json")
        )
        assert (scale["spec"]["replicas"], scale["status"]["replicas"]) == (8, 8)
        answering = await space.list(POD, scale["status"]["selector"])
        assert len(answering) == 8


async def _leads_to(space: Namespace, pods: set[str]) -> bool:
    return await endpoints(space) == pods


async def _has_workers(space: Namespace, num: int) -> bool:
    return len(await space.list(POD, OF_WORKERS)) == num
