"""How pods are reached: Services, and NetworkPolicies that let in nobody else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shoal.operator.api import InferenceService
from shoal.operator.api.roles import WorkerRole, worker_roles
from shoal.operator.planner.kubernetes import gateways, tokenizers, workers
from shoal.operator.planner.kubernetes.envoy import EDGE_PORT
from shoal.operator.planner.kubernetes.names import ENDPOINT_LABEL, OWNER_LABEL, manifest, selector
from shoal.operator.planner.kubernetes.platform import Manifest, Owner
from shoal.operator.planner.kubernetes.pods import GRPC_PORT, METRICS_PORT

PUBLIC = "edge"
_Rule = dict[str, Any]


def services(service: InferenceService, owner: Owner) -> list[Manifest]:
    """The public Service, named like the InferenceService, and a headless one for each component."""
    picker = service.spec.gateway.endpoint_picker
    edge = [_port(PUBLIC, service.spec.gateway.port or EDGE_PORT, EDGE_PORT)]
    edge += [] if picker is None else [_port("picker", picker.port, picker.port)]
    behind = [_port(name, port, port) for name, port in gateways.gateway_ports(service).items() if name != "picker"]
    grpc = _port("grpc", GRPC_PORT, GRPC_PORT)
    endpoints = sorted({workers.endpoint_of(role) for role in worker_roles(service.spec)} | {workers.COMPONENT})
    public = {
        "type": "ClusterIP",
        "selector": selector(service.metadata.name, gateways.COMPONENT),
        "ports": edge,
    }
    return [
        manifest(service, owner, "v1", "Service", "edge", name=service.metadata.name, spec=public),
        # Envoy finds out by itself which gateways are healthy: a pod that is not ready yet is ready once Envoy
        # reaches a gateway, which may be its own.
        _headless(service, owner, gateways.COMPONENT, [grpc, *behind], publishNotReadyAddresses=True),
        _headless(service, owner, tokenizers.COMPONENT, [grpc]),
        *(_for_workers(service, owner, endpoint, grpc) for endpoint in endpoints),
    ]


def network_policies(service: InferenceService, owner: Owner) -> list[Manifest]:
    """Clients reach Envoy, gateways reach everything, and metrics are there for everybody."""
    ours = {"podSelector": {"matchLabels": selector(service.metadata.name, gateways.COMPONENT)}}
    picker = service.spec.gateway.endpoint_picker
    public = [EDGE_PORT, METRICS_PORT, *([] if picker is None else [picker.port])]
    behind = [GRPC_PORT, *(port for name, port in gateways.gateway_ports(service).items() if name != "picker")]
    for_gateways = [_allow([GRPC_PORT], ours), _allow([METRICS_PORT])]
    rules = {
        gateways.COMPONENT: [_allow(public), _allow(behind, ours)],
        tokenizers.COMPONENT: for_gateways,
        **{role.component: [*for_gateways, *_among_ranks(service, role)] for role in worker_roles(service.spec)},
    }
    return [_policy(service, owner, component, ingress) for component, ingress in rules.items()]


def _among_ranks(service: InferenceService, role: WorkerRole) -> list[_Rule]:
    """Pods of one worker agree on ports among themselves."""
    if role.num_pods == 1:
        return []
    ranks = {"podSelector": {"matchLabels": selector(service.metadata.name, role.component)}}
    return [{"from": [ranks]}]


def _for_workers(service: InferenceService, owner: Owner, endpoint: str, port: dict[str, Any]) -> Manifest:
    """Pods that answer, of all groups: a new one's as they become ready, an old one's until they go."""
    spec = {
        "clusterIP": "None",
        "selector": {OWNER_LABEL: service.metadata.name, ENDPOINT_LABEL: endpoint},
        "ports": [port],
    }
    return manifest(service, owner, "v1", "Service", endpoint, spec=spec)


def _headless(
    service: InferenceService, owner: Owner, component: str, ports: Sequence[dict[str, Any]], **fields: Any
) -> Manifest:
    spec = {
        "clusterIP": "None",
        "selector": selector(service.metadata.name, component),
        "ports": list(ports),
        **fields,
    }
    return manifest(service, owner, "v1", "Service", component, spec=spec)


def _port(name: str, port: int, target: int) -> dict[str, Any]:
    return {"name": name, "port": port, "targetPort": target, "protocol": "TCP"}


def _policy(service: InferenceService, owner: Owner, component: str, ingress: Sequence[_Rule]) -> Manifest:
    spec = {
        "podSelector": {"matchLabels": selector(service.metadata.name, component)},
        "policyTypes": ["Ingress"],
        "ingress": list(ingress),
    }
    return manifest(service, owner, "networking.k8s.io/v1", "NetworkPolicy", component, spec=spec)


def _allow(ports: Sequence[int], *sources: _Rule) -> _Rule:
    """Without sources: from anywhere."""
    rule: _Rule = {"ports": [{"port": port, "protocol": "TCP"} for port in sorted(set(ports))]}
    return rule | ({"from": list(sources)} if sources else {})
