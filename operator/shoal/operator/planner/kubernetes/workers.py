"""The engines: a StatefulSet, so that each worker has a name that it keeps."""

from __future__ import annotations

import math
from typing import Any

from shoal.operator.api import InferenceService, parse_quantity, worker_sizes
from shoal.operator.api.kubernetes_rules import MODELS_DIR
from shoal.operator.api.quantity import parse_cpu
from shoal.operator.planner import commands
from shoal.operator.planner.kubernetes.names import manifest, selector
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

COMPONENT = "worker"
DRAIN_TIMEOUT_S = 60.0
_START_DEADLINE_S = 3600.0  # fetches and reads the weights
_GPU = "nvidia.com/gpu"
_CORES = {"cpu": 4, "cuda": 4, "simulated": 1}


def workers(service: InferenceService, observed: Observed, platform: Platform, owner: Owner) -> list[Manifest]:
    """The StatefulSet."""
    spec = service.spec
    threads = _threads(service)
    argv = commands.worker(
        service,
        observed,
        "0.0.0.0",  # noqa: S104  # a pod's own address; NetworkPolicies say who may come
        {"grpc": GRPC_PORT, "metrics": METRICS_PORT},
        threads=threads,
        drain_timeout_s=DRAIN_TIMEOUT_S,
    )
    on_gpu = spec.workers.device == "cuda"
    engine = service_container(
        platform,
        COMPONENT,
        argv=argv,
        env={**commands.environment(num_threads=threads), **model_environment()},
        start_deadline_s=_START_DEADLINE_S,
        ports={},
        resources=_resources(service, threads),
        mounts={"models": MODELS_DIR, **({"shm": "/dev/shm"} if on_gpu else {})},  # noqa: S108  # the pod's own
    )
    volumes = [model_volume(service), *([{"name": "shm", "emptyDir": {"medium": "Memory"}}] if on_gpu else [])]
    pod = Pod(
        component=COMPONENT,
        containers=[engine],
        volumes=volumes,
        drain_timeout_s=DRAIN_TIMEOUT_S,
        fields={"tolerations": [{"key": _GPU, "operator": "Exists", "effect": "NoSchedule"}]} if on_gpu else None,
    )
    stateful_set = {
        "replicas": spec.workers.replicas,
        "serviceName": f"{service.metadata.name}-{COMPONENT}",
        # Workers do not wait for each other.
        "podManagementPolicy": "Parallel",
        "updateStrategy": {"type": "RollingUpdate"},
        "selector": {"matchLabels": selector(service.metadata.name, COMPONENT)},
        "template": pod_template(service, pod),
    }
    return [manifest(service, owner, "apps/v1", "StatefulSet", COMPONENT, spec=stateful_set)]


def _threads(service: InferenceService) -> int:
    """As asked, or as many as there are cores."""
    asked = service.spec.workers
    if asked.threads is not None:
        return asked.threads
    if asked.resources.cpu is not None:
        return max(1, math.floor(parse_cpu(asked.resources.cpu)))
    return _CORES[asked.device]


def _resources(service: InferenceService, threads: int) -> dict[str, Any]:
    asked = service.spec.workers.resources
    requests: dict[str, str] = {"cpu": str(asked.cpu if asked.cpu is not None else threads)}
    limits: dict[str, str] = {}
    if asked.memory is not None:
        requests["memory"] = limits["memory"] = str(parse_quantity(asked.memory))
    else:
        kv_cache_bytes = worker_sizes(service.spec).kv_cache_memory_bytes or 0
        requests["memory"] = str(kv_cache_bytes + (1 << 30))
    if service.spec.workers.device == "cuda":
        requests[_GPU] = limits[_GPU] = "1"
    return {"requests": requests} | ({"limits": limits} if limits else {})
