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
from shoal.kv_store.config import KvStoreConfig
from shoal.lora_registry.config import LoraRegistryConfig
from shoal.lora_registry.settings_file import read_adapters
from shoal.model_worker.config import WorkerConfig
from shoal.operator.api import InferenceService, find_contradictions, load_manifest, parse_manifest
from shoal.operator.api.kubernetes_rules import find_kubernetes_contradictions
from shoal.operator.api.spec import Model
from shoal.operator.envoy import Endpoint
from shoal.operator.planner.kubernetes import (
    ALL_KINDS,
    OPTIONAL_APIS,
    OWNER_LABEL,
    Manifest,
    Observed,
    Owner,
    Platform,
    plan,
)
from shoal.operator.planner.model_uri import base_config
from shoal.tokenizer.config import TokenizerConfig
from support.manifests import EVERYTHING_ON_KUBERNETES, MINIMAL_ON_KUBERNETES, ROLES_ON_KUBERNETES, with_fields

EXAMPLES = Path(__file__).parents[3] / "examples"


def made(manifest: dict[str, Any]) -> InferenceService:
    return parse_manifest(yaml.safe_dump(manifest), "made")


GOLDEN = Path(__file__).parent / "golden" / "kubernetes"
OWNER = Owner(namespace="models", uid="0d6ef4bd-5f1c-4a76-a8a0-3f2f6d0f0e3c")
CONFIGS: dict[str, type[Any]] = {
    "shoal.kv_store.main": KvStoreConfig,
    "shoal.gateway.main": GatewayConfig,
    "shoal.lora_registry.main": LoraRegistryConfig,
    "shoal.model_worker.main": WorkerConfig,
    "shoal.tokenizer.main": TokenizerConfig,
}
PLATFORM = Platform(apis=OPTIONAL_APIS)
KV_ON_NODES = {
    "metadata.name": "kv-on-nodes",
    "spec.workers": {"device": "cuda", "replicas": 4},
    "spec.kvCache": {
        "cpu": "64Gi",
        "ssd": "1Ti",
        "placement": "Node",
        "peersSecret": {"name": "kv"},
        "ssdVolume": {"hostPath": "/mnt/nvme/"},
    },
}
ADAPTERS: dict[str, Any] = {
    "metadata.name": "adapters",
    "spec.model": {"name": "smol", "uri": "hf://org/smol", "revision": "v2", "cacheClaim": "models"},
    "spec.adapters": [
        {"name": "sql", "uri": "hf://org/sql@v1", "sha256": "0" * 64, "rank": 16},
        {"name": "chat", "uri": "https://models.example.com/chat"},
        {"name": "legal", "uri": "/models/legal"},
    ],
    "spec.podTemplate": {"loraRegistry": {"spec": {"nodeSelector": {"pool": "edge"}}}},
}
SERVICES = {
    **{path.stem: load_manifest(path) for path in sorted(EXAMPLES.glob("*.yaml"))},
    "everything": parse_manifest(EVERYTHING_ON_KUBERNETES, "everything"),
    "roles": made(with_fields(ROLES_ON_KUBERNETES, {"spec.kvCache.peersSecret": {"name": "kv"}})),
    "adapters": made(with_fields(MINIMAL_ON_KUBERNETES, ADAPTERS)),
    "kv-on-nodes": made(with_fields(MINIMAL_ON_KUBERNETES, KV_ON_NODES)),
}
every_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)


def planned(service: InferenceService) -> dict[tuple[str, str], Manifest]:
    return {(found["kind"], found["metadata"]["name"]): found for found in plan(service, PLATFORM, OWNER)}


def templates(service: InferenceService) -> list[dict[str, Any]]:
    """Of all pods."""
    specs = [found.get("spec", {}) for found in plan(service, PLATFORM, OWNER)]
    groups = [spec["leaderWorkerTemplate"] for spec in specs if "leaderWorkerTemplate" in spec]
    several = [group[name] for group in groups for name in ("leaderTemplate", "workerTemplate")]
    return [*(spec["template"] for spec in specs if "template" in spec), *several]


def pod_specs(service: InferenceService) -> list[dict[str, Any]]:
    return [template["spec"] for template in templates(service)]


def containers_of(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod["containers"], *pod.get("initContainers", [])]


def containers(service: InferenceService) -> dict[str, dict[str, Any]]:
    return {found["name"]: found for pod in pod_specs(service) for found in containers_of(pod)}


@pytest.mark.parametrize("name", SERVICES)
def test_plan_is_the_golden_one(name: str) -> None:
    rendered = yaml.safe_dump_all(plan(SERVICES[name], PLATFORM, OWNER), sort_keys=False, width=120)
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
    objects = plan(service, PLATFORM, OWNER)
    assert objects == plan(service, PLATFORM, OWNER)
    names = [(found["kind"], found["metadata"]["name"]) for found in objects]
    assert len(set(names)) == len(names)
    order = [kind.kind for kind in ALL_KINDS]
    assert [order.index(kind) for kind, _ in names] == sorted(order.index(kind) for kind, _ in names)
    for found in objects:
        metadata = found["metadata"]
        assert metadata["namespace"] == OWNER.namespace
        assert metadata["labels"][OWNER_LABEL] == service.metadata.name
        assert [owner["uid"] for owner in metadata["ownerReferences"]] == [OWNER.uid]


