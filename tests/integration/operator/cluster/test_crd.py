"""What the real API server makes of InferenceServices: the same as `shoal validate`."""

from __future__ import annotations

import json
import subprocess
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings

from shoal.operator.api import ManifestError, find_contradictions, parse_manifest
from shoal.operator.api.kubernetes_rules import find_kubernetes_contradictions
from support.bad_manifests import BAD_MANIFESTS
from support.control_plane.cluster import ControlPlane
from support.manifests import EVERYTHING_ON_KUBERNETES, MINIMAL_ON_KUBERNETES, ROLES_ON_KUBERNETES, specs, with_fields
from support.valid_specs import manifest_of, without_contradictions

pytestmark = pytest.mark.cluster
FOLDER = Path(__file__).parents[4] / "examples"
EXAMPLES = [*sorted(FOLDER.glob("*.yaml")), *sorted(FOLDER.glob("kubernetes/*.yaml"))]


def create(plane: ControlPlane, namespace: str, manifest: dict[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
    """As kubectl does, which has the server refuse unknown fields."""
    manifest = {**manifest, "metadata": {**manifest["metadata"], "namespace": namespace}}
    query = "fieldValidation=Strict" + ("&dryRun=All" if dry_run else "")
    path = f"/apis/shoal.dev/v1alpha1/namespaces/{namespace}/inferenceservices?{query}"
    created: dict[str, Any] = plane.request("POST", path, json.dumps(manifest).encode())
    return created


def refusal(plane: ControlPlane, namespace: str, manifest: dict[str, Any]) -> str:
    with pytest.raises(urllib.error.HTTPError) as caught:
        create(plane, namespace, manifest, dry_run=True)
    assert caught.value.code in (400, 422)
    return str(json.load(caught.value)["message"])


def local_problems(manifest: dict[str, Any]) -> list[str]:
    try:
        service = parse_manifest(yaml.safe_dump(manifest), "m.yaml")
    except ManifestError as error:
        return [problem.path for problem in error.problems]
    return [problem.path for problem in find_contradictions(service) + find_kubernetes_contradictions(service)]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_taken_where_they_can_run(control_plane: ControlPlane, namespace: str, path: Path) -> None:
    manifest = yaml.safe_load(path.read_text())
    problems = local_problems(manifest)
    if problems:  # an example for one machine
        assert problems[0] in refusal(control_plane, namespace, manifest)
    else:
        assert create(control_plane, namespace, manifest)["spec"]["flowControl"]["maxQueueSeconds"] == 60


def test_defaults_are_those_of_the_spec(control_plane: ControlPlane, namespace: str) -> None:
    """What the API server fills in changes nothing of what the manifest means."""
    manifest = yaml.safe_load(MINIMAL_ON_KUBERNETES)
    created = create(control_plane, namespace, manifest)
    filled = {**manifest, "spec": created["spec"]}
    before, after = (parse_manifest(yaml.safe_dump(m), "m.yaml").spec for m in (manifest, filled))
    assert before == after
    assert created["spec"]["workers"]["replicas"] == 1
    assert "threads" not in created["spec"]["workers"], "what the device decides stays open"


def test_every_field_is_accepted(control_plane: ControlPlane, namespace: str) -> None:
    manifest = yaml.safe_load(EVERYTHING_ON_KUBERNETES)
    created = create(control_plane, namespace, manifest)
    assert created["spec"]["workers"]["resources"] == {"cpu": 3, "memory": "8Gi"}
    filled = yaml.safe_dump({**manifest, "spec": created["spec"]})
    assert parse_manifest(filled, "m.yaml").spec == parse_manifest(EVERYTHING_ON_KUBERNETES, "m.yaml").spec


def test_every_field_of_roles_is_accepted(control_plane: ControlPlane, namespace: str) -> None:
    manifest = yaml.safe_load(ROLES_ON_KUBERNETES)
    created = create(control_plane, namespace, manifest)
    pods = created["spec"]["podTemplate"]["worker"]["spec"]["containers"]
    assert pods == [{"name": "worker", "env": [{"name": "A", "value": "b"}]}], (
        "Kubernetes' own fields are kept as given"
    )
    filled = yaml.safe_dump({**manifest, "spec": created["spec"]})
    assert parse_manifest(filled, "m.yaml").spec == parse_manifest(ROLES_ON_KUBERNETES, "m.yaml").spec


@pytest.mark.parametrize(("fields", "field", "words"), BAD_MANIFESTS, ids=lambda value: str(value)[:60])
def test_bad_manifests_are_refused_alike(
    control_plane: ControlPlane, namespace: str, fields: dict[str, Any], field: str, words: str
) -> None:
    manifest = with_fields(MINIMAL_ON_KUBERNETES, fields)
    assert field in local_problems(manifest)
    message = refusal(control_plane, namespace, manifest)
    assert field.split("[")[0] in message, message
    assert words in message, message


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spec=specs())
def test_what_is_allowed_here_is_allowed_there(control_plane: ControlPlane, namespace: str, spec: Any) -> None:
    """The API server refuses nothing that `shoal validate --kubernetes` takes, as it is made up or once it is right."""
    right = {**manifest_of(without_contradictions(spec).spec)}
    create(control_plane, namespace, right, dry_run=True)
    made_up = manifest_of(spec)
    if not local_problems(made_up):
        create(control_plane, namespace, made_up, dry_run=True)


def test_kubectl_tells_the_story_in_one_line(control_plane: ControlPlane, namespace: str) -> None:
    manifest = yaml.safe_load(MINIMAL_ON_KUBERNETES)
    name = manifest["metadata"]["name"]
    create(control_plane, namespace, manifest)
    status = {"status": {"phase": "Degraded", "workersReady": "1/2", "message": "1 of 2 workers ready"}}
    path = f"/apis/shoal.dev/v1alpha1/namespaces/{namespace}/inferenceservices/{name}/status"
    control_plane.request("PATCH", path, json.dumps(status).encode(), "application/merge-patch+json")
    head, line = control_plane.kubectl("get", "isvc", "-n", namespace).splitlines()
    assert head.split() == ["NAME", "MODEL", "PHASE", "WORKERS", "ENDPOINT", "MESSAGE", "AGE"]
    assert line.split()[:4] == [name, "smol", "Degraded", "1/2"]
    assert "1 of 2 workers ready" in line
    assert "number of tokens" not in control_plane.kubectl("explain", "isvc.spec.workers")
    assert "Engines, each with its own copy" in control_plane.kubectl("explain", "isvc.spec.workers.replicas")


def test_replicas_scale(control_plane: ControlPlane, namespace: str) -> None:
    manifest = yaml.safe_load(MINIMAL_ON_KUBERNETES)
    name = manifest["metadata"]["name"]
    create(control_plane, namespace, manifest)
    control_plane.kubectl("scale", "isvc", name, "-n", namespace, "--replicas=3")
    path = f"/apis/shoal.dev/v1alpha1/namespaces/{namespace}/inferenceservices/{name}"
    assert control_plane.request("GET", path)["spec"]["workers"]["replicas"] == 3
    with pytest.raises(subprocess.CalledProcessError) as caught:
        control_plane.kubectl("scale", "isvc", name, "-n", namespace, "--replicas=65")
    assert "spec.workers.replicas" in caught.value.stderr


def test_roles_scale_together_by_their_ratio(control_plane: ControlPlane, namespace: str) -> None:
    manifest = yaml.safe_load(ROLES_ON_KUBERNETES)
    create(control_plane, namespace, manifest)
    control_plane.kubectl("scale", "isvc", "roles", "-n", namespace, "--replicas=12")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        control_plane.kubectl("scale", "isvc", "roles", "-n", namespace, "--replicas=1")
    assert "cannot be divided between two roles; give at least 2" in caught.value.stderr
    apart = with_fields(MINIMAL_ON_KUBERNETES, {"spec.prefill": {}, "spec.decode": {"replicas": 3}})
    create(control_plane, namespace, apart)
    with pytest.raises(subprocess.CalledProcessError) as caught:
        control_plane.kubectl("scale", "isvc", "smol", "-n", namespace, "--replicas=2")
    assert "give their replicas, or spec.ratio, which divides it" in caught.value.stderr


def test_status_is_the_operators(control_plane: ControlPlane, namespace: str) -> None:
    manifest = yaml.safe_load(MINIMAL_ON_KUBERNETES)
    created = create(control_plane, namespace, {**manifest, "status": {"phase": "Ready"}})
    assert "status" not in created
