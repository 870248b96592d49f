"""The API server goes away and comes back, with every watch cut."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shoal.operator.planner.kubernetes.plan import Kind
from shoal.operator.reconcile.handlers import WatchHandlers
from shoal.operator.reconcile.reconciler import SERVICE_KIND
from support.control_plane.cluster import ControlPlane
from support.eventually import eventually
from support.manifests import MINIMAL_ON_KUBERNETES, with_fields
from support.operator_running import Namespace, running_controller

pytestmark = pytest.mark.cluster
STATEFUL_SET = Kind("apps/v1", "StatefulSet", "statefulsets")


async def test_watches_go_on_and_nothing_is_missed(control_plane: ControlPlane, namespace: str) -> None:
    space = Namespace(control_plane, namespace)
    async with running_controller(control_plane, namespace):
        await space.create(with_fields(MINIMAL_ON_KUBERNETES, {}))
        await space.until_phase("smol", "Ready")
        await asyncio.to_thread(control_plane.restart_apiserver)
        # One change that the operator may see by its watch or by its list, and one of an object of its own.
        await space.patch(SERVICE_KIND, "smol", {"spec": {"workers": {"replicas": 2}}})
        await space.until_phase("smol", "Ready")
        await space.patch(STATEFUL_SET, "smol-worker", {"spec": {"replicas": 0}})

        async def is_restored() -> bool:
            found = await space.objects("smol")
            return bool(found["StatefulSet", "smol-worker"]["spec"]["replicas"] == 2)

        await eventually(is_restored, "its objects are watched again", 30)


async def test_what_a_broken_watch_did_not_tell_is_found_by_the_next_list(
    control_plane: ControlPlane, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = Namespace(control_plane, namespace)
    tell = WatchHandlers._tell
    lost: list[str] = []

    def tell_of_no_end(event: Any, seen: Any, gone: Any) -> None:
        if event["type"] == "DELETED" and event["object"]["metadata"]["name"] == "smol-worker":
            lost.append(event["object"]["kind"])
        else:
            tell(event, seen, gone)

    monkeypatch.setattr(WatchHandlers, "_tell", staticmethod(tell_of_no_end))
    async with running_controller(control_plane, namespace, resync_interval_s=1.0):
        await space.create(with_fields(MINIMAL_ON_KUBERNETES, {}))
        await space.until_phase("smol", "Ready")
        before = (await space.objects("smol"))["ServiceAccount", "smol-worker"]
        await space.delete(Kind("v1", "ServiceAccount", "serviceaccounts"), "smol-worker")

        async def is_there_anew() -> bool:
            found = (await space.objects("smol")).get(("ServiceAccount", "smol-worker"))
            return found is not None and found["metadata"]["uid"] != before["metadata"]["uid"]

        await eventually(is_there_anew, "the ServiceAccount is made again", 20)
        assert "ServiceAccount" in lost, "no watch told of it"
