"""What an InferenceService's Envoys are told, and what they think of it."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.operator.envoy import clusters
from shoal.operator.xds import Backend


@dataclass(frozen=True, slots=True)
class RoutesState:
    """As the discovery service sees the Envoys of one InferenceService."""

    num_envoys: int = 0
    """How many are connected."""
    rejection: str = ""
    """Why one of them refuses what it was told last; empty: none does."""


def backends(name: str) -> dict[str, Backend]:
    """Envoy's clusters, and the gateways' list of each other, by the Services that the plan has for them."""
    return {
        clusters.WORKER: Backend(f"{name}-worker", "grpc"),
        clusters.GATEWAY_GRPC: Backend(f"{name}-gateway", "grpc"),
        clusters.GATEWAY_HTTP: Backend(f"{name}-gateway", "http"),
        clusters.GATEWAY_PEERS: Backend(f"{name}-gateway", "peer"),
    }
