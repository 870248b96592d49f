"""What the planner must know of the cluster, and cannot derive from the spec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from shoal.operator.envoy import Endpoint

Manifest = dict[str, Any]
"""A Kubernetes object, as plain data."""
_VERSION: Final = "0.1.0"
IMAGES: Final[Mapping[str, str]] = MappingProxyType(
    {
        name: f"shoal/{name}:{_VERSION}"
        for name in ("gateway", "tokenizer", "worker", "kv-store", "lora-registry", "operator", "envoy")
    }
)
_CONTROL_PLANE: Final = Endpoint("shoal-operator.shoal-system.svc", 18000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """Settings of the operator, the same for all its InferenceServices."""

    images: Mapping[str, str] = field(default_factory=lambda: IMAGES)
    """For each of gateway, tokenizer, worker, kv-store, lora-registry, operator and envoy."""
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    """Names of Secrets for all pods, in namespaces that have them; kubelets pass over those that are not there."""
    control_plane: Endpoint = _CONTROL_PLANE
    """Where Envoys and gateways learn their endpoints: the operator's discovery service."""
    control_plane_ca: str = ""
    """PEM of whom they trust to be that; empty: no TLS."""
    cluster_domain: str = "cluster.local"
    prometheus: str = "http://prometheus-operated.monitoring.svc:9090"
    """Whom KEDA asks."""
    apis: frozenset[str] = frozenset()
    """API versions that the cluster has beside Kubernetes' own, such as `leaderworkerset.x-k8s.io/v1`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The InferenceService as the API server knows it: what becomes of it becomes of its objects."""

    namespace: str
    uid: str | None = None
    """None: not on a cluster yet (`shoal plan`), and so nothing to refer to."""
