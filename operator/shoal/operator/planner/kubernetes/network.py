"""How pods are reached: Services, and NetworkPolicies that let in nobody else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shoal.operator.api import InferenceService
from shoal.operator.api.roles import worker_roles
from shoal.operator.planner.kubernetes import gateways, kv_stores, lora_registries, tokenizers, workers
from shoal.operator.planner.kubernetes.envoy import EDGE_GRPC_PORT, EDGE_HTTP_PORT, EDGE_PORT
from shoal.operator.planner.kubernetes.groups import endpoint_of
from shoal.operator.planner.kubernetes.names import COMPONENT_LABEL, ENDPOINT_LABEL, OWNER_LABEL, manifest, selector
from shoal.operator.planner.kubernetes.platform import Manifest, Owner
from shoal.operator.planner.kubernetes.pods import GRPC_PORT, METRICS_PORT

PUBLIC = "edge"
_Rule = dict[str, Any]


def services(service: InferenceService, owner: Owner) -> list[Manifest]:
    """The public Service, named like the InferenceService, and a headless one for each component."""
    asked = service.spec.gateway
    behind = [_port(name, port, port) for name, port in gateways.gateway_ports(service).items() if name != "picker"]
    grpc, metrics = _port("grpc", GRPC_PORT, GRPC_PORT), _port("metrics", METRICS_PORT, METRICS_PORT)
    for_workers = [grpc, metrics]
    if kv_stores.kv_store_placement(service) == "Pod":
        for_workers.append(_port("kv-metrics", kv_stores.STORE_METRICS_PORT, kv_stores.STORE_METRICS_PORT))
    endpoints = sorted({endpoint_of(role) for role in worker_roles(service.spec)} | {workers.COMPONENT})
    public = {
        "type": asked.service.type,
        "selector": selector(service.metadata.name, gateways.COMPONENT),
        "ports": _public_ports(service),
    }
    edge = manifest(service, owner, "v1", "Service", "edge", name=service.metadata.name, spec=public)
    if asked.service.annotations:
        edge["metadata"]["annotations"] = dict(asked.service.annotations)
    return [
        edge,
        # Envoy finds out by itself which gateways are healthy: a pod that is not ready yet is ready once Envoy
        # reaches a gateway, which may be its own.
        _headless(service, owner, gateways.COMPONENT, [grpc, metrics, *behind], publishNotReadyAddresses=True),
        _headless(service, owner, tokenizers.COMPONENT, [grpc, metrics]),
        *([_headless(service, owner, lora_registries.COMPONENT, [grpc, metrics])] if service.spec.adapters else []),
        *(_for_workers(service, owner, endpoint, for_workers) for endpoint in endpoints),
    ]


def _public_ports(service: InferenceService) -> list[dict[str, Any]]:
    gateway = service.spec.gateway
    ports = [_port(PUBLIC, gateway.port or EDGE_PORT, EDGE_PORT)]
    if gateway.grpc.port is not None:
        ports.append(_port("edge-grpc", gateway.grpc.port, EDGE_GRPC_PORT))
    if gateway.http.port is not None:
        ports.append(_port("edge-http", gateway.http.port, EDGE_HTTP_PORT))
    picker = gateway.endpoint_picker
    return ports if picker is None else [*ports, _port("picker", picker.port, picker.port)]


def network_policies(service: InferenceService, owner: Owner, engines: Mapping[str, bool]) -> list[Manifest]:
    """Clients reach Envoy, gateways reach everything, and metrics are there for everybody.

    engines: workers' components, and whether one of those workers is several pods.
    """
    ours = {"podSelector": {"matchLabels": selector(service.metadata.name, gateways.COMPONENT)}}
    public = [METRICS_PORT, *(port["targetPort"] for port in _public_ports(service))]
    behind = [GRPC_PORT, *(port for name, port in gateways.gateway_ports(service).items() if name != "picker")]
    for_gateways = [_allow([GRPC_PORT], ours), _allow([METRICS_PORT])]
    rules = {
        gateways.COMPONENT: [_allow(public), _allow(behind, ours)],
        tokenizers.COMPONENT: for_gateways,
    }
    if service.spec.adapters:
        callers = _pods_of(service, [*engines, gateways.COMPONENT])
        rules[lora_registries.COMPONENT] = [_allow([GRPC_PORT], callers), _allow([METRICS_PORT])]
    for component, is_several_pods in engines.items():
        # Pods of one worker agree on ports among themselves.
        ranks = [{"from": [_pods_of(service, [component])]}] if is_several_pods else []
        rules[component] = [*for_gateways, *ranks]
    found = _with_kv_stores(service, rules, list(engines))
    return [_policy(service, owner, component, ingress) for component, ingress in found]


def _with_kv_stores(
    service: InferenceService, rules: Mapping[str, list[_Rule]], engines: Sequence[str]
) -> list[tuple[str, list[_Rule]]]:
    """Stores have metrics too, and meet each other if they share. One of a node is asked by workers."""
    where = kv_stores.kv_store_placement(service)
    if where is None:
        return list(rules.items())
    holders = engines if where == "Pod" else [kv_stores.COMPONENT]
    found = {component: list(allowed) for component, allowed in rules.items()}
    if where == "Node":
        found[kv_stores.COMPONENT] = [_allow([kv_stores.STORE_PORT], _pods_of(service, engines))]
    for component in holders:
        found[component].append(_allow([kv_stores.STORE_METRICS_PORT]))
        if service.spec.kv_cache.peers_secret is not None:
            found[component].append(_allow(kv_stores.PEER_PORTS, _pods_of(service, holders)))
    return list(found.items())


def _pods_of(service: InferenceService, components: Sequence[str]) -> _Rule:
    chosen = {"key": COMPONENT_LABEL, "operator": "In", "values": sorted(components)}
    return {"podSelector": {"matchLabels": {OWNER_LABEL: service.metadata.name}, "matchExpressions": [chosen]}}


def _for_workers(service: InferenceService, owner: Owner, endpoint: str, ports: Sequence[dict[str, Any]]) -> Manifest:
    """Pods that answer, of all groups: a new one's as they become ready, an old one's until they go."""
    spec = {
        "clusterIP": "None",
        "selector": {OWNER_LABEL: service.metadata.name, ENDPOINT_LABEL: endpoint},
        "ports": list(ports),
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
