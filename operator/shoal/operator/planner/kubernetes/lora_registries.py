"""The LoRA registry: a Deployment of one pod, which fetches and keeps the adapters of the spec (ADR 0030).

What it has follows from the spec alone: a ConfigMap lists the adapters, and the registry reads that again as it
changes, so a new adapter is there without another pod. A pod that is new fetches them before it is ready, and only then
does the old one go.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from shoal.operator.api import InferenceService
from shoal.operator.api.kubernetes_rules import MODELS_DIR
from shoal.operator.planner import commands
from shoal.operator.planner.kubernetes.names import manifest, object_name, selector
from shoal.operator.planner.kubernetes.platform import Manifest, Owner, Platform
from shoal.operator.planner.kubernetes.pods import (
    GRPC_PORT,
    METRICS_PORT,
    Pod,
    model_volume,
    pod_template,
    service_container,
)
from shoal.operator.planner.plan import Observed

COMPONENT: Final = "lora-registry"
_STORE_DIR: Final = "/var/lib/shoal-lora"
_CONFIG_DIR: Final = "/etc/shoal/lora-registry"
_ADAPTERS_FILE: Final = "adapters.json"
_SIZES: Final = commands.LoraRegistrySizes(max_bytes=10 << 30, max_adapter_bytes=2 << 30, max_publishes=2)
_STORE_BYTES: Final = 16 << 30
"""What is kept, what is fetched at the same time, and what a file system needs for itself."""
_DRAIN_TIMEOUT_S: Final = 10.0
_START_DEADLINE_S: Final = 600.0
_RESOURCES: Final = {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}}


def registry_address(service: InferenceService, platform: Platform, owner: Owner) -> str | None:
    """Where workers reach it; None without adapters."""
    if not service.spec.adapters:
        return None
    return f"{object_name(service, COMPONENT)}.{owner.namespace}.svc.{platform.cluster_domain}:{GRPC_PORT}"


def lora_registries(service: InferenceService, observed: Observed, platform: Platform, owner: Owner) -> list[Manifest]:
    """ConfigMap and Deployment; nothing without adapters."""
    if not service.spec.adapters:
        return []
    # What is fetched is kept already: only a claim, which outlives the pod, makes a second copy worth it.
    has_claim = service.spec.model.cache_claim is not None
    argv = commands.lora_registry(
        service,
        observed,
        "0.0.0.0",  # noqa: S104  # a pod's own address; NetworkPolicies say who may come
        {"grpc": GRPC_PORT, "metrics": METRICS_PORT},
        sizes=_SIZES,
        folder=_STORE_DIR,
        adapters_file=f"{_CONFIG_DIR}/{_ADAPTERS_FILE}",
        source_cache=MODELS_DIR if has_claim else None,
        drain_timeout_s=_DRAIN_TIMEOUT_S,
    )
    process = service_container(
        platform,
        COMPONENT,
        argv=argv,
        env=commands.environment(num_threads=1),
        start_deadline_s=_START_DEADLINE_S,
        ports={},
        resources=_RESOURCES,
        mounts={"adapters": _CONFIG_DIR, "store": _STORE_DIR, **({"models": MODELS_DIR} if has_claim else {})},
    )
    pod = Pod(
        component=COMPONENT,
        containers=[process],
        volumes=[
            {"name": "adapters", "configMap": {"name": object_name(service, COMPONENT)}},
            {"name": "store", "emptyDir": {"sizeLimit": str(_STORE_BYTES)}},
            *([model_volume(service)] if has_claim else []),
        ],
        drain_timeout_s=_DRAIN_TIMEOUT_S,
        is_spread=False,
    )
    deployment = {
        "replicas": 1,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "selector": {"matchLabels": selector(service.metadata.name, COMPONENT)},
        "template": pod_template(service, pod),
    }
    return [
        manifest(service, owner, "v1", "ConfigMap", COMPONENT, data={_ADAPTERS_FILE: _adapters(service)}),
        manifest(service, owner, "apps/v1", "Deployment", COMPONENT, spec=deployment),
    ]


def _adapters(service: InferenceService) -> str:
    found: list[dict[str, Any]] = []
    for adapter in service.spec.adapters:
        given = {"name": adapter.name, "uri": adapter.uri, "sha256": adapter.sha256, "rank": adapter.rank}
        found.append({name: value for name, value in given.items() if value is not None})
    return msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n"
