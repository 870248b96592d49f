"""The engines. A worker that is one pod is one of a StatefulSet, so that it keeps its name; one that is several pods is
a group of a LeaderWorkerSet, whose first pod answers for all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from shoal.operator.api import InferenceService, parse_quantity, worker_sizes
from shoal.operator.api.kubernetes_rules import MODELS_DIR
from shoal.operator.api.quantity import parse_cpu
from shoal.operator.api.roles import WorkerRole, worker_roles
from shoal.operator.api.spec import Rollout
from shoal.operator.planner import commands
from shoal.operator.planner.kubernetes import kv_stores, lora_registries
from shoal.operator.planner.kubernetes.groups import PlannedGroup, endpoint_of
from shoal.operator.planner.kubernetes.names import ENDPOINT_LABEL, GROUP_LABEL, manifest, selector
from shoal.operator.planner.kubernetes.overrides import merge, overrides_for
from shoal.operator.planner.kubernetes.platform import Manifest, Owner, Platform
from shoal.operator.planner.kubernetes.pods import (
    GRPC_PORT,
    METRICS_PORT,
    Pod,
    model_environment,
    model_volume,
    pod_template,
    service_container,
)
from shoal.operator.planner.plan import Observed

COMPONENT: Final = "worker"
"""Of the Service that requests go through, whatever the roles."""
LWS_API: Final = "leaderworkerset.x-k8s.io/v1"
_GROUP_KEY: Final = "leaderworkerset.sigs.k8s.io/group-key"
_START_DEADLINE_S: Final = 3600.0  # fetches and reads the weights
_GPU: Final = "nvidia.com/gpu"
_GPU_PRODUCT: Final = "nvidia.com/gpu.product"
_GPU_NODE_LABELS: Final = (
    "nvidia.com/gpu.present",
    "cloud.google.com/gke-accelerator",
    "eks.amazonaws.com/instance-gpu-name",
    "kubernetes.azure.com/accelerator",
)
_CHOICES: Final[Sequence[str]] = ("nodeSelector", "tolerations")
"""How manifests choose nodes for workers, which holds for what is to be there too."""
_ON_GPU_NODES: Final = [{"key": _GPU, "operator": "Exists", "effect": "NoSchedule"}]
_CORES: Final = {"cpu": 4, "cuda": 4, "simulated": 1}


def workers(
    service: InferenceService, observed: Observed, platform: Platform, owner: Owner, group: PlannedGroup
) -> Manifest:
    """The group's workload."""
    pod = _pod(service, observed, platform, owner, group)
    labelled = {GROUP_LABEL: group.hash}
    if group.kind == "StatefulSet":
        answering = {ENDPOINT_LABEL: endpoint_of(group.role)}
        spec = {
            "replicas": group.replicas,
            "serviceName": group.governing,
            # Workers do not wait for each other.
            "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "RollingUpdate"},
            "selector": {"matchLabels": {**selector(service.metadata.name, group.role.component), **labelled}},
            "template": pod_template(service, _labelled(pod, {**labelled, **answering})),
        }
        version = "apps/v1"
    else:
        spec, version = _several_pods(service, group, pod), LWS_API
    component = group.role.component
    return manifest(service, owner, version, group.kind, component, name=group.name, labelled=labelled, spec=spec)


def _several_pods(service: InferenceService, group: PlannedGroup, pod: Pod) -> dict[str, Any]:
    labelled = {GROUP_LABEL: group.hash}
    # Ranks of a worker belong side by side, not spread.
    pod = replace(pod, is_spread=False, fields={**(pod.fields or {}), "affinity": _side_by_side(service, group.role)})
    leader = pod_template(service, _labelled(pod, {**labelled, ENDPOINT_LABEL: endpoint_of(group.role)}))
    # Only the leader answers calls: what becomes of the others, it tells.
    probes = ("startupProbe", "readinessProbe", "livenessProbe")
    silent = [{name: value for name, value in each.items() if name not in probes} for each in pod.containers]
    follower = pod_template(service, _labelled(replace(pod, containers=silent), labelled))
    return {
        "replicas": group.replicas,
        "startupPolicy": "LeaderCreated",
        "rolloutStrategy": {
            "type": "RollingUpdate",
            "rollingUpdateConfiguration": {**_room(service.spec.rollout), "partition": 0},
        },
        # Each worker has a Service of its own for its pods' names: `NAME-worker` is for those that answer.
        "networkConfig": {"subdomainPolicy": "UniquePerReplica"},
        "leaderWorkerTemplate": {
            "size": group.role.num_pods,
            # Ranks that lost one of them cannot go on, nor let it join again.
            "restartPolicy": "RecreateGroupOnPodRestart",
            "leaderTemplate": leader,
            "workerTemplate": follower,
        },
    }


def _room(rollout: Rollout) -> dict[str, int]:
    """For the workers that take over."""
    if rollout.strategy == "Recreate":
        return {"maxUnavailable": 1, "maxSurge": 0}
    return {"maxUnavailable": 0, "maxSurge": rollout.max_surge}


def _side_by_side(service: InferenceService, role: WorkerRole) -> dict[str, Any]:
    """Pods of one worker in one zone, if that goes."""
    term = {
        "topologyKey": "topology.kubernetes.io/zone",
        "labelSelector": {"matchLabels": selector(service.metadata.name, role.component)},
        "matchLabelKeys": [_GROUP_KEY],
    }
    return {
        "podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}
    }


