"""What is inside of pod templates: the table of fields, and names of containers."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from shoal.operator.api import ManifestError, parse_manifest
from shoal.operator.api.advice import advise
from shoal.operator.api.pod_rules import planned_containers
from shoal.operator.planner.kubernetes import OPTIONAL_APIS, Manifest, Owner, Platform, plan
from support.manifests import EVERYTHING_ON_KUBERNETES, MINIMAL_ON_KUBERNETES, with_fields

ROOT = Path(__file__).parents[4]
STORE_IN_PODS = {"spec.kvCache": {"cpu": "1Gi"}}
STORE_ON_NODES = {"spec.kvCache": {"cpu": "1Gi", "placement": "Node"}}
ADAPTER = {"spec.adapters": [{"name": "sql", "uri": "hf://org/sql"}]}
FIELDS = {"kv-store": "kvStore", "lora-registry": "loraRegistry", "prefill": "worker", "decode": "worker"}


def planned(manifest: dict[str, Any]) -> list[Manifest]:
    service = parse_manifest(yaml.safe_dump(manifest), "m.yaml")
    return list(plan(service, Platform(apis=OPTIONAL_APIS), Owner(namespace="models")))


def pods_of(objects: list[Manifest]) -> list[tuple[str, Manifest]]:
    """Component and pod template, of workers of several pods too."""
    pods = []
    for found in objects:
        spec = found.get("spec", {})
        templates = [spec.get("template"), *spec.get("leaderWorkerTemplate", {}).values()]
        for template in templates:
            if isinstance(template, dict) and "spec" in template:
                pods.append((template["metadata"]["labels"]["app.kubernetes.io/component"], template["spec"]))
    return pods


@pytest.mark.parametrize(
    "fields", [{}, STORE_IN_PODS, STORE_ON_NODES, ADAPTER, None], ids=lambda value: str(value)[:40]
)
def test_names_are_those_of_the_plan_which_keeps_to_the_rules_itself(fields: dict[str, Any] | None) -> None:
    manifest = yaml.safe_load(EVERYTHING_ON_KUBERNETES)
    if fields is not None:
        manifest = with_fields(MINIMAL_ON_KUBERNETES, fields)
    service = parse_manifest(yaml.safe_dump(manifest), "m.yaml")
    for component, pod in pods_of(planned(manifest)):
        field = FIELDS.get(component, component)
        names = {of: tuple(each["name"] for each in pod.get(of, ())) for of in ("containers", "initContainers")}
        assert names == planned_containers(service.spec)[field]
        whole = with_fields(yaml.safe_dump(manifest), {"spec.podTemplate": {field: {"spec": pod}}})
        parse_manifest(yaml.safe_dump(whole), "m.yaml")


def test_the_table_is_that_of_the_client() -> None:
    """One of a later release may have more."""
    tool = runpy.run_path(str(ROOT / "tools" / "generate_pod_fields.py"))
    known, there = json.loads(tool["TABLE"].read_text())["kinds"], tool["fields_of_pods"]()
    assert known.keys() <= there.keys()
    assert [kind for kind, fields in known.items() if not fields.items() <= there[kind].items()] == []


def test_null_and_directives_are_for_merging() -> None:
    given = {
        "nodeSelector": None,
        "initContainers": [{"name": "follower", "$patch": "delete"}],
        "containers": [{"name": "gateway", "$patch": "replace", "image": "mine", "resources": None}],
    }
    manifest = with_fields(MINIMAL_ON_KUBERNETES, {"spec.podTemplate": {"gateway": {"spec": given}}})
    assert advise(parse_manifest(yaml.safe_dump(manifest), "m.yaml")) == []


def test_a_container_beside_the_planned_ones_is_told() -> None:
    given = {
        "containers": [{"name": "wroker", "image": "mine"}],
        "initContainers": [{"name": "kv-store", "image": "x"}],
    }
    manifest = with_fields(MINIMAL_ON_KUBERNETES, {"spec.podTemplate": {"worker": {"spec": given}}})
    told = list(map(str, advise(parse_manifest(yaml.safe_dump(manifest), "m.yaml"))))
    path = "spec.podTemplate.worker.spec"
    words = "is none of the planned ones (containers: worker) and becomes a container of its own, beside them"
    assert told == [
        f"{path}.containers[0].name: 'wroker' {words}",
        f"{path}.initContainers[0].name: 'kv-store' {words}",
    ]


def test_every_problem_is_told_with_its_line() -> None:
    text = (
        MINIMAL_ON_KUBERNETES
        + """
  podTemplate:
    worker:
      spec:
        nodeselector: {a: b}
        containers:
        - name: worker
          resources: {limits: {nvidia.com/gpu: 1.0.0}}
"""
    )
    with pytest.raises(ManifestError) as caught:
        parse_manifest(text, "m.yaml")
    first, second = caught.value.problems
    assert (second.line or 0) - (first.line or 0) == 3
    assert second.path.endswith("containers[0].resources.limits.nvidia.com/gpu")
