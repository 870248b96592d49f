"""How the Envoys of an InferenceService's gateways are configured, and what they call themselves."""

from __future__ import annotations

from typing import Final

from shoal.operator.api import InferenceService
from shoal.operator.api.roles import worker_roles
from shoal.operator.envoy import Endpoint, EnvoyOptions
from shoal.operator.planner.kubernetes.platform import Owner, Platform
from shoal.operator.planner.kubernetes.scaling import within_bounds

EDGE_PORT: Final = 8080
EDGE_GRPC_PORT: Final = 8081
EDGE_HTTP_PORT: Final = 8082
"""Of one kind of client each, where the spec asks for that."""
MESH_PORT: Final = 9901
_ANY: Final = "0.0.0.0"  # noqa: S104  # a pod's own addresses
RUN_DIR: Final = "/run/shoal"
_ACCESS_LOG: Final = "/dev/stdout"


def node_cluster(namespace: str, name: str) -> str:
    """Under which name the discovery service knows the Envoys of one InferenceService."""
    return f"{namespace}/{name}"


def envoy_options(service: InferenceService, platform: Platform, owner: Owner) -> EnvoyOptions:
    """The same for the pods' bootstrap and for what the discovery service sends. `node_id` is replaced in each pod."""
    spec, name = service.spec, service.metadata.name
    return EnvoyOptions(
        node_id=name,
        node_cluster=node_cluster(owner.namespace, name),
        run_dir=RUN_DIR,
        admin_socket=f"{RUN_DIR}/admin.sock",
        edge=Endpoint(_ANY, EDGE_PORT),
        edge_grpc=None if spec.gateway.grpc.port is None else Endpoint(_ANY, EDGE_GRPC_PORT),
        edge_http=None if spec.gateway.http.port is None else Endpoint(_ANY, EDGE_HTTP_PORT),
        serves_http=spec.gateway.http.enabled,
        mesh=Endpoint("127.0.0.1", MESH_PORT),
        num_workers=worker_roles(within_bounds(spec))[-1].replicas,
        balancing="prefix_hash" if spec.routing.policy == "prefix_hash" else "orca",
        access_log=_ACCESS_LOG if spec.observability.access_log else None,
        control_plane=platform.control_plane,
        control_plane_ca=platform.control_plane_ca,
    )
