"""What an InferenceService's Envoys are told, and what they think of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from shoal.operator.envoy import clusters
from shoal.operator.xds import Backend


@dataclass(frozen=True, slots=True)
class RoutesState:
    """As the discovery service sees the Envoys of one InferenceService."""

    num_envoys: int = 0
    """How many are connected."""
    rejection: str = ""
    """Why one of them refuses what it was told last; empty: none does."""
    num_waiting: int = 0
    """How many of them have yet to accept what they were told first."""

    def joined(self, other: RoutesState) -> RoutesState:
        """With those that are connected to another operator."""
        return RoutesState(
            self.num_envoys + other.num_envoys,
            self.rejection or other.rejection,
            self.num_waiting + other.num_waiting,
        )

    def shortened(self, max_characters: int) -> RoutesState:
        """With less of a long rejection."""
        return replace(self, rejection=self.rejection[:max_characters])


def backends(name: str) -> dict[str, Backend]:
    """Envoy's clusters, and the gateways' list of each other, by the Services that the plan has for them."""
    return {
        clusters.WORKER: Backend(f"{name}-worker", "grpc"),
        clusters.GATEWAY_GRPC: Backend(f"{name}-gateway", "grpc"),
        clusters.GATEWAY_HTTP: Backend(f"{name}-gateway", "http"),
        clusters.GATEWAY_PEERS: Backend(f"{name}-gateway", "peer"),
    }
