"""Pods that run with the least rights: Kubernetes' "restricted" security standard, a read-only root, no API token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from shoal.operator.api import InferenceService
from shoal.operator.api.kubernetes_rules import MODELS_DIR
from shoal.operator.planner.kubernetes.names import labels, object_name, selector
from shoal.operator.planner.kubernetes.overrides import merge_template, overrides_for
from shoal.operator.planner.kubernetes.platform import Platform

GRPC_PORT: Final = 50051
METRICS_PORT: Final = 9090
USER_ID: Final = 65532
LIVENESS: Final = "liveness"
"""The health service that is SERVING as long as a process answers at all."""
# Endpoints leave Envoy and the gateways within milliseconds of a pod's end, but kube-proxy and other proxies need
# longer to hear of it: until then a stopping pod still takes calls.
LEAVE_S: Final = 5
_TMP: Final = "/tmp"  # noqa: S108  # the pod's own
_PROBE_PERIOD_S: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """What differs from one component's pods to the next."""

    component: str
    containers: Sequence[Mapping[str, Any]]
    sidecars: Sequence[Mapping[str, Any]] = ()
    """Start before the containers, in this order, and end after them."""
    initial: Sequence[Mapping[str, Any]] = ()
    """Run to their end before all others."""
    volumes: Sequence[Mapping[str, Any]] = ()
    drain_timeout_s: float
    """How long its containers may take to end their streams."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """More of them."""
    annotations: Mapping[str, str] | None = None
    fields: Mapping[str, Any] | None = None
    """More of the pod's spec."""
    is_spread: bool = True
    """Over zones and nodes, as far as that goes."""

    def placement(self, service: InferenceService) -> dict[str, Any]:
        """How far from others of its kind."""
        keys = ("topology.kubernetes.io/zone", "kubernetes.io/hostname") if self.is_spread else ()
        spread = [_spread(service, self.component, key) for key in keys]
        return {"topologySpreadConstraints": spread} if spread else {}


def pod_template(service: InferenceService, pod: Pod) -> dict[str, Any]:
    """As in a Deployment or StatefulSet."""
    metadata: dict[str, Any] = {"labels": {**labels(service, pod.component), **pod.labels}}
    if pod.annotations:
        metadata["annotations"] = dict(pod.annotations)
    spec = {
        "serviceAccountName": object_name(service, pod.component),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": LEAVE_S + int(pod.drain_timeout_s) + 5,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [dict(container) for container in pod.containers],
        "volumes": [{"name": "tmp", "emptyDir": {}}, *map(dict, pod.volumes)],
        **(pod.fields or {}),
    }
    spec |= pod.placement(service)
    if secrets := service.spec.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": secret.name} for secret in secrets]
    initial = [*map(dict, pod.initial), *({**sidecar, "restartPolicy": "Always"} for sidecar in pod.sidecars)]
    if initial:
        spec["initContainers"] = initial
    return merge_template({"metadata": metadata, "spec": spec}, overrides_for(service.spec, pod.component))


def container(
    platform: Platform,
    name: str,
    *,
    image: str,
    command: Sequence[str],
    args: Sequence[str],
    env: Mapping[str, str],
    ports: Mapping[str, int],
    resources: Mapping[str, Any],
    mounts: Mapping[str, str] | None = None,
    from_pod: Mapping[str, str] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """One container. `mounts`: volume -> path; paths below /etc are read-only. `from_pod`: variable -> field of the
    pod, such as metadata.name."""
    mounted = {"tmp": _TMP, **(mounts or {})}
    # Libraries that keep something in the home folder find one that can be written.
    values = {"HOME": _TMP, "XDG_CACHE_HOME": f"{_TMP}/cache", **env}
    return {
        "name": name,
        "image": platform.images[image],
        "imagePullPolicy": platform.image_pull_policy,
        "command": list(command),
        "args": list(args),
        "env": [*_from_pod(from_pod or {}), *({"name": key, "value": value} for key, value in sorted(values.items()))],
        "ports": [{"name": key, "containerPort": port, "protocol": "TCP"} for key, port in ports.items()],
        "resources": dict(resources),
        "volumeMounts": [
            {"name": volume, "mountPath": path, **({"readOnly": True} if path.startswith("/etc/") else {})}
            for volume, path in mounted.items()
        ],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        **fields,
    }


def service_container(
    platform: Platform,
    component: str,
    *,
    argv: Sequence[str],
    env: Mapping[str, str],
    start_deadline_s: float,
    ports: Mapping[str, int],
    resources: Mapping[str, Any],
    mounts: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """One of Shoal's services: probes by gRPC health, and a moment to leave the proxies before it drains."""
    return container(
        platform,
        component,
        image=component,
        command=argv[:3],
        args=argv[3:],
        env=env,
        ports={"grpc": GRPC_PORT, "metrics": METRICS_PORT, **ports},
        resources=resources,
        mounts=mounts,
        startupProbe=grpc_probe(failures=int(start_deadline_s / _PROBE_PERIOD_S), service=LIVENESS),
        readinessProbe=grpc_probe(failures=2, periodSeconds=2),
        # A process that answers nobody for a minute is started again; one that cannot serve is only not ready.
        livenessProbe=grpc_probe(failures=60 // _PROBE_PERIOD_S, service=LIVENESS),
        lifecycle=leave_first(),
    )


def leave_first() -> dict[str, Any]:
    """A preStop hook that gives proxies time to stop sending calls."""
    return {"preStop": {"sleep": {"seconds": LEAVE_S}}}


def model_volume(service: InferenceService) -> dict[str, Any]:
    """Where models are kept: the claim that all pods share, or a folder of each pod's own."""
    claim = service.spec.model.cache_claim
    source: dict[str, Any] = {"emptyDir": {}} if claim is None else {"persistentVolumeClaim": {"claimName": claim}}
    return {"name": "models", **source}


def model_environment() -> dict[str, str]:
    """Tells services where that is."""
    return {"SHOAL_CACHE_DIR": MODELS_DIR}


def _from_pod(variables: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}
        for name, path in variables.items()
    ]


def _spread(service: InferenceService, component: str, key: str) -> dict[str, Any]:
    return {
        "maxSkew": 1,
        "topologyKey": key,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": selector(service.metadata.name, component)},
    }


def grpc_probe(*, failures: int, service: str | None = None, port: int = GRPC_PORT, **fields: Any) -> dict[str, Any]:
    """By gRPC health; `failures` in a row count."""
    target: dict[str, Any] = {"port": port} | ({} if service is None else {"service": service})
    timing = {"periodSeconds": _PROBE_PERIOD_S, "timeoutSeconds": 5, "failureThreshold": failures}
    return {"grpc": target, **timing, **fields}
