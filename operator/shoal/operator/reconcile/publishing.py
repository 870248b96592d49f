"""Puts together what each mesh's Envoys are told: how its plan configures them, and who stands behind its Services."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shoal.operator.envoy import EnvoyOptions, cluster_load_assignment, render_resources
from shoal.operator.xds.endpoint_slices import ready_endpoints
from shoal.operator.xds.snapshot import Snapshot, encode
from shoal.operator.xds.store import SnapshotStore


@dataclass(frozen=True, slots=True)
class Backend:
    """Where a cluster's endpoints are found: a port of a Service, by its name."""

    service: str
    port_name: str


@dataclass(frozen=True, slots=True)
class _Mesh:
    options: EnvoyOptions
    namespace: str
    backends: Mapping[str, Backend]


class Publisher:
    """Fed with plans and EndpointSlices, in any order and as often as they come. Belongs to the store's event loop."""

    def __init__(self, store: SnapshotStore) -> None:
        self._store = store
        self._meshes: dict[str, _Mesh] = {}
        self._users: dict[tuple[str, str], set[str]] = {}
        """Namespace and Service -> meshes that have it behind a cluster."""
        self._slices: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}

    def configure(self, namespace: str, options: EnvoyOptions, backends: Mapping[str, Backend]) -> None:
        """Tells the Envoys of `options.node_cluster` so; backends: by cluster, of that namespace."""
        mesh = _Mesh(options, namespace, dict(backends))
        if self._meshes.get(options.node_cluster) == mesh:
            return
        self.remove(options.node_cluster, keep=True)
        self._meshes[options.node_cluster] = mesh
        for backend in mesh.backends.values():
            self._users.setdefault((namespace, backend.service), set()).add(options.node_cluster)
        endpoints = {cluster: self._endpoints(mesh, cluster) for cluster in mesh.backends}
        self._store.put(options.node_cluster, encode(render_resources(options, endpoints)))

    def remove(self, mesh_name: str, *, keep: bool = False) -> None:
        """The mesh is gone; its Envoys, while they are there, go on with what they have. keep: it is to be replaced."""
        mesh = self._meshes.pop(mesh_name, None)
        if mesh is None:
            return
        for backend in mesh.backends.values():
            users = self._users.get((mesh.namespace, backend.service), set())
            users.discard(mesh_name)
            if not users:
                self._users.pop((mesh.namespace, backend.service), None)
        if not keep:
            self._store.drop(mesh_name)

    def put_slice(self, namespace: str, service: str, name: str, content: Mapping[str, Any]) -> None:
        """An EndpointSlice of a Service is there, or has changed."""
        self._slices.setdefault((namespace, service), {})[name] = content
        self._publish(namespace, service)

    def drop_slice(self, namespace: str, service: str, name: str) -> None:
        """It is gone."""
        slices = self._slices.get((namespace, service), {})
        if slices.pop(name, None) is None:
            return
        if not slices:
            del self._slices[namespace, service]
        self._publish(namespace, service)

    def _publish(self, namespace: str, service: str) -> None:
        for name in self._users.get((namespace, service), ()):
            mesh, snapshot = self._meshes[name], self._store.get(name)
            assert snapshot is not None, "configured meshes have one"
            self._store.put(name, self._with_endpoints(snapshot, mesh, service))

    def _with_endpoints(self, snapshot: Snapshot, mesh: _Mesh, service: str) -> Snapshot:
        changed = [cluster for cluster, backend in mesh.backends.items() if backend.service == service]
        return snapshot.with_endpoints(
            [cluster_load_assignment(cluster, self._endpoints(mesh, cluster)) for cluster in changed]
        )

    def _endpoints(self, mesh: _Mesh, cluster: str) -> Any:
        backend = mesh.backends[cluster]
        slices = self._slices.get((mesh.namespace, backend.service), {})
        return ready_endpoints(slices.values(), backend.port_name)
