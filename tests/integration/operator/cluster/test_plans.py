"""The real API server takes every object that the planner makes, pods under the "restricted" security standard too."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, given, settings

from shoal.operator.api import InferenceService, find_contradictions, parse_manifest
from shoal.operator.api.kubernetes_rules import find_kubernetes_contradictions
from shoal.operator.planner.kubernetes import KINDS, Manifest, Owner, Platform, plan
from shoal.operator.reconcile.api_client import collection_path
from support.control_plane.cluster import ControlPlane
from support.manifests import EVERYTHING_ON_KUBERNETES, MINIMAL_ON_KUBERNETES, specs

pytestmark = pytest.mark.cluster
SERVICES = {
    "minimal": parse_manifest(MINIMAL_ON_KUBERNETES, "minimal"),
    "everything": parse_manifest(EVERYTHING_ON_KUBERNETES, "everything"),
}
_PATHS = {kind.kind: kind for kind in KINDS}


def try_all(plane: ControlPlane, namespace: str, service: InferenceService) -> None:
    """Dry-runs each object, and a pod of each template: the security standard is for pods alone."""
    for found in _with_pods(plan(service, Platform(), Owner(namespace=namespace))):
        kind = _PATHS.get(found["kind"])
        path = f"/api/v1/namespaces/{namespace}/pods" if kind is None else collection_path(kind, namespace)
        query = "dryRun=All&fieldValidation=Strict"
        plane.request("POST", f"{path}?{query}", json.dumps(found).encode())


def _with_pods(objects: tuple[Manifest, ...]) -> Iterator[dict[str, Any]]:
    for found in objects:
        yield found
        if "template" in found.get("spec", {}):
            pod = json.loads(json.dumps(found["spec"]["template"]))
            pod["metadata"]["name"] = found["metadata"]["name"]
            pod["spec"]["serviceAccountName"] = "default"  # its own was only tried
            yield {"apiVersion": "v1", "kind": "Pod", **pod}


@pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
def test_plans_are_accepted(control_plane: ControlPlane, namespace: str, service: InferenceService) -> None:
    try_all(control_plane, namespace, service)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spec=specs())
def test_whatever_is_planned_is_accepted(control_plane: ControlPlane, namespace: str, spec: Any) -> None:
    try_all(control_plane, namespace, without_contradictions(spec))


def without_contradictions(spec: Any) -> InferenceService:
    """Takes away what the rules refuse, until they refuse nothing."""
    manifest = {**yaml.safe_load(MINIMAL_ON_KUBERNETES), "spec": msgspec.to_builtins(spec)}
    while True:
        service = msgspec.convert(manifest, InferenceService)
        problems = find_contradictions(service) + find_kubernetes_contradictions(service)
        if not problems:
            return service
        *sections, field = re.sub(r"\[.*", "", problems[0].path).split(".")
        section = manifest
        for name in sections:
            section = section[name]
        if problems[0].path == "spec.model.uri":
            section[field] = "hf://org/model"
        else:
            section.pop(field)
