"""LeaderWorkerSet's own controller is there for tests of groups that span pods."""

from __future__ import annotations

import json
import urllib.error
from typing import Any

import pytest

from support.control_plane.cluster import ControlPlane
from support.control_plane.lws import PATH, leader_worker_set
from support.eventually import eventually
from support.operator_running import POD, Namespace

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("leader_worker_sets")]


async def test_groups_become_pods_that_know_their_place(control_plane: ControlPlane, namespace: str) -> None:
    space = Namespace(control_plane, namespace)
    await space.call("POST", PATH.format(namespace=namespace), leader_worker_set("group", replicas=2, size=2))

    async def running() -> bool:
        return [pod["status"]["phase"] for pod in await space.list(POD)] == ["Running"] * 4

    await eventually(running, "two groups of two pods run", 30)
    places = {pod["metadata"]["name"]: _environment(pod) for pod in await space.list(POD)}
    assert places == {
        f"group-{group}{suffix}": {
            "LWS_LEADER_ADDRESS": f"group-{group}.group.{namespace}",
            "LWS_GROUP_SIZE": "2",
            "LWS_WORKER_INDEX": index,
        }
        for group in (0, 1)
        for suffix, index in (("", "0"), ("-1", "1"))
    }


def test_its_webhook_refuses_parts_that_do_not_divide_a_group(control_plane: ControlPlane, namespace: str) -> None:
    body = leader_worker_set("group", size=6)
    body["spec"]["leaderWorkerTemplate"]["subGroupPolicy"] = {"subGroupSize": 4}
    with pytest.raises(urllib.error.HTTPError) as refused:
        control_plane.request("POST", PATH.format(namespace=namespace), json.dumps(body).encode())
    assert "vleaderworkerset.kb.io" in refused.value.read().decode()


def _environment(pod: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in pod["spec"]["containers"][0]["env"]}
