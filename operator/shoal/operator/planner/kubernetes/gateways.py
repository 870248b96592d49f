"""Gateways, each with an Envoy of its own: a Deployment, and the ConfigMap that Envoy starts with.

Envoy and the follower, which keeps the gateway's lists of endpoints, are sidecars: there before the gateway starts, and
until it has drained. They end in turn, gateway, follower, Envoy, and the follower not before Envoy serves nobody:
clients stay connected to the Envoy of a pod that goes, and reach other gateways through it.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

from shoal.operator.api import InferenceService
from shoal.operator.envoy import Endpoint, clusters
from shoal.operator.envoy.config import BOOTSTRAP_FILE, bootstrap, eds_file, render
from shoal.operator.envoy.listeners import READY_PATH
from shoal.operator.planner import commands
from shoal.operator.planner.kubernetes.envoy import (
    EDGE_GRPC_PORT,
    EDGE_HTTP_PORT,
    EDGE_PORT,
    MESH_PORT,
    ROUTES_FILE,
    RUN_DIR,
    envoy_choices,
    envoy_options,
    write_choices,
)
from shoal.operator.planner.kubernetes.names import manifest, object_name, selector
from shoal.operator.planner.kubernetes.platform import Manifest, Owner, Platform
from shoal.operator.planner.kubernetes.pods import (
    GRPC_PORT,
    LEAVE_S,
    METRICS_PORT,
    Pod,
    container,
    leave_first,
    pod_template,
    service_container,
)
from shoal.operator.planner.plan import Observed

COMPONENT = "gateway"
HTTP_PORT: Final = 8000
PEER_PORT: Final = 50052
API_KEYS_DIR: Final = "/etc/shoal/api-keys"
API_KEYS_FILE: Final = "api-keys"
_AUTHORITY_FILE: Final = "control-plane-ca.crt"
_CONFIG_DIR: Final = "/etc/shoal/envoy"
_LEAST_DRAIN_TIMEOUT_S: Final = 60.0
_START_DEADLINE_S: Final = 120.0
_ENVOY_THREADS: Final = 2
_NODE_ARGS: Final = ("--service-node", "$(POD_NAME)")
_RESOURCES: Final = {
    "gateway": {"requests": {"cpu": "1", "memory": "512Mi"}, "limits": {"memory": "4Gi"}},
    "envoy": {"requests": {"cpu": "500m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}},
    "follower": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
}


def gateways(service: InferenceService, observed: Observed, platform: Platform, owner: Owner) -> list[Manifest]:
    """ConfigMap and Deployment."""
    config = render(bootstrap(envoy_options(service, platform, owner)))
    auth = service.spec.gateway.auth
    volumes: list[dict[str, Any]] = [
        {"name": "run", "emptyDir": {}},
        {"name": "envoy", "configMap": {"name": object_name(service, COMPONENT)}},
    ]
    if auth is not None and auth.api_keys_secret is not None:
        secret = auth.api_keys_secret
        items = [{"key": secret.key, "path": API_KEYS_FILE}]
        volumes.append({"name": "api-keys", "secret": {"secretName": secret.name, "items": items}})
    pod = Pod(
        component=COMPONENT,
        containers=[_gateway(service, observed, platform, owner)],
        # They end in the reverse order.
        sidecars=[_envoy(service, platform), _follower(service, platform, owner)],
        volumes=volumes,
        drain_timeout_s=_drain_timeout_s(service),
        # Envoy reads it once: another one needs other pods.
        annotations={"shoal.dev/envoy-config": hashlib.sha256(config.encode()).hexdigest()[:16]},
    )
    deployment = {
        "replicas": service.spec.gateway.replicas,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "selector": {"matchLabels": selector(service.metadata.name, COMPONENT)},
        "template": pod_template(service, pod),
    }
    routes = write_choices(envoy_choices(service))
    data = {BOOTSTRAP_FILE: config, ROUTES_FILE: routes, **_authority(platform)}
    return [
        manifest(service, owner, "v1", "ConfigMap", COMPONENT, data=data),
        manifest(service, owner, "apps/v1", "Deployment", COMPONENT, spec=deployment),
    ]


def gateway_ports(service: InferenceService) -> dict[str, int]:
    """Ports of a gateway process beside gRPC and metrics."""
    picker = service.spec.gateway.endpoint_picker
    has_peers = service.spec.gateway.replicas > 1
    return {
        "http": HTTP_PORT,
        **({"peer": PEER_PORT} if has_peers else {}),
        **({"picker": picker.port} if picker is not None else {}),
    }


def _drain_timeout_s(service: InferenceService) -> float:
    """A worker's streams end at a gateway: neither is cut before the other."""
    return max(_LEAST_DRAIN_TIMEOUT_S, float(service.spec.rollout.drain_seconds))