@every_service
def test_everything_that_a_pod_refers_to_is_planned(service: InferenceService) -> None:
    objects = planned(service)
    for pod in pod_specs(service):
        assert ("ServiceAccount", pod["serviceAccountName"]) in objects
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for volume in volumes.values():
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in objects
        assert {mount["name"] for found in containers_of(pod) for mount in found["volumeMounts"]} == set(volumes)
        ports = [port for found in containers_of(pod) for port in found["ports"]]
        assert len({port["name"] for port in ports}) == len({port["containerPort"] for port in ports}) == len(ports)


@every_service
def test_services_lead_to_ports_that_pods_have(service: InferenceService) -> None:
    objects = planned(service)
    for found in (found for (kind, _), found in objects.items() if kind == "Service"):
        wanted = found["spec"]["selector"].items()
        chosen = [each for each in templates(service) if wanted <= each["metadata"]["labels"].items()]
        assert len(chosen) == 1
        open_ports = {port["containerPort"] for each in containers_of(chosen[0]["spec"]) for port in each["ports"]}
        assert {port["targetPort"] for port in found["spec"]["ports"]} <= open_ports
        podlabels = chosen[0]["metadata"]["labels"].items()
        policies = [
            policy["spec"]["ingress"]
            for (kind, _), policy in objects.items()
            if kind == "NetworkPolicy" and policy["spec"]["podSelector"]["matchLabels"].items() <= podlabels
        ]
        allowed = {port["port"] for rules in policies for rule in rules for port in rule.get("ports", [])}
        assert {port["targetPort"] for port in found["spec"]["ports"]} <= allowed


@every_service
def test_services_take_their_flags(service: InferenceService) -> None:
    found = [each for pod in pod_specs(service) for each in containers_of(pod) if each["command"][-1] in CONFIGS]
    left_out = {
        "shoal.kv_store.main": service.spec.kv_cache.cpu is None,
        "shoal.lora_registry.main": not service.spec.adapters,
    }
    assert {each["command"][2] for each in found} == {name for name in CONFIGS if not left_out.get(name)}
    for each in found:
        settings = load(CONFIGS[each["command"][2]], program=each["name"], argv=each["args"], environ={})
        ports = {port["name"].removeprefix("kv-"): port["containerPort"] for port in each["ports"]}
        assert (settings.host, settings.port, settings.metrics_port) == ("0.0.0.0", ports["grpc"], ports["metrics"])


def test_a_registry_has_the_adapters_of_the_spec(tmp_path: Path) -> None:
    service = SERVICES["adapters"]
    config = planned(service)["ConfigMap", "adapters-lora-registry"]
    path = tmp_path / "adapters.json"
    path.write_text(config["data"]["adapters.json"])
    found = {wanted.name: (wanted.uri, wanted.sha256, wanted.rank) for wanted in read_adapters(path)}
    assert found == {each.name: (each.uri, each.sha256 or "", each.rank or 0) for each in service.spec.adapters}
    args = containers(service)["lora-registry"]["args"]
    settings = load(LoraRegistryConfig, program="lora-registry", argv=args, environ={})
    assert (settings.read_only, settings.source_cache) == (True, "/models")
    assert settings.base_config == "hf://org/smol@v2/config.json"
    assert settings.max_bytes + settings.max_publishes * settings.max_adapter_bytes < 16 << 30, "the volume's size"


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"uri": "hf://org/smol"}, "hf://org/smol/config.json"),
        ({"uri": "/models/smol/"}, "/models/smol/config.json"),
        ({"uri": "hf://org/smol/smol.gguf"}, None),
        ({"uri": "hf://org/smol", "load_format": "gguf"}, None),
        ({"uri": "pypi://a==1/smol.gguf"}, None),
    ],
)
def test_adapters_are_compared_with_models_that_have_a_config(model: dict[str, Any], expected: str | None) -> None:
    assert base_config(Model(name="smol", **model)) == expected


@every_service
def test_pods_have_time_to_drain(service: InferenceService) -> None:
    for pod in pod_specs(service):
        drains = {
            found["name"]: float(argument.partition("=")[2])
            for found in containers_of(pod)
            for argument in found["args"]
            if argument.startswith("--drain-timeout-s=")
        }
        # Sidecars end after the others.
        leave_s = max(
            each.get("lifecycle", {"preStop": {"sleep": {"seconds": 0}}})["preStop"]["sleep"]["seconds"]
            for each in pod["containers"]
        )
        assert pod["terminationGracePeriodSeconds"] > sum(drains.values()) + leave_s


