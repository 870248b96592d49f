"""Endpoints of a cluster (EDS)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_TYPE = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """Where a process listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def cluster_load_assignment(cluster: str, endpoints: Iterable[Endpoint]) -> dict[str, Any]:
    """One resource."""
    members = [
        {"endpoint": {"address": {"socket_address": {"address": endpoint.host, "port_value": endpoint.port}}}}
        for endpoint in sorted(endpoints)
    ]
    return {"@type": _TYPE, "cluster_name": cluster, "endpoints": [{"lb_endpoints": members}]}


def endpoints_file(cluster: str, endpoints: Iterable[Endpoint]) -> dict[str, Any]:
    """A whole EDS file. One cluster a file: Envoy refuses a file with more."""
    return {"resources": [cluster_load_assignment(cluster, endpoints)]}
