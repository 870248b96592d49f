"""How a gateway's pod ends: in turn, and not before its clients have been answered."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.config import load
from shoal.operator.api.checking import check
from shoal.operator.api.spec import InferenceService
from shoal.operator.follower.draining import DrainConfig
from shoal.operator.planner.kubernetes import Owner, Platform, plan
from support.manifests import MINIMAL_ON_KUBERNETES, with_fields

OWNER = Owner(namespace="models", uid="0d6ef4bd-5f1c-4a76-a8a0-3f2f6d0f0e3c")


def gateway_pod(drain_seconds: int) -> dict[str, Any]:
    fields = {"spec.rollout.drainSeconds": drain_seconds}
    service, problems = check(InferenceService, with_fields(MINIMAL_ON_KUBERNETES, fields))
    assert service is not None, problems
    objects = plan(service, Platform(), OWNER)
    [deployment] = [
        each for each in objects if (each["kind"], each["metadata"]["name"]) == ("Deployment", "smol-gateway")
    ]
    spec: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return spec


def test_envoy_ends_after_the_follower_which_waits_for_its_clients() -> None:
    envoy, follower = gateway_pod(60)["initContainers"]
    assert (envoy["name"], follower["name"]) == ("envoy", "follower")
    assert [each["restartPolicy"] for each in (envoy, follower)] == ["Always", "Always"]
    command = follower["lifecycle"]["preStop"]["exec"]["command"]
    assert command[:3] == ["python", "-m", "shoal.operator.follower.draining"]
    config = load(DrainConfig, program="shoal-drain", argv=command[3:], environ={})
    socket_folder = {mount["mountPath"] for each in (envoy, follower) for mount in each["volumeMounts"]}
    assert config.admin_socket.rsplit("/", 1)[0] in socket_folder


@pytest.mark.parametrize(("drain_seconds", "expected_s"), [(0, 60), (60, 60), (900, 900)])
def test_gateways_drain_as_long_as_workers_may(drain_seconds: int, expected_s: int) -> None:
    pod = gateway_pod(drain_seconds)
    follower = pod["initContainers"][1]
    [gateway] = pod["containers"]
    assert f"--drain-timeout-s={float(expected_s)}" in gateway["args"]
    assert f"--timeout-s={expected_s}" in follower["lifecycle"]["preStop"]["exec"]["command"]
    # Proxies hear of it before, and something is left to end in after it.
    assert pod["terminationGracePeriodSeconds"] == 5 + expected_s + 5
