"""The real API server takes every object that the planner makes, pods under the "restricted" security standard too."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings

from shoal.operator.api import InferenceService, load_manifest, parse_manifest
from shoal.operator.planner.kubernetes import ALL_KINDS, OPTIONAL_APIS, Manifest, Owner, Platform, plan
from shoal.operator.reconcile.api_client import collection_path
from support.control_plane.cluster import ControlPlane
from support.manifests import EVERYTHING_ON_KUBERNETES, MINIMAL_ON_KUBERNETES, ROLES_ON_KUBERNETES, specs, with_fields
from support.valid_specs import without_contradictions

pytestmark = pytest.mark.cluster
KV_STORE = {"cpu": "1Gi", "ssd": "1Gi", "peersSecret": {"name": "kv"}}
VARIANTS: dict[str, dict[str, Any]] = {
    "minimal": {},
    "kv-of-pods": {"spec.kvCache": {**KV_STORE, "ssdVolume": {"storageClassName": "fast"}}},
    "kv-of-pods-on-one-volume": {"spec.kvCache": {**KV_STORE, "ssdVolume": {"claim": "shared"}}},
    "kv-of-nodes": {"spec.kvCache": {**KV_STORE, "placement": "Node", "ssdVolume": {"hostPath": "/mnt/nvme"}}},
    "adapters": {
        "spec.adapters": [{"name": "sql", "uri": "hf://org/sql"}, {"name": "chat", "uri": "/models/chat"}],
        "spec.model.cacheClaim": "models",
        "spec.podTemplate": {"loraRegistry": {"spec": {"nodeSelector": {"pool": "edge"}}}},
    },
    "hpa": {"spec.autoscaling": {"maxReplicas": 4}, "spec.slo": {"ttftMilliseconds": 500}},
}
SERVICES = {
    **{
        name: parse_manifest(yaml.safe_dump(with_fields(MINIMAL_ON_KUBERNETES, fields)), name)
        for name, fields in VARIANTS.items()
    },
    "everything": parse_manifest(EVERYTHING_ON_KUBERNETES, "everything"),
    "roles": parse_manifest(ROLES_ON_KUBERNETES, "roles"),
    **{
        f"example-{path.stem}": load_manifest(path)
        for path in sorted((Path(__file__).parents[4] / "examples" / "kubernetes").glob("*.yaml"))
    },
}
PLATFORM = Platform(apis=OPTIONAL_APIS)
_PATHS = {kind.kind: kind for kind in ALL_KINDS}


def try_all(plane: ControlPlane, namespace: str, service: InferenceService) -> None:
    """Dry-runs each object, and a pod of each template: the security standard is for pods alone."""
    if service.spec.kv_cache.placement == "Node":  # needs folders of nodes
        namespace = "default"
    for found in _with_pods(plan(service, PLATFORM, Owner(namespace=namespace))):
        kind = _PATHS.get(found["kind"])
        path = f"/api/v1/namespaces/{namespace}/pods" if kind is None else collection_path(kind, namespace)
        query = "dryRun=All&fieldValidation=Strict"
        try:
            plane.request("POST", f"{path}?{query}", json.dumps(found).encode())
        except urllib.error.HTTPError as error:
            raise AssertionError(
                f"{found['kind']} {found['metadata']['name']}: {json.load(error)['message']}"
            ) from None


def _with_pods(objects: tuple[Manifest, ...]) -> Iterator[dict[str, Any]]:
    for found in objects:
        yield found
        spec = found.get("spec", {})
        group = spec.get("leaderWorkerTemplate", {})
        templates = (spec.get("template"), group.get("leaderTemplate"), group.get("workerTemplate"))
        for template in filter(None, templates):
            pod = json.loads(json.dumps(template))
            pod["metadata"]["name"] = found["metadata"]["name"]
            pod["spec"]["serviceAccountName"] = "default"  # its own was only tried
            yield {"apiVersion": "v1", "kind": "Pod", **pod}


@pytest.fixture(autouse=True)
def priority(control_plane: ControlPlane) -> None:
    """A class that pods of manifests may ask for."""
    found = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "high"}, "value": 1}
    control_plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(found))


@pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
@pytest.mark.usefixtures("leader_worker_sets")
def test_plans_are_accepted(control_plane: ControlPlane, namespace: str, service: InferenceService) -> None:
    try_all(control_plane, namespace, service)


# Without shrinking: each try is a minute's worth of calls.
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(spec=specs())
def test_whatever_is_planned_is_accepted(control_plane: ControlPlane, namespace: str, spec: Any) -> None:
    try_all(control_plane, namespace, without_contradictions(spec))
