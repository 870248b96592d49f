"""Tells the discovery service where the pods of each InferenceService are."""

from __future__ import annotations

import dataclasses
from typing import Any

from shoal.operator.envoy import Endpoint, clusters
from shoal.operator.envoy.config import render_resources
from shoal.operator.envoy.endpoints import cluster_load_assignment
from shoal.operator.planner.kubernetes import Platform
from shoal.operator.planner.kubernetes.envoy import envoy_options, node_cluster
from shoal.operator.planner.kubernetes.names import COMPONENT_LABEL
from shoal.operator.reconcile.object_store import Key, ObjectStore
from shoal.operator.reconcile.reconciler import Planned
from shoal.operator.xds import Snapshot, SnapshotStore, encode
from shoal.operator.xds.endpoint_slices import ready_endpoints

_SOURCES = {
    clusters.WORKER: ("worker", "grpc"),
    clusters.GATEWAY_GRPC: ("gateway", "grpc"),
    clusters.GATEWAY_HTTP: ("gateway", "http"),
    clusters.GATEWAY_PEERS: ("gateway", "peer"),
}
"""Envoy cluster -> the component whose Service has its endpoints, and the name of the port."""


class Publisher:
    """Keeps one snapshot for the Envoys and gateways of each InferenceService up to date."""

    def __init__(self, store: ObjectStore, snapshots: SnapshotStore, platform: Platform) -> None:
        self._store = store
        self._snapshots = snapshots
        self._platform = platform
        self._planned: dict[Key, Planned] = {}
        self._shown: dict[Key, Any] = {}

    def on_planned(self, key: Key, planned: Planned) -> None:
        """The service as it is to be from now on."""
        self._planned[key] = planned
        self.publish(key)

    def publish(self, key: Key) -> None:
        """Its endpoints have changed, perhaps. Services that were never planned are left for later."""
        planned = self._planned.get(key)
        if planned is None:
            return
        options = envoy_options(planned.service, self._platform, planned.owner)
        endpoints = self.endpoints(key)
        # Routes and clusters depend on whether there is a choice of workers at all.
        told = (options, tuple(endpoints.items()))
        if self._shown.get(key) != told:
            self._shown[key] = told
            self._snapshots.put(node_cluster(*key), _encoded(*told))

    def drop(self, key: Key) -> None:
        """The service is gone."""
        self._planned.pop(key, None)
        self._shown.pop(key, None)
        self._snapshots.drop(node_cluster(*key))

    def endpoints(self, key: Key) -> dict[str, tuple[Endpoint, ...]]:
        """By Envoy cluster: who takes calls, as far as the store knows."""
        return {name: self._ready(key, *source) for name, source in _SOURCES.items()}

    def _ready(self, key: Key, component: str, port: str) -> tuple[Endpoint, ...]:
        slices = [
            found
            for found in self._store.of(key, "EndpointSlice")
            if found["metadata"]["labels"].get(COMPONENT_LABEL) == component
        ]
        return ready_endpoints(slices, port)


def _encoded(options: Any, endpoints: tuple[tuple[str, tuple[Endpoint, ...]], ...]) -> Snapshot:
    resources = render_resources(options, dict(endpoints))
    # No cluster of Envoy's leads to the gateways' own port; the followers ask for it by name.
    peers = cluster_load_assignment(clusters.GATEWAY_PEERS, dict(endpoints)[clusters.GATEWAY_PEERS])
    return encode(dataclasses.replace(resources, endpoints=(*resources.endpoints, peers)))
