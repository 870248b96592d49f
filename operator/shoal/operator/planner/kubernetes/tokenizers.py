"""Tokenizers: a Deployment. They are alike, and gateways call them in turn by their Service's addresses."""

from __future__ import annotations

from shoal.operator.api import InferenceService
from shoal.operator.api.kubernetes_rules import MODELS_DIR
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

COMPONENT = "tokenizer"
_DRAIN_TIMEOUT_S = 10.0
_START_DEADLINE_S = 1800.0  # fetches the tokenizer's files, which for GGUF are the whole model
_RESOURCES = {"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}}


def tokenizers(service: InferenceService, observed: Observed, platform: Platform, owner: Owner) -> list[Manifest]:
    """The Deployment."""
    argv = commands.tokenizer(
        service,
        observed,
        "0.0.0.0",  # noqa: S104  # a pod's own address; NetworkPolicies say who may come
        {"grpc": GRPC_PORT, "metrics": METRICS_PORT},
        drain_timeout_s=_DRAIN_TIMEOUT_S,
    )
    process = service_container(
        platform,
        COMPONENT,
        argv=argv,
        env={**commands.environment(num_threads=1), **model_environment()},
        start_deadline_s=_START_DEADLINE_S,
        ports={},
        resources=_RESOURCES,
        mounts={"models": MODELS_DIR},
    )
    pod = Pod(
        component=COMPONENT,
        containers=[process],
        volumes=[model_volume(service)],
        drain_timeout_s=_DRAIN_TIMEOUT_S,
    )
    deployment = {
        "replicas": service.spec.tokenizer.replicas,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "selector": {"matchLabels": selector(service.metadata.name, COMPONENT)},
        "template": pod_template(service, pod),
    }
    return [manifest(service, owner, "apps/v1", "Deployment", COMPONENT, spec=deployment)]
