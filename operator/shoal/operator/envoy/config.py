"""Everything one Envoy reads: its bootstrap, and the resources that come from files or from a control plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from shoal.operator.envoy import clusters, listeners, routes
from shoal.operator.envoy.endpoints import Endpoint, cluster_load_assignment, endpoints_file

BOOTSTRAP_FILE = "envoy.json"
XDS_FOLDER = "xds"
_RECONNECT = {"retry_back_off": {"base_interval": "0.5s", "max_interval": "5s"}}
"""Of an Envoy whose control plane is gone. By default intervals grow to 30 s: so long would new workers get nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvoyOptions:
    """What differs from one Envoy to the next."""

    node_id: str
    node_cluster: str = "shoal"
    """Whom the control plane takes it for: Envoys of one name are told the same."""
    run_dir: str
    """Absolute; `envoy.json` and `xds/` are in it."""
    admin_socket: str
    """Path of the admin interface's unix socket: no port, and only its owner can reach it."""
    edge: Endpoint
    edge_grpc: Endpoint | None = None
    """One more port, for gRPC alone."""
    edge_http: Endpoint | None = None
    """One more, for HTTP alone."""
    serves_http: bool = True
    """False: clients are served by gRPC only."""
    mesh: Endpoint
    num_workers: int
    balancing: clusters.Balancing = "orca"
    access_log: str | None = None
    """File for one JSON line a request at the edge."""
    max_http_request_bytes: int = 32 << 20
    grpc_health_interval_s: float = 1.0
    control_plane: Endpoint | None = None
    """Where resources come from; None: from files in `run_dir`."""
    control_plane_ca: str = ""
    """PEM of whom to trust to be it; empty: no TLS."""
    xds_protocol: Literal["DELTA_GRPC", "GRPC"] = "DELTA_GRPC"
    """What is spoken with it: changes, or the state of the world."""


def eds_file(cluster: str) -> str:
    """Path, relative to the run directory, of the file with the endpoints of `cluster`."""
    return f"{XDS_FOLDER}/eds-{cluster}.json"


@dataclass(frozen=True, slots=True)
class Resources:
    """What one Envoy is told, in the JSON form of protobuf, each with its `@type`."""

    clusters: tuple[dict[str, Any], ...]
    endpoints: tuple[dict[str, Any], ...]
    listeners: tuple[dict[str, Any], ...]
    routes: tuple[dict[str, Any], ...]


def render_files(options: EnvoyOptions, endpoints: Mapping[str, Sequence[Endpoint]]) -> dict[str, str]:
    """Path relative to the run directory -> JSON. Clusters that `endpoints` does not name start empty."""
    xds_dir = f"{options.run_dir}/{XDS_FOLDER}"
    found = {route["name"]: listeners.inline_routes(route) for route in _routes(options)}
    files: dict[str, Any] = {
        BOOTSTRAP_FILE: bootstrap(options),
        f"{XDS_FOLDER}/cds.json": {"resources": _clusters(options, xds_dir)},
        f"{XDS_FOLDER}/lds.json": {"resources": _listeners(options, found)},
    }
    for cluster in clusters.NAMES:
        files[eds_file(cluster)] = endpoints_file(cluster, endpoints.get(cluster, ()))
    return {path: render(value) for path, value in files.items()}


def render_resources(options: EnvoyOptions, endpoints: Mapping[str, Sequence[Endpoint]]) -> Resources:
    """The same for a control plane to send. Routes are apart from listeners: they depend on the number of workers.
    Endpoints of other clusters than Envoy's are for followers, who ask for them by name."""
    told = _routes(options)
    discovered = {route["name"]: listeners.discovered_routes(route["name"]) for route in told}
    names = (*clusters.NAMES, *(name for name in endpoints if name not in clusters.NAMES))
    return Resources(
        clusters=tuple(_clusters(options, None)),
        endpoints=tuple(cluster_load_assignment(name, endpoints.get(name, ())) for name in names),
        listeners=tuple(_listeners(options, discovered)),
        routes=told,
    )


def _clusters(options: EnvoyOptions, xds_dir: str | None) -> list[dict[str, Any]]:
    interval_s = options.grpc_health_interval_s
    has_choice = options.num_workers > 1
    return [
        clusters.worker(xds_dir, interval_s, outlier_detection=has_choice, balancing=options.balancing),
        clusters.gateway_grpc(xds_dir, interval_s),
        clusters.gateway_http(xds_dir),
    ]


def _listeners(options: EnvoyOptions, route_sources: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    edges = [
        listeners.edge(name, address, options.access_log, options.max_http_request_bytes, route_sources[name])
        for name, address in _edges(options).items()
    ]
    return [*edges, listeners.mesh(options.mesh, route_sources[routes.MESH])]


def _edges(options: EnvoyOptions) -> dict[str, Endpoint]:
    """Where clients connect, by the name of listener and routes."""
    found = {routes.EDGE: options.edge, routes.EDGE_GRPC: options.edge_grpc, routes.EDGE_HTTP: options.edge_http}
    return {name: address for name, address in found.items() if address is not None}


def _routes(options: EnvoyOptions) -> tuple[dict[str, Any], ...]:
    edges = [
        routes.edge(name, grpc=name != routes.EDGE_HTTP, http=name != routes.EDGE_GRPC and options.serves_http)
        for name in _edges(options)
    ]
    return *edges, routes.mesh(num_retries=max(1, min(3, options.num_workers - 1)))


def render(value: Any) -> str:
    """Readable JSON: people look into the run directory when something is wrong."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"


def bootstrap(options: EnvoyOptions) -> dict[str, Any]:
    """What `envoy -c` gets: who it is, its admin interface, and where clusters and listeners come from."""
    return {
        "node": {"id": options.node_id, "cluster": options.node_cluster},
        "admin": {"address": {"pipe": {"path": options.admin_socket, "mode": 0o600}}},
        **_sources(options),
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3"
                        ".DownstreamConnectionsConfig",
                        "max_active_downstream_connections": 20_000,
                    },
                }
            ]
        },
    }


def _sources(options: EnvoyOptions) -> dict[str, Any]:
    if options.control_plane is None:
        xds_dir = f"{options.run_dir}/{XDS_FOLDER}"
        return {
            "dynamic_resources": {
                "cds_config": clusters.config_source(xds_dir, "cds.json"),
                "lds_config": clusters.config_source(xds_dir, "lds.json"),
            }
        }
    ads = clusters.config_source(None, "")
    return {
        "dynamic_resources": {
            "ads_config": {
                "api_type": options.xds_protocol,
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": clusters.CONTROL_PLANE, "retry_policy": _RECONNECT}}],
            },
            "cds_config": ads,
            "lds_config": ads,
        },
        "static_resources": {"clusters": [clusters.control_plane(options.control_plane, options.control_plane_ca)]},
    }