@every_service
def test_pods_have_the_least_rights(service: InferenceService) -> None:
    for pod in pod_specs(service):
        assert not pod["automountServiceAccountToken"]
        for found in containers_of(pod):
            rights = found["securityContext"]
            assert rights["readOnlyRootFilesystem"]
            assert not rights["allowPrivilegeEscalation"]
            assert rights["capabilities"]["drop"] == ["ALL"]
            is_root = rights.get("runAsUser") == 0
            assert is_root == (found["name"] == "own-folders")
            assert rights["capabilities"].get("add", []) == (["CHOWN"] if is_root else [])
        on_node = [volume for volume in pod["volumes"] if "hostPath" in volume]
        assert bool(on_node) == (service.spec.kv_cache.placement == "Node" and "kv-socket" in str(pod["volumes"]))
        # Services of one name in two namespaces are two services.
        own = f"{OWNER.namespace}/{service.metadata.name}"
        assert all(volume["hostPath"]["path"].endswith(f"/{own}") for volume in on_node)


def test_workers_reach_the_store_of_their_pod_or_node() -> None:
    for name, host in (("kv-store", "127.0.0.1"), ("kv-on-nodes", "kv-on-nodes-kv-store.models.svc.cluster.local")):
        worker, store = containers(SERVICES[name])["worker"], containers(SERVICES[name])["kv-store"]
        assert f"--kv-store-address={host}:50054" in worker["args"]
        assert "--kv-store-socket=/run/shoal-kv/kv.sock" in worker["args"]
        assert "--socket-path=/run/shoal-kv/kv.sock" in store["args"]
        mounts = [{mount["name"]: mount["mountPath"] for mount in each["volumeMounts"]} for each in (worker, store)]
        assert mounts[0]["kv-socket"] == mounts[1]["kv-socket"] == "/run/shoal-kv"
    service = planned(SERVICES["kv-on-nodes"])["Service", "kv-on-nodes-kv-store"]
    assert service["spec"]["internalTrafficPolicy"] == "Local"


def test_stores_of_pods_know_each_other_by_name() -> None:
    text = (EXAMPLES / "kv-store.yaml").read_text()
    service = made(with_fields(text, {"spec.kvCache.peersSecret": {"name": "kv"}}))
    peers = planned(service)["ConfigMap", "kv-store-kv-store"]["data"]["peers"].split()
    hosts = [f"kv-store-worker-{index}.kv-store-worker.models.svc.cluster.local:50064" for index in range(2)]
    assert peers == hosts
    args = containers(service)["kv-store"]["args"]
    assert "--peer-address=$(POD_NAME).kv-store-worker.models.svc.cluster.local:50064" in args
    # More of them is no reason to replace any.
    more = made(with_fields(text, {"spec.kvCache.peersSecret": {"name": "kv"}, "spec.workers.replicas": 3}))
    before, after = (planned(each)["StatefulSet", "kv-store-worker"] for each in (service, more))
    assert before["spec"]["template"]["spec"]["initContainers"] == after["spec"]["template"]["spec"]["initContainers"]


def test_stores_of_nodes_know_each_other_by_address() -> None:
    observed = Observed(kv_store_addresses=("10.0.0.2", "10.0.0.3", "fd00::1"))
    objects = plan(SERVICES["kv-on-nodes"], PLATFORM, OWNER, observed)
    (config,) = (
        found
        for found in objects
        if (found["kind"], found["metadata"]["name"]) == ("ConfigMap", "kv-on-nodes-kv-store")
    )
    assert config["data"]["peers"].split() == ["10.0.0.2:50064", "10.0.0.3:50064"]


def test_stores_are_where_workers_are_sent() -> None:
    chosen = {"spec": {"nodeSelector": {"pool": "a"}, "tolerations": [{"key": "dedicated", "operator": "Exists"}]}}
    service = made(with_fields(MINIMAL_ON_KUBERNETES, {**KV_ON_NODES, "spec.podTemplate": {"worker": chosen}}))
    pod = planned(service)["DaemonSet", "kv-on-nodes-kv-store"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"pool": "a"}
    assert [each["key"] for each in pod["tolerations"]] == ["nvidia.com/gpu", "dedicated"]


def test_stores_alone_have_no_peers() -> None:
    service = SERVICES["kv-store"]
    assert ("ConfigMap", "kv-store-kv-store") not in planned(service)
    assert not any("peer" in argument for argument in containers(service)["kv-store"]["args"])


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


def test_all_pods_pull_with_the_services_secrets_and_the_operators() -> None:
    fields = {
        **KV_ON_NODES,
        "spec.imagePullSecrets": [{"name": "team"}, {"name": "registry"}],
        "spec.podTemplate": {"gateway": {"spec": {"imagePullSecrets": [{"name": "edge"}]}}},
    }
    service = made(with_fields(MINIMAL_ON_KUBERNETES, fields))
    platform = Platform(image_pull_secrets=("registry", "mirror"))
    pods = [
        found["spec"]["template"]["spec"]
        for found in plan(service, platform, OWNER)
        if "template" in found.get("spec", {})
    ]
    names = [[secret["name"] for secret in pod["imagePullSecrets"]] for pod in pods]
    everywhere = ["team", "registry", "mirror"]
    assert sorted(names) == sorted([everywhere, everywhere, everywhere, [*everywhere, "edge"]])
    assert all("imagePullSecrets" not in pod for pod in pod_specs(SERVICES["everything"]))
