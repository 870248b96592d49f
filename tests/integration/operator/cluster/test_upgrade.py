"""Objects that were stored under another CustomResourceDefinition: an earlier one, and one of a version to come."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from envoy_data_plane.envoy.config.endpoint.v3 import ClusterLoadAssignment

from shoal.operator.api.crd import custom_resource_definition
from shoal.operator.follower.following import endpoints_of
from shoal.operator.planner.kubernetes.plan import Kind
from shoal.operator.reconcile.controller import Controller
from shoal.operator.reconcile.reconciler import SERVICE_KIND
from shoal.operator.xds import Kind as EnvoyKind
from support.control_plane.cluster import ControlPlane, running_control_plane
from support.control_plane.required import require_binaries
from support.eventually import eventually
from support.manifests import EVERYTHING_ON_KUBERNETES, MINIMAL_ON_KUBERNETES, with_fields
from support.operator_running import Namespace, running_controller

pytestmark = pytest.mark.cluster
STATEFUL_SET = Kind("apps/v1", "StatefulSet", "statefulsets")
PREVIOUS = yaml.safe_load((Path(__file__).parent / "data" / "previous-crd.yaml").read_text())
DEFINITION = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/inferenceservices.shoal.dev"


@pytest.fixture
def earlier_plane() -> Iterator[ControlPlane]:
    """A control plane of its own, since definitions are everybody's."""
    with running_control_plane(require_binaries(), definitions=[PREVIOUS]) as plane:
        yield plane


def to_come() -> dict[str, Any]:
    """A definition that knows another policy and another field, and has no rules."""
    definition = copy.deepcopy(custom_resource_definition())
    (version,) = definition["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    schema.pop("x-kubernetes-validations")
    schema["properties"]["routing"]["properties"]["policy"]["enum"].append("clairvoyant")
    schema["properties"]["teleport"] = {"type": "object", "properties": {"to": {"type": "string"}}}
    return definition


async def define(space: Namespace, definition: dict[str, Any], *, shows: str = "", hides: str = "-") -> None:
    """Returns once the API server has that schema, by what it holds and what it does not."""
    path = "/openapi/v3/apis/shoal.dev/v1alpha1"
    space.plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(definition))

    async def is_served() -> bool:
        schema = json.dumps(await space.call("GET", path))
        return shows in schema and f'"{hides}"' not in schema

    await eventually(is_served, f"the schema has {shows} and not {hides}")


async def until_refused(space: Namespace, name: str) -> dict[str, Any]:
    status = await space.until_phase(name, "Failed")
    (accepted,) = [found for found in status["conditions"] if found["type"] == "Accepted"]
    assert accepted["status"] == "False"
    return dict(accepted)


async def test_objects_of_another_schema_are_looked_after(earlier_plane: ControlPlane) -> None:
    space = Namespace(earlier_plane, "default")
    await space.create(yaml.safe_load(MINIMAL_ON_KUBERNETES))
    await space.create(yaml.safe_load(EVERYTHING_ON_KUBERNETES.replace("namespace: models, ", "")))
    stored = await space.service("smol")
    assert "deletionPolicy" not in stored["spec"], "it was written under the earlier schema"
    await _an_earlier_spec_is_served(space)
    await _what_nobody_knows_is_said(space)


async def _an_earlier_spec_is_served(space: Namespace) -> None:
    async with running_controller(space.plane, space.name):
        await space.until_phase("smol", "Ready")
        before = await space.objects("smol")
        await define(space, custom_resource_definition(), shows="deletionPolicy")
        assert (await space.service("smol"))["spec"]["deletionPolicy"] == "Delete", "what is left out is filled in"
        # Its pods wait for a claim that nobody makes here; it is planned whole.
        planned = await space.until_phase("everything", "Starting")
        facts = {found["type"]: found["status"] for found in planned["conditions"]}
        assert (facts["Accepted"], facts["Planned"]) == ("True", "True")
    # Another operator, which begins by reading everything.
    async with running_controller(space.plane, space.name):
        await space.patch(SERVICE_KIND, "smol", {"spec": {"tokenizer": {"replicas": 2}}})
        await space.until_phase("smol", "Ready")
        after = await space.objects("smol")
    kept = {key: found["metadata"]["uid"] for key, found in before.items()}
    assert {key: found["metadata"]["uid"] for key, found in after.items()} == kept, "nothing was made anew"
    workers = ("StatefulSet", "smol-worker")
    assert after[workers]["metadata"]["generation"] == before[workers]["metadata"]["generation"], "nor rolled"


async def _what_nobody_knows_is_said(space: Namespace) -> None:
    """Written while a later version was installed, which was then taken back."""
    await define(space, to_come(), shows="clairvoyant")
    made = functools.partial(with_fields, MINIMAL_ON_KUBERNETES)
    await space.create(made({"metadata.name": "enum", "spec.routing": {"policy": "clairvoyant"}}))
    await space.create(made({"metadata.name": "field", "spec.teleport": {"to": "mars"}}))
    rule = {"minReplicas": 3, "maxReplicas": 2}
    await space.create(made({"metadata.name": "rule", "spec.autoscaling": rule}))
    await space.patch(SERVICE_KIND, "smol", {"spec": {"routing": {"policy": "clairvoyant"}}})
    async with running_controller(space.plane, space.name, resync_interval_s=1.0) as controller:
        unknown_field = await until_refused(space, "field")
        assert "spec.teleport: unknown field; known: adapters, " in unknown_field["message"]
        await define(space, custom_resource_definition(), hides="teleport")
        unknown_value = await until_refused(space, "enum")
        assert "spec.routing.policy: 'clairvoyant' is not allowed; give one of " in unknown_value["message"]
        assert "round_robin" in unknown_value["message"]
        await until_refused(space, "smol")
        await _its_endpoints_move(space, controller)
        contradiction = await until_refused(space, "rule")
        assert "3 is more than spec.autoscaling.maxReplicas = 2" in contradiction["message"]
        # Right once it is put right, and nobody else was kept from being looked after.
        for name in ("enum", "smol"):
            await space.patch(SERVICE_KIND, name, {"spec": {"routing": {"policy": "shoal"}}})
        await space.until_phase("enum", "Ready")
        await space.until_phase("field", "Ready")  # the field is not there any more
        await space.until_phase("smol", "Ready")


async def _its_endpoints_move(space: Namespace, controller: Controller) -> None:
    """Of what ran before this operator came, which cannot read its spec: it is served on."""

    def num_workers() -> int:
        snapshot = controller.snapshots.get(f"{space.name}/smol")
        if snapshot is None:
            return 0
        assignment = ClusterLoadAssignment.parse(snapshot.of(EnvoyKind.ENDPOINTS)["worker"].body.value)
        return len(endpoints_of(assignment))

    await eventually(lambda: num_workers() == 1, "Envoys are told of its worker")
    await space.patch(STATEFUL_SET, "smol-worker", {"spec": {"replicas": 2}})
    await eventually(lambda: num_workers() == 2, "and of one more, which somebody asked for by hand")
