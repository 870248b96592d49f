"""What people do to services and their objects by hand, and at the wrong moment."""

from __future__ import annotations

import asyncio
import urllib.error
from typing import Any

import pytest

from shoal.operator.api.crd import CRD_NAME, custom_resource_definition
from shoal.operator.planner.kubernetes.plan import Kind
from shoal.operator.reconcile.reconciler import SERVICE_KIND
from support.control_plane.cluster import ControlPlane
from support.eventually import eventually
from support.manifests import MINIMAL_ON_KUBERNETES, with_fields
from support.operator_running import POD, Namespace, running_controller

pytestmark = pytest.mark.cluster
STATEFUL_SET = Kind("apps/v1", "StatefulSet", "statefulsets")
DEPLOYMENT = Kind("apps/v1", "Deployment", "deployments")
SERVICE = Kind("v1", "Service", "services")
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@pytest.fixture
def space(control_plane: ControlPlane, namespace: str) -> Namespace:
    return Namespace(control_plane, namespace)


def manifest(name: str = "smol", **fields: Any) -> dict[str, Any]:
    paths = {path.replace("__", "."): value for path, value in fields.items()}
    return with_fields(MINIMAL_ON_KUBERNETES, {"metadata.name": name, **paths})


async def test_the_longest_name_rolls_to_another_group_of_workers(space: Namespace) -> None:
    """StatefulSets put their name and a hash into a label of their pods, which holds 63 characters."""
    name = "n" * 40
    async with running_controller(space.plane, space.name):
        await space.create(manifest(name))
        await space.until_phase(name, "Ready")
        changed = await space.patch(SERVICE_KIND, name, {"spec": {"model": {"dtype": "float32"}}})
        await space.until_phase(name, "Ready", changed["metadata"]["generation"])
        [group] = await space.list(STATEFUL_SET)
        assert group["metadata"]["name"] != f"{name}-worker"
        workers = "app.kubernetes.io/component=worker"
        await eventually(lambda: _has_one(space, workers), "the pods of the old group go")


async def test_labels_that_somebody_took_away_come_back(space: Namespace) -> None:
    """Without them the operator does not see its object; it owns it all the same."""
    gone = {"metadata": {"labels": {"app.kubernetes.io/managed-by": None, "shoal.dev/inferenceservice": None}}}
    async with running_controller(space.plane, space.name):
        await space.create(manifest())
        await space.until_phase("smol", "Ready")
        before = {found["metadata"]["name"]: found for found in await space.list(SERVICE)}
        await space.patch(SERVICE, "smol-tokenizer", gone)

        async def is_restored() -> bool:
            after = {found["metadata"]["name"]: found for found in await space.list(SERVICE)}
            return {name: found["metadata"]["labels"] for name, found in after.items()} == {
                name: found["metadata"]["labels"] for name, found in before.items()
            }

        await eventually(is_restored, "they are back", 20)
        await space.until_phase("smol", "Ready")


@pytest.mark.exhaustive
async def test_a_name_that_another_service_needs_is_free_once_that_is_gone(space: Namespace) -> None:
    """`smol` has a Service smol-worker, and so has a service of that name."""
    async with running_controller(space.plane, space.name):
        await space.create(manifest())
        await space.until_phase("smol", "Ready")
        await space.create(manifest("smol-worker"))
        status = await space.until_phase("smol-worker", "Failed")
        [planned] = [found for found in status["conditions"] if found["type"] == "Planned"]
        assert planned["reason"] == "NameTaken"
        assert "InferenceService smol)" in planned["message"]
        await space.until_phase("smol", "Ready")
        await space.delete(SERVICE_KIND, "smol")
        await space.until_phase("smol-worker", "Ready", timeout_s=60)