def _gateway(service: InferenceService, observed: Observed, platform: Platform, owner: Owner) -> dict[str, Any]:
    ports = gateway_ports(service)
    host = f"{object_name(service, 'tokenizer')}.{owner.namespace}.svc.{platform.cluster_domain}"
    argv = commands.gateway(
        service,
        observed,
        "0.0.0.0",  # noqa: S104  # a pod's own address; NetworkPolicies say who may come
        {"grpc": GRPC_PORT, "metrics": METRICS_PORT, **ports},
        mesh=Endpoint("127.0.0.1", MESH_PORT),
        # All addresses of the headless Service, in turn.
        tokenizer_target=f"dns:///{host}:{GRPC_PORT}",
        workers_file=f"{RUN_DIR}/{eds_file(clusters.WORKER)}",
        peers_file=f"{RUN_DIR}/{eds_file(clusters.GATEWAY_PEERS)}",
        drain_timeout_s=_drain_timeout_s(service),
    )
    has_keys = service.spec.gateway.auth is not None
    return service_container(
        platform,
        COMPONENT,
        argv=argv,
        env=commands.environment(num_threads=1),
        start_deadline_s=_START_DEADLINE_S,
        ports=ports,
        resources=_RESOURCES["gateway"],
        mounts={"run": RUN_DIR, **({"api-keys": API_KEYS_DIR} if has_keys else {})},
    )


def _envoy(service: InferenceService, platform: Platform) -> dict[str, Any]:
    argv = commands.envoy(
        "envoy",
        f"{_CONFIG_DIR}/{BOOTSTRAP_FILE}",
        concurrency=_ENVOY_THREADS,
        log_level=service.spec.observability.log_level,
    )
    return container(
        platform,
        "envoy",
        image="envoy",
        command=argv[:1],
        args=[*argv[1:], *_NODE_ARGS],
        env={},
        from_pod={"POD_NAME": "metadata.name"},
        ports=_edge_ports(service),
        resources=_RESOURCES["envoy"],
        mounts={"run": RUN_DIR, "envoy": _CONFIG_DIR},
        # Ready when a client would be answered.
        readinessProbe={
            "httpGet": {"path": READY_PATH, "port": EDGE_PORT},
            "periodSeconds": 2,
            "timeoutSeconds": 5,
            "failureThreshold": 3,
        },
        lifecycle=leave_first(),
    )


def _edge_ports(service: InferenceService) -> dict[str, int]:
    gateway = service.spec.gateway
    return {
        "edge": EDGE_PORT,
        **({} if gateway.grpc.port is None else {"edge-grpc": EDGE_GRPC_PORT}),
        **({} if gateway.http.port is None else {"edge-http": EDGE_HTTP_PORT}),
    }


def _authority(platform: Platform) -> dict[str, str]:
    """For the follower; Envoy has it in its bootstrap."""
    return {_AUTHORITY_FILE: platform.control_plane_ca} if platform.control_plane_ca else {}


def _follower(service: InferenceService, platform: Platform, owner: Owner) -> dict[str, Any]:
    """Writes what the discovery service says of workers and gateways to files that the gateway watches."""
    followed = [clusters.WORKER, *([clusters.GATEWAY_PEERS] if service.spec.gateway.replicas > 1 else [])]
    args = [
        f"--control-plane={platform.control_plane}",
        f"--service-cluster={envoy_options(service, platform, owner).node_cluster}",
        "--service-node=$(POD_NAME)",
        f"--folder={RUN_DIR}",
        f"--clusters={','.join(followed)}",
    ]
    mounts = {"run": RUN_DIR}
    if platform.control_plane_ca:
        args.append(f"--control-plane-ca={_CONFIG_DIR}/{_AUTHORITY_FILE}")
        mounts["envoy"] = _CONFIG_DIR
    return container(
        platform,
        "follower",
        image="operator",
        command=("python", "-m", "shoal.operator.follower"),
        args=args,
        env=commands.environment(num_threads=1),
        from_pod={"POD_NAME": "metadata.name"},
        ports={},
        resources=_RESOURCES["follower"],
        mounts=mounts,
        lifecycle={"preStop": {"exec": {"command": _drain_command(service, platform, owner)}}},
    )


def _drain_command(service: InferenceService, platform: Platform, owner: Owner) -> list[str]:
    return [
        "python",
        "-m",
        "shoal.operator.follower.draining",
        f"--admin-socket={envoy_options(service, platform, owner).admin_socket}",
        f"--leave-s={LEAVE_S}",
        f"--timeout-s={_drain_timeout_s(service):g}",
    ]
