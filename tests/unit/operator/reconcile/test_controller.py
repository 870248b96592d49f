"""The operator's life as a whole, on an API server in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from shoal.operator.planner.kubernetes import Platform
from shoal.operator.reconcile.background import running
from shoal.operator.reconcile.controller import Controller
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