async def test_a_spec_that_changes_all_the_time_ends_as_the_last_one_says(space: Namespace) -> None:
    async with running_controller(space.plane, space.name):
        await space.create(manifest())
        changed: dict[str, Any] = {}
        for number in range(22):
            dtype, replicas = ("float32", "bfloat16")[number % 2], 1 + number % 3
            spec = {"model": {"dtype": dtype}, "workers": {"replicas": replicas}}
            changed = await space.patch(SERVICE_KIND, "smol", {"spec": spec})
            await asyncio.sleep(0.1)
        status = await space.until_phase("smol", "Ready", changed["metadata"]["generation"], timeout_s=60)
        assert (status["workers"]["desired"], status["workers"]["ready"]) == (1, 1)
        [group] = await space.list(STATEFUL_SET)
        assert "--dtype=bfloat16" in group["spec"]["template"]["spec"]["containers"][0]["args"]


async def test_a_namespace_that_goes_while_its_service_comes(control_plane: ControlPlane) -> None:
    with control_plane.fresh_namespace() as name:
        space = Namespace(control_plane, name)
        async with running_controller(control_plane, name) as controller:
            await space.create(manifest())
            await eventually(lambda: bool(controller.store.of((name, "smol"))), "it has begun")
            await space.call("DELETE", f"/api/v1/namespaces/{name}")
            await eventually(lambda: not controller.reconciler.services, "its service is gone", 60)
            await eventually(lambda: not any(controller.queue.sizes.values()), "nothing is tried again", 30)

            async def is_gone() -> bool:
                try:
                    await space.call("GET", f"/api/v1/namespaces/{name}")
                except urllib.error.HTTPError as error:
                    return error.code == 404
                return False

            await eventually(is_gone, "the namespace is gone", 60)
            body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
            await space.call("POST", "/api/v1/namespaces", body)
            await space.create(manifest())
            await space.until_phase("smol", "Ready")


@pytest.mark.exhaustive  # where a watch comes back before the definition does, the operator ends, and this test with it
async def test_a_definition_that_is_deleted_with_its_objects_and_made_again(space: Namespace) -> None:
    async with running_controller(space.plane, space.name, resync_interval_s=1.0) as controller:
        await space.create(manifest())
        await space.until_phase("smol", "Ready")
        await space.call("DELETE", f"{DEFINITIONS}/{CRD_NAME}")
        try:
            await eventually(lambda: not controller.reconciler.services, "its services are gone", 60)
            await eventually(lambda: _is_undefined(space), "so is the definition", 60)
        finally:
            await space.call("POST", DEFINITIONS, custom_resource_definition())
        await eventually(lambda: _creates(space), "there can be one again", 60)
        await space.until_phase("smol", "Ready", timeout_s=60)


async def _has_one(space: Namespace, selector: str) -> bool:
    return len(await space.list(POD, selector)) == 1


async def _is_undefined(space: Namespace) -> bool:
    try:
        await space.call("GET", f"{DEFINITIONS}/{CRD_NAME}")
    except urllib.error.HTTPError as error:
        return error.code == 404
    return False


async def _creates(space: Namespace, created: dict[str, Any] | None = None) -> bool:
    try:
        made = await space.create(manifest())
    except urllib.error.HTTPError as error:
        if error.code not in (404, 409):
            raise
        return False
    if created is not None:
        created.update(made)
    return True


async def test_texts_of_any_script_and_size(space: Namespace) -> None:
    text = "Größe 模型 \N{WHALE} \u202e" + "\N{COMBINING ACUTE ACCENT}" * 50
    worker = {
        "metadata": {"annotations": {"note": text}},
        "spec": {"containers": [{"name": "worker", "env": [{"name": "NOTE", "value": text}]}]},
    }
    async with running_controller(space.plane, space.name):
        await space.create(manifest(spec__podTemplate={"worker": worker}))
        await space.until_phase("smol", "Ready")
        [pod] = await space.list(POD, "app.kubernetes.io/component=worker")
        assert pod["metadata"]["annotations"]["note"] == text
        assert {"name": "NOTE", "value": text} in pod["spec"]["containers"][0]["env"]
        # More than the API server takes of one object: said, and over once it is less.
        large = {"spec": {"podTemplate": {"worker": {"metadata": {"annotations": {"note": "x" * 400_000}}}}}}
        await space.patch(SERVICE_KIND, "smol", large)
        status = await space.until_phase("smol", "Failed")
        [planned] = [found for found in status["conditions"] if found["type"] == "Planned"]
        assert planned["status"] == "False"
        assert len(planned["message"]) < 5000
        await space.patch(SERVICE_KIND, "smol", {"spec": {"podTemplate": None}})
        await space.until_phase("smol", "Ready")


