"""Everything one Envoy reads: its bootstrap, and the xDS files that the bootstrap names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from shoal.operator.envoy import clusters, listeners
from shoal.operator.envoy.endpoints import Endpoint, cluster_load_assignment

BOOTSTRAP_FILE = "envoy.json"
XDS_FOLDER = "xds"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvoyOptions:
    """What differs from one Envoy to the next."""

    node_id: str
    run_dir: str
    """Absolute; `envoy.json` and `xds/` are in it."""
    admin_socket: str
    """Path of the admin interface's unix socket: no port, and only its owner can reach it."""
    edge: Endpoint
    mesh: Endpoint
    num_workers: int
    balancing: clusters.Balancing = "orca"
    access_log: str | None = None
    """File for one JSON line a request at the edge."""
    max_http_request_bytes: int = 32 << 20
    grpc_health_interval_s: float = 1.0


def eds_file(cluster: str) -> str:
    """Path, relative to the run directory, of the file with the endpoints of `cluster`."""
    return f"{XDS_FOLDER}/eds-{cluster}.json"


def render_files(options: EnvoyOptions, endpoints: Mapping[str, Sequence[Endpoint]]) -> dict[str, str]:
    """Path relative to the run directory -> JSON. Clusters that `endpoints` does not name start empty."""
    xds_dir = f"{options.run_dir}/{XDS_FOLDER}"
    resources: dict[str, Any] = {
        BOOTSTRAP_FILE: bootstrap(options),
        f"{XDS_FOLDER}/cds.json": {
            "resources": [
                clusters.worker(
                    xds_dir,
                    options.grpc_health_interval_s,
                    outlier_detection=options.num_workers > 1,
                    balancing=options.balancing,
                ),
                clusters.gateway_grpc(xds_dir, options.grpc_health_interval_s),
                clusters.gateway_http(xds_dir),
            ]
        },
        f"{XDS_FOLDER}/lds.json": {
            "resources": [
                listeners.edge(options.edge, options.access_log, options.max_http_request_bytes),
                listeners.mesh(options.mesh, num_retries=max(1, min(3, options.num_workers - 1))),
            ]
        },
    }
    for cluster in clusters.NAMES:
        resources[eds_file(cluster)] = cluster_load_assignment(cluster, endpoints.get(cluster, ()))
    return {path: render(value) for path, value in resources.items()}


def render(value: Any) -> str:
    """Readable JSON: people look into the run directory when something is wrong."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"


def bootstrap(options: EnvoyOptions) -> dict[str, Any]:
    """What `envoy -c` gets: who it is, its admin interface, and where clusters and listeners come from."""
    xds_dir = f"{options.run_dir}/{XDS_FOLDER}"
    return {
        "node": {"id": options.node_id, "cluster": "shoal"},
        "admin": {"address": {"pipe": {"path": options.admin_socket, "mode": 0o600}}},
        "dynamic_resources": {
            "cds_config": clusters.config_source(xds_dir, "cds.json"),
            "lds_config": clusters.config_source(xds_dir, "lds.json"),
        },
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
