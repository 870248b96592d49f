"""An operator that dies, or is refused, at any call that it makes: the next one gets to the same objects."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from shoal.operator.planner.kubernetes import Manifest
from shoal.operator.reconcile.api_client import ApiClient, ApiError
from shoal.operator.reconcile.reconciler import SERVICE_KIND
from support.control_plane.cluster import ControlPlane
from support.eventually import eventually
from support.failing_api_client import LOST, NUM_WRITES, Failing
from support.manifests import MINIMAL_ON_KUBERNETES, with_fields
from support.operator_running import Namespace, running_controller

pytestmark = pytest.mark.cluster
EVERY_WRITE = [
    pytest.param(n, marks=[] if n in (1, 8, 15, 17, 18, NUM_WRITES) else pytest.mark.exhaustive)
    for n in range(1, NUM_WRITES + 1)
]

BUSY = ApiError(429, "TooManyRequests", "come back later")
CONFLICT = ApiError(409, "Conflict", "somebody else was faster")
BROKEN = ApiError(500, "InternalError", "etcd has no leader")
FORBIDDEN = ApiError(403, "Forbidden", "may not")


@pytest.fixture
def space(control_plane: ControlPlane, namespace: str) -> Namespace:
    return Namespace(control_plane, namespace)


@pytest.mark.parametrize("start", EVERY_WRITE)
@pytest.mark.parametrize("after", [False, True], ids=["refused", "answer lost"])
async def test_killed_at_a_write_another_operator_gets_there(space: Namespace, start: int, after: bool) -> None:
    """The first operator never gets a write through again, and ends."""
    made: list[Failing] = []

    def make(configuration: Any) -> ApiClient:
        made.append(Failing(configuration, LOST, start, 10**6, after=after))
        return made[0]

    await space.create(with_fields(MINIMAL_ON_KUBERNETES, {}))
    async with running_controller(space.plane, space.name, make_client=make):
        await eventually(lambda: made[0].failures > 0, f"write {start} fails")
    async with running_controller(space.plane, space.name):
        await space.until_phase("smol", "Ready")
        assert len(await space.objects("smol")) == 17


@pytest.mark.parametrize("error", [BUSY, CONFLICT, BROKEN], ids=lambda error: error.reason)
async def test_what_passes_is_tried_again(space: Namespace, error: ApiError) -> None:
    made: list[Failing] = []

    def make(configuration: Any) -> ApiClient:
        made.append(Failing(configuration, error, 5, 3))
        return made[0]

    async with running_controller(space.plane, space.name, make_client=make):
        await space.create(with_fields(MINIMAL_ON_KUBERNETES, {}))
        await space.until_phase("smol", "Ready")
    assert made[0].failures == 3


async def test_a_right_that_is_lacking_is_told_of(space: Namespace) -> None:
    class Partial(ApiClient):
        is_allowed = False

        async def request(self, method: str, path: str, *arguments: Any, **fields: Any) -> Manifest:
            if method == "PATCH" and "/poddisruptionbudgets/" in path and not self.is_allowed:
                raise FORBIDDEN
            return await super().request(method, path, *arguments, **fields)

    async with running_controller(space.plane, space.name, make_client=Partial):
        await space.create(with_fields(MINIMAL_ON_KUBERNETES, {}))
        status = await space.until_phase("smol", "Failed")
        assert (status["message"], status["conditions"][1]["reason"]) == ("may not", "Forbidden")
        Partial.is_allowed = True
        await space.until_phase("smol", "Ready")


async def test_two_operators_never_fight(space: Namespace) -> None:
    """Both want the same: after one round neither writes anything any more."""
    counted: list[Failing] = []

    def make(configuration: Any) -> ApiClient:
        counted.append(Failing(configuration, LOST, 0, 0))
        return counted[-1]

    async with (
        running_controller(space.plane, space.name, make_client=make),
        running_controller(space.plane, space.name, make_client=make),
    ):
        await space.create(with_fields(MINIMAL_ON_KUBERNETES, {}))
        await space.until_phase("smol", "Ready")
        changed = await space.patch(SERVICE_KIND, "smol", {"spec": {"workers": {"replicas": 2}}})
        await space.until_phase("smol", "Ready", changed["metadata"]["generation"])
        await _until_quiet(counted)


async def _until_quiet(clients: list[Failing]) -> None:
    """No write for a whole second, within ten."""
    for _ in range(10):
        before = [client.writes for client in clients]
        await asyncio.sleep(1)  # silence has no event to wait for
        if [client.writes for client in clients] == before:
            return
    raise AssertionError(f"still writing: {[client.writes for client in clients]}")


async def test_one_of_several_writes_and_another_takes_over(space: Namespace) -> None:
    """Without waiting for the Lease to expire: who ends gives it up."""
    counted: list[Failing] = []

    def make(configuration: Any) -> ApiClient:
        counted.append(Failing(configuration, LOST, 0, 0))
        return counted[-1]

    async with contextlib.AsyncExitStack() as first:
        options: dict[str, Any] = {"make_client": make, "lease_namespace": space.name}
        await first.enter_async_context(running_controller(space.plane, space.name, identity="a", **options))
        await space.create(with_fields(MINIMAL_ON_KUBERNETES, {}))
        await space.until_phase("smol", "Ready")
        async with running_controller(space.plane, space.name, identity="b", **options) as second:
            await eventually(lambda: second.snapshots.get(f"{space.name}/smol") is not None, "b serves Envoys as well")
            assert counted[1].writes == 0
            changed = await space.patch(SERVICE_KIND, "smol", {"spec": {"workers": {"replicas": 2}}})
            await space.until_phase("smol", "Ready", changed["metadata"]["generation"])
            assert counted[1].writes == 0
            await first.aclose()
            changed = await space.patch(SERVICE_KIND, "smol", {"spec": {"workers": {"replicas": 3}}})
            await space.until_phase("smol", "Ready", changed["metadata"]["generation"])
            assert counted[1].writes > 0
