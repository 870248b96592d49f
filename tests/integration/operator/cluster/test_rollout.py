"""Workers of another kind take over from those that are there: on a real API server, with pods as far as kwok goes.

That no stream is lost on the way is tested with real processes, in test_whole_mesh.py.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shoal.operator.planner.kubernetes.plan import Kind
from shoal.operator.reconcile.api_client import ApiClient
from shoal.operator.reconcile.reconciler import SERVICE_KIND
from support.control_plane.cluster import ControlPlane
from support.eventually import eventually
from support.failing_api_client import LOST, Failing
from support.manifests import MINIMAL_ON_KUBERNETES, with_fields
from support.operator_running import POD, Namespace, running_controller

pytestmark = pytest.mark.cluster
STATEFUL_SET = Kind("apps/v1", "StatefulSet", "statefulsets")
GPUS = {"device": "cuda", "replicas": 2}
ENGINES = "app.kubernetes.io/component in (worker,prefill,decode)"


@pytest.fixture
def space(control_plane: ControlPlane, namespace: str) -> Namespace:
    return Namespace(control_plane, namespace)


async def groups(space: Namespace) -> dict[str, int]:
    """Name -> pods, of the StatefulSets that are not being deleted."""
    found = await space.list(STATEFUL_SET)
    return {
        item["metadata"]["name"]: item["spec"]["replicas"]
        for item in found
        if not item["metadata"].get("deletionTimestamp")
    }


async def ready_engines(space: Namespace) -> int:
    pods = await space.list(POD, ENGINES.replace(" ", "%20"))
    return sum(
        any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", ()))
        for pod in pods
        if not pod["metadata"].get("deletionTimestamp")
    )


async def change(space: Namespace, spec: dict[str, Any], least: int) -> None:
    """Changes the spec, and looks all the while that so many workers are ready."""
    changed = await space.patch(SERVICE_KIND, "smol", {"spec": spec})
    done = asyncio.Event()
    seen: list[int] = []

    async def look() -> None:
        while not done.is_set():
            seen.append(await ready_engines(space))

    looking = asyncio.ensure_future(look())
    try:
        await space.until_phase("smol", "Ready", changed["metadata"]["generation"])
    finally:
        done.set()
        await looking
    assert min(seen) >= least, seen


async def test_another_parallelism_is_another_group(space: Namespace) -> None:
    async with running_controller(space.plane, space.name):
        await space.create(with_fields(MINIMAL_ON_KUBERNETES, {"spec.workers": GPUS}))
        await space.until_phase("smol", "Ready")
        assert await groups(space) == {"smol-worker": 2}
        await change(space, {"workers": {"parallelism": {"tensor": 2}}}, least=2)
        [[name, replicas]] = (await groups(space)).items()
        assert name.startswith("smol-worker-")
        assert replicas == 2
        workers = await space.list(STATEFUL_SET)
        limits = workers[0]["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert str(limits["nvidia.com/gpu"]) == "2"
        # And back: the name of old is free by then.
        await change(space, {"workers": {"parallelism": {"tensor": 1}}}, least=2)
        assert await groups(space) == {"smol-worker": 2}


@pytest.mark.parametrize("replicas", [1, 2])
async def test_other_resources_are_rolled_in_place_and_take_over_first(space: Namespace, replicas: int) -> None:
    async with running_controller(space.plane, space.name):
        await space.create(with_fields(MINIMAL_ON_KUBERNETES, {"spec.workers": {"replicas": replicas}}))
        await space.until_phase("smol", "Ready")
        before = await space.list(POD, ENGINES.replace(" ", "%20"))
        await change(space, {"workers": {"resources": {"cpu": 3}}}, least=replicas)
        assert await groups(space) == {"smol-worker": replicas}
        after = await space.list(POD, ENGINES.replace(" ", "%20"))
        assert [pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] for pod in after] == ["3"] * replicas
        assert not {pod["metadata"]["uid"] for pod in before} & {pod["metadata"]["uid"] for pod in after}


async def test_a_size_that_fits_nowhere_leaves_the_one_worker(space: Namespace) -> None:
    async with running_controller(space.plane, space.name):
        await space.create(with_fields(MINIMAL_ON_KUBERNETES, {}))
        await space.until_phase("smol", "Ready")
        await space.patch(SERVICE_KIND, "smol", {"spec": {"workers": {"resources": {"cpu": 900}}}})

        async def is_told() -> bool:
            return "fits on no node" in (await space.service("smol"))["status"].get("message", "")

        await eventually(is_told, "the status says what the new worker lacks", 30)
        assert await ready_engines(space) == 1
        await change(space, {"workers": {"resources": {"cpu": 3}}}, least=1)
        assert await groups(space) == {"smol-worker": 1}


async def test_a_replacement_that_does_not_start_leaves_the_old_workers(space: Namespace) -> None:
    async with running_controller(space.plane, space.name):
        await space.create(with_fields(MINIMAL_ON_KUBERNETES, {"spec.workers": GPUS}))
        await space.until_phase("smol", "Ready")
        # No node has so many of them.
        too_many = {"parallelism": {"tensor": 2}, "resources": {"cpu": 900}}
        await space.patch(SERVICE_KIND, "smol", {"spec": {"workers": too_many}})

        async def is_told() -> bool:
            status = (await space.service("smol"))["status"]
            return status["phase"] == "Updating" and "fits on no node" in status["message"]

        await eventually(is_told, "the status says what the new workers lack", 30)
        assert (await groups(space))["smol-worker"] >= 1
        assert await ready_engines(space) >= 2 - 1
        await space.patch(
            SERVICE_KIND, "smol", {"spec": {"workers": {"parallelism": {"tensor": 1}, "resources": None}}}
        )
        await space.until_phase("smol", "Ready")
        assert await groups(space) == {"smol-worker": 2}


async def test_workers_become_prefill_and_decode_and_change_their_ratio(space: Namespace) -> None:
    async with running_controller(space.plane, space.name):
        await space.create(with_fields(MINIMAL_ON_KUBERNETES, {"spec.workers": GPUS}))
        await space.until_phase("smol", "Ready")
        halves = {"prefill": {"replicas": 1}, "decode": {"replicas": 2}}
        await change(space, {"workers": {"replicas": None}, **halves}, least=2)
        assert await groups(space) == {"smol-prefill": 1, "smol-decode": 2}
        status = (await space.service("smol"))["status"]
        assert (status["prefill"], status["decode"]) == ({"desired": 1, "ready": 1}, {"desired": 2, "ready": 2})
        assert status["workersReady"] == "3/3"
        await change(space, {"prefill": {"replicas": 2}, "decode": {"replicas": 4}}, least=3)
        assert await groups(space) == {"smol-prefill": 2, "smol-decode": 4}


@pytest.mark.parametrize("start", [13, 15, 16, 17, 19])
async def test_killed_at_a_write_of_a_rollout_another_operator_gets_there(space: Namespace, start: int) -> None:
    """The second operator applies everything once, the new group near the end, and never gets a write through again."""
    async with running_controller(space.plane, space.name):
        await space.create(with_fields(MINIMAL_ON_KUBERNETES, {"spec.workers": GPUS}))
        await space.until_phase("smol", "Ready")
    changed = await space.patch(SERVICE_KIND, "smol", {"spec": {"workers": {"parallelism": {"tensor": 2}}}})
    made: list[Failing] = []

    def make(configuration: Any) -> ApiClient:
        made.append(Failing(configuration, LOST, start, 10**6))
        return made[0]

    async with running_controller(space.plane, space.name, make_client=make):
        await eventually(lambda: made[0].failures > 0, f"write {start} fails")
        assert await ready_engines(space) >= 2
    async with running_controller(space.plane, space.name):
        await space.until_phase("smol", "Ready", changed["metadata"]["generation"])
        [[name, replicas]] = (await groups(space)).items()
        assert name.startswith("smol-worker-")
        assert replicas == 2


async def test_an_operator_killed_on_the_way_is_followed_by_another(space: Namespace) -> None:
    async with running_controller(space.plane, space.name):
        await space.create(with_fields(MINIMAL_ON_KUBERNETES, {"spec.workers": {**GPUS, "replicas": 4}}))
        await space.until_phase("smol", "Ready")
        await space.patch(SERVICE_KIND, "smol", {"spec": {"workers": {"parallelism": {"tensor": 2}}}})

        async def has_both() -> bool:
            return len(await groups(space)) == 2

        await eventually(has_both, "the new group is beside the old one")
    async with running_controller(space.plane, space.name):
        await space.until_phase("smol", "Ready")
        [[name, replicas]] = (await groups(space)).items()
        assert name != "smol-worker"
        assert replicas == 4
