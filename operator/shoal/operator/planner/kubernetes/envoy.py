"""How the Envoys of an InferenceService's gateways are configured, and what they call themselves."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from shoal.operator.api import InferenceService
from shoal.operator.api.roles import worker_roles
from shoal.operator.envoy import Endpoint, EnvoyOptions
from shoal.operator.planner.kubernetes.platform import Manifest, Owner, Platform
from shoal.operator.planner.kubernetes.scaling import within_bounds

EDGE_PORT: Final = 8080
EDGE_GRPC_PORT: Final = 8081
EDGE_HTTP_PORT: Final = 8082
"""Of one kind of client each, where the spec asks for that."""
MESH_PORT: Final = 9901
_ANY: Final = "0.0.0.0"  # noqa: S104  # a pod's own addresses
RUN_DIR: Final = "/run/shoal"
ROUTES_FILE: Final = "routes.json"
"""In the ConfigMap of Envoy's bootstrap."""
_ACCESS_LOG: Final = "/dev/stdout"


def node_cluster(namespace: str, name: str) -> str:
    """Under which name the discovery service knows the Envoys of one InferenceService."""
    return f"{namespace}/{name}"


class EnvoyChoices(msgspec.Struct, frozen=True, kw_only=True):
    """What a spec decides of what its Envoys are told.

    It is part of the plan (ROUTES_FILE of the gateways' ConfigMap) and so of what was applied. Envoys are told what
    that says, and not what the spec does: whatever keeps a spec from being applied keeps it from them as well, and an
    operator that cannot read the spec still knows what it was.
    """

    grpc_port: bool = False
    """Whether there is a port for gRPC alone."""
    http_port: bool = False
    serves_http: bool = True
    num_workers: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1
    balancing: Literal["orca", "prefix_hash"] = "orca"
    access_log: bool = False


def envoy_choices(service: InferenceService) -> EnvoyChoices:
    """Of a valid spec."""
    spec = service.spec
    return EnvoyChoices(
        grpc_port=spec.gateway.grpc.port is not None,
        http_port=spec.gateway.http.port is not None,
        serves_http=spec.gateway.http.enabled,
        num_workers=worker_roles(within_bounds(spec))[-1].replicas,
        balancing="prefix_hash" if spec.routing.policy == "prefix_hash" else "orca",
        access_log=spec.observability.access_log,
    )


def write_choices(choices: EnvoyChoices) -> str:
    """For ROUTES_FILE."""
    return msgspec.json.encode(choices).decode()


def applied_choices(config_map: Manifest) -> EnvoyChoices | None:
    """Of the gateways' ConfigMap as it is on the cluster; None if there are none that make sense."""
    try:
        return msgspec.json.decode((config_map.get("data") or {}).get(ROUTES_FILE, ""), type=EnvoyChoices)
    except msgspec.DecodeError:
        return None


def envoy_options(service: InferenceService, platform: Platform, owner: Owner) -> EnvoyOptions:
    """The same for the pods' bootstrap and for what the discovery service sends. `node_id` is replaced in each pod."""
    return options_of(envoy_choices(service), platform, owner.namespace, service.metadata.name)


def options_of(choices: EnvoyChoices, platform: Platform, namespace: str, name: str) -> EnvoyOptions:
    """Of the Envoys of that InferenceService."""
    return EnvoyOptions(
        node_id=name,
        node_cluster=node_cluster(namespace, name),
        run_dir=RUN_DIR,
        admin_socket=f"{RUN_DIR}/admin.sock",
        edge=Endpoint(_ANY, EDGE_PORT),
        edge_grpc=Endpoint(_ANY, EDGE_GRPC_PORT) if choices.grpc_port else None,
        edge_http=Endpoint(_ANY, EDGE_HTTP_PORT) if choices.http_port else None,
        serves_http=choices.serves_http,
        mesh=Endpoint("127.0.0.1", MESH_PORT),
        num_workers=choices.num_workers,
        balancing=choices.balancing,
        access_log=_ACCESS_LOG if choices.access_log else None,
        control_plane=platform.control_plane,
        control_plane_ca=platform.control_plane_ca,
    )