def _labelled(pod: Pod, more: Mapping[str, str]) -> Pod:
    return replace(pod, labels={**pod.labels, **more})


def _pod(service: InferenceService, observed: Observed, platform: Platform, owner: Owner, group: PlannedGroup) -> Pod:
    spec, role = service.spec, group.role
    threads = _threads(service, role)
    drain_timeout_s = float(spec.rollout.drain_seconds)
    argv = commands.worker(
        service,
        observed,
        "0.0.0.0",  # noqa: S104  # a pod's own address; NetworkPolicies say who may come
        {"grpc": GRPC_PORT, "metrics": METRICS_PORT},
        threads=threads,
        drain_timeout_s=drain_timeout_s,
        kv_store=kv_stores.place_for_workers(service, platform, owner),
        role=role,
        lora_registry=lora_registries.registry_address(service, platform, owner),
    )
    on_gpu = spec.workers.device == "cuda"
    engine = service_container(
        platform,
        COMPONENT,
        argv=argv,
        env={**commands.environment(num_threads=threads), **model_environment()},
        start_deadline_s=_START_DEADLINE_S,
        ports={},
        resources=_resources(service, role, threads),
        mounts={"models": MODELS_DIR, **({"shm": "/dev/shm"} if on_gpu else {})},  # noqa: S108  # the pod's own
    )
    volumes = [model_volume(service), *([{"name": "shm", "emptyDir": {"medium": "Memory"}}] if on_gpu else [])]
    pod = Pod(
        component=role.component,
        containers=[engine],
        volumes=volumes,
        drain_timeout_s=drain_timeout_s,
        fields=placement(role) if on_gpu else None,
    )
    return _with_kv_store(pod, service, observed, platform, owner, group)


def _with_kv_store(
    pod: Pod, service: InferenceService, observed: Observed, platform: Platform, owner: Owner, group: PlannedGroup
) -> Pod:
    """Beside the engine, or on its node; the pod as it is if there is none."""
    where = kv_stores.kv_store_placement(service)
    if where is None:
        return pod
    (engine,) = pod.containers
    mounts = [*engine["volumeMounts"], {**kv_stores.socket_mount(), "readOnly": True}]
    volumes = [*pod.volumes, kv_stores.socket_volume(service, owner)]
    sidecars: list[dict[str, Any]] = []
    drain_timeout_s = pod.drain_timeout_s
    if where == "Pod":
        store, more = kv_stores.sidecar(service, observed, platform, owner, group)
        sidecars, volumes = [store], [*volumes, *more]
        drain_timeout_s += kv_stores.DRAIN_TIMEOUT_S
    return replace(
        pod,
        containers=[{**engine, "volumeMounts": mounts}],
        sidecars=sidecars,
        volumes=volumes,
        drain_timeout_s=drain_timeout_s,
    )


def placement(role: WorkerRole) -> dict[str, Any]:
    """Nodes with GPUs let in who says so. Which of them: what the scheduler counts, and what the spec names."""
    product = role.resources.gpu_product
    chosen = {} if product is None else {"nodeSelector": {_GPU_PRODUCT: product}}
    return {"tolerations": _ON_GPU_NODES, **chosen}


def nodes_of(service: InferenceService) -> dict[str, Any]:
    """Fields of a pod that is to be on every node that workers may be on, and asks for no GPU itself."""
    overrides = overrides_for(service.spec, COMPONENT)
    given = {} if overrides is None else {name: overrides.spec[name] for name in _CHOICES if name in overrides.spec}
    return merge(_gpu_nodes(service), given)


def _gpu_nodes(service: InferenceService) -> dict[str, Any]:
    if service.spec.workers.device != "cuda":
        return {}
    products = sorted({role.resources.gpu_product for role in worker_roles(service.spec) if role.resources.gpu_product})
    chosen = [{"key": _GPU_PRODUCT, "operator": "In", "values": products}]
    # What says that a node has GPUs depends on who runs the cluster.
    terms = [chosen] if products else [[{"key": label, "operator": "Exists"}] for label in _GPU_NODE_LABELS]
    required = {"nodeSelectorTerms": [{"matchExpressions": expressions} for expressions in terms]}
    return {
        "tolerations": _ON_GPU_NODES,
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}},
    }


def _threads(service: InferenceService, role: WorkerRole) -> int:
    """As asked, or as many as there are cores."""
    asked = service.spec.workers
    if asked.threads is not None:
        return asked.threads
    if role.resources.cpu is not None:
        return max(1, math.floor(parse_cpu(role.resources.cpu)))
    return _CORES[asked.device] * max(1, role.gpus_per_pod)


def _resources(service: InferenceService, role: WorkerRole, threads: int) -> dict[str, Any]:
    asked = role.resources
    requests: dict[str, str] = {"cpu": str(asked.cpu if asked.cpu is not None else threads)}
    limits: dict[str, str] = {}
    if asked.memory is not None:
        requests["memory"] = limits["memory"] = str(parse_quantity(asked.memory))
    else:
        kv_cache_bytes = worker_sizes(service.spec).kv_cache_memory_bytes or 0
        requests["memory"] = str(kv_cache_bytes + (1 << 30))
    if role.gpus_per_pod:
        requests[_GPU] = limits[_GPU] = str(role.gpus_per_pod)
    return {"requests": requests} | ({"limits": limits} if limits else {})