async def test_workloads_that_somebody_made_anew_otherwise(space: Namespace) -> None:
    """`kubectl replace --force`: what cannot be changed is said, and is well once that is deleted."""
    async with running_controller(space.plane, space.name):
        await space.create(manifest())
        await space.until_phase("smol", "Ready")
        [group] = await space.list(STATEFUL_SET)
        path = f"/apis/apps/v1/namespaces/{space.name}/statefulsets"
        await space.call("DELETE", f"{path}/smol-worker", {"propagationPolicy": "Background"})
        keys = ("name", "labels", "ownerReferences")
        other = {
            "apiVersion": "apps/v1",
            "kind": "StatefulSet",
            "metadata": {key: group["metadata"][key] for key in keys},
            "spec": {**group["spec"], "serviceName": "elsewhere"},
        }
        try:
            await space.call("POST", path, other)
        except urllib.error.HTTPError as error:
            if error.code != 409:
                raise
            return  # the operator was faster
        status = await space.until_phase("smol", "Failed")
        [planned] = [found for found in status["conditions"] if found["type"] == "Planned"]
        assert planned["reason"] == "Invalid"
        await space.delete(STATEFUL_SET, "smol-worker")
        await space.until_phase("smol", "Ready")


async def test_services_that_are_deleted_and_made_again_at_once(space: Namespace) -> None:
    """Another uid under the same name, while Kubernetes collects what the one before owned."""
    async with running_controller(space.plane, space.name):
        await space.create(manifest())
        await space.until_phase("smol", "Ready")
        planned = (await space.objects("smol")).keys()
        created: dict[str, Any] = {}
        for policy in ("Background", "Orphan", "Foreground", "Background"):
            path = f"/apis/shoal.dev/v1alpha1/namespaces/{space.name}/inferenceservices"
            await space.call("DELETE", f"{path}/smol", {"propagationPolicy": policy})
            await eventually(lambda: _creates(space, created), "the name is free", 60)
        await space.until_phase("smol", "Ready", timeout_s=60)

        async def is_as_planned() -> bool:
            objects = await space.objects("smol")
            owners = [
                [owner["uid"] for owner in each["metadata"].get("ownerReferences", ())] for each in objects.values()
            ]
            return objects.keys() == planned and all(uids == [created["metadata"]["uid"]] for uids in owners)

        await eventually(is_as_planned, "everything belongs to the last one, and to it alone", 60)
        await space.until_phase("smol", "Ready", timeout_s=60)


async def test_a_status_that_somebody_wrote_is_written_anew(space: Namespace) -> None:
    async with running_controller(space.plane, space.name):
        await space.create(manifest())
        await space.until_phase("smol", "Ready")
        path = f"/apis/shoal.dev/v1alpha1/namespaces/{space.name}/inferenceservices/smol/status"
        for status in ({"phase": "Failed", "conditions": []}, None):
            await space.call("PATCH", path, {"status": status}, "application/merge-patch+json")
            await space.until_phase("smol", "Ready")


async def test_an_object_that_does_not_go_is_made_anew_once_it_does(space: Namespace) -> None:
    """Somebody's finalizer holds it."""
    async with running_controller(space.plane, space.name):
        await space.create(manifest())
        await space.until_phase("smol", "Ready")
        held = {"metadata": {"finalizers": ["example.com/held"]}}
        before = await space.patch(SERVICE, "smol-tokenizer", held)
        await space.delete(SERVICE, "smol-tokenizer")
        changed = await space.patch(SERVICE_KIND, "smol", {"spec": {"workers": {"replicas": 2}}})
        await space.until_phase("smol", "Ready", changed["metadata"]["generation"])
        await space.patch(SERVICE, "smol-tokenizer", {"metadata": {"finalizers": None}})

        async def is_new() -> bool:
            found = {each["metadata"]["name"]: each["metadata"]["uid"] for each in await space.list(SERVICE)}
            return found.get("smol-tokenizer") not in (None, before["metadata"]["uid"])

        await eventually(is_new, "there is another one", 20)
