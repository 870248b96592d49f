"""Plans for Kubernetes against golden files: `golden/kubernetes/<name>.yaml`.

After a wanted change, write them anew with SHOAL_UPDATE_GOLDEN=1 and read the diff.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from shoal.config import load
from shoal.gateway.config import Config as GatewayConfig
from shoal.model_worker.config import WorkerConfig
from shoal.operator.api import InferenceService, find_contradictions, load_manifest, parse_manifest
from shoal.operator.api.kubernetes_rules import find_kubernetes_contradictions
from shoal.operator.envoy import Endpoint
from shoal.operator.planner.kubernetes import KINDS, OWNER_LABEL, Manifest, Owner, Platform, plan
from shoal.tokenizer.config import TokenizerConfig
from support.manifests import EVERYTHING_ON_KUBERNETES

EXAMPLES = Path(__file__).parents[3] / "examples"
GOLDEN = Path(__file__).parent / "golden" / "kubernetes"
OWNER = Owner(namespace="models", uid="0d6ef4bd-5f1c-4a76-a8a0-3f2f6d0f0e3c")
CONFIGS: dict[str, type[Any]] = {
    "shoal.gateway.main": GatewayConfig,
    "shoal.model_worker.main": WorkerConfig,
    "shoal.tokenizer.main": TokenizerConfig,
}
SERVICES = {
    **{path.stem: load_manifest(path) for path in sorted(EXAMPLES.glob("*.yaml")) if path.stem != "kv-store"},
    "everything": parse_manifest(EVERYTHING_ON_KUBERNETES, "everything"),
}
every_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)


def planned(service: InferenceService) -> dict[tuple[str, str], Manifest]:
    return {(found["kind"], found["metadata"]["name"]): found for found in plan(service, Platform(), OWNER)}


def pod_specs(service: InferenceService) -> dict[str, dict[str, Any]]:
    workloads = [found for found in plan(service, Platform(), OWNER) if "template" in found.get("spec", {})]
    return {found["metadata"]["name"]: found["spec"]["template"]["spec"] for found in workloads}


def containers(service: InferenceService) -> dict[str, dict[str, Any]]:
    pods = pod_specs(service).values()
    return {c["name"]: c for pod in pods for c in [*pod["containers"], *pod.get("initContainers", [])]}


@pytest.mark.parametrize("name", SERVICES)
def test_plan_is_the_golden_one(name: str) -> None:
    rendered = yaml.safe_dump_all(plan(SERVICES[name], Platform(), OWNER), sort_keys=False, width=120)
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("SHOAL_UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(rendered)
    assert rendered == path.read_text()


@every_service
def test_examples_have_no_contradictions(service: InferenceService) -> None:
    assert find_contradictions(service) + find_kubernetes_contradictions(service) == []


@every_service
def test_plan_is_sound(service: InferenceService) -> None:
    objects = plan(service, Platform(), OWNER)
    assert objects == plan(service, Platform(), OWNER)
    names = [(found["kind"], found["metadata"]["name"]) for found in objects]
    assert len(set(names)) == len(names)
    order = [kind.kind for kind in KINDS]
    assert [order.index(kind) for kind, _ in names] == sorted(order.index(kind) for kind, _ in names)
    for found in objects:
        metadata = found["metadata"]
        assert metadata["namespace"] == OWNER.namespace
        assert metadata["labels"][OWNER_LABEL] == service.metadata.name
        assert [owner["uid"] for owner in metadata["ownerReferences"]] == [OWNER.uid]


@every_service
def test_everything_that_a_pod_refers_to_is_planned(service: InferenceService) -> None:
    objects = planned(service)
    for name, pod in pod_specs(service).items():
        assert ("ServiceAccount", pod["serviceAccountName"]) in objects
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for volume in volumes.values():
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in objects
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes), name
            ports = [port["name"] for port in container["ports"]]
            assert len(set(ports)) == len(ports)


@every_service
def test_services_lead_to_ports_that_pods_have(service: InferenceService) -> None:
    objects = planned(service)
    templates = [found["spec"]["template"] for found in objects.values() if "template" in found.get("spec", {})]
    for found in (found for (kind, _), found in objects.items() if kind == "Service"):
        wanted = found["spec"]["selector"].items()
        chosen = [template for template in templates if wanted <= template["metadata"]["labels"].items()]
        assert len(chosen) == 1
        pod = chosen[0]["spec"]
        open_ports = {
            port["containerPort"]
            for container in [*pod["containers"], *pod.get("initContainers", [])]
            for port in container["ports"]
        }
        assert {port["targetPort"] for port in found["spec"]["ports"]} <= open_ports
        podlabels = chosen[0]["metadata"]["labels"].items()
        policies = [
            policy["spec"]["ingress"]
            for (kind, _), policy in objects.items()
            if kind == "NetworkPolicy" and policy["spec"]["podSelector"]["matchLabels"].items() <= podlabels
        ]
        allowed = {port["port"] for rules in policies for rule in rules for port in rule["ports"]}
        assert {port["targetPort"] for port in found["spec"]["ports"]} <= allowed


@every_service
def test_services_take_their_flags(service: InferenceService) -> None:
    found = {c["command"][2]: c["args"] for c in containers(service).values() if c["command"][-1] in CONFIGS}
    assert set(found) == set(CONFIGS)
    for module, args in found.items():
        settings = load(CONFIGS[module], program=module, argv=args, environ={})
        assert (settings.host, settings.port, settings.metrics_port) == ("0.0.0.0", 50051, 9090)


@every_service
def test_pods_have_time_to_drain(service: InferenceService) -> None:
    for pod in pod_specs(service).values():
        drain_s = max(
            float(argument.partition("=")[2])
            for container in pod["containers"]
            for argument in container["args"]
            if argument.startswith("--drain-timeout-s=")
        )
        leave_s = max(c["lifecycle"]["preStop"]["sleep"]["seconds"] for c in pod["containers"])
        assert pod["terminationGracePeriodSeconds"] > drain_s + leave_s


def test_each_worker_on_a_gpu_gets_one() -> None:
    worker = containers(SERVICES["qwen3-8b-gpu"])["worker"]
    assert worker["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    assert "worker" in containers(SERVICES["smollm2-135m"])
    assert "limits" not in containers(SERVICES["smollm2-135m"])["worker"]["resources"]


@pytest.mark.parametrize(
    ("asked", "threads", "cpu"),
    [("{}", 4, "4"), ("{threads: 3}", 3, "3"), ("{resources: {cpu: 2500m}}", 2, "2500m"),
     ("{resources: {cpu: 200m}}", 1, "200m"), ("{threads: 2, resources: {cpu: 3}}", 2, "3")],
)  # fmt: skip
def test_threads_follow_the_cores(asked: str, threads: int, cpu: str) -> None:
    text = (
        (EXAMPLES / "smollm2-135m.yaml").read_text().replace("workers:\n    replicas: 1\n", f"workers: {asked}\n  x:\n")
    )
    head, _, rest = text.partition("  x:\n")
    service = parse_manifest(head + rest[rest.index("  kvCache:") :], "x")
    worker = containers(service)["worker"]
    assert f"--threads={threads}" in worker["args"]
    assert {"name": "OMP_NUM_THREADS", "value": str(threads)} in worker["env"]
    assert worker["resources"]["requests"]["cpu"] == cpu


def test_only_what_envoy_reads_once_makes_other_gateways() -> None:
    def mark(text: str, platform: Platform) -> str:
        objects = plan(parse_manifest(text, "x"), platform, OWNER)
        gateway = next(
            found for found in objects if found["kind"] == "Deployment" and "gateway" in found["metadata"]["name"]
        )
        return str(gateway["spec"]["template"]["metadata"]["annotations"]["shoal.dev/envoy-config"])

    first = mark(EVERYTHING_ON_KUBERNETES, Platform())
    assert mark(EVERYTHING_ON_KUBERNETES.replace("replicas: 3", "replicas: 5"), Platform()) == first
    assert mark(EVERYTHING_ON_KUBERNETES, Platform(control_plane=Endpoint("elsewhere", 1))) != first


def test_without_an_owner_there_is_nothing_to_refer_to() -> None:
    for found in plan(SERVICES["smollm2-135m"], Platform(), Owner(namespace="default")):
        assert "ownerReferences" not in found["metadata"]
