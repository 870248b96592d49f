"""Which Envoys are told what, and what they thought of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from shoal.operator.xds.snapshot import Kind, Snapshot


@dataclass(frozen=True, slots=True)
class Rejection:
    """An Envoy refused an update (NACK), and goes on with what it had."""

    cluster: str
    node: str
    kind: Kind
    version: str
    message: str


class SnapshotStore:
    """By `node.cluster`. Belongs to one event loop; snapshots are replaced whole."""

    def __init__(self, on_change: Callable[[str], object] = bool) -> None:
        """on_change: called with a cluster's name when one of its Envoys joined, left, rejected or accepted."""
        self._snapshots: dict[str, Snapshot] = {}
        self._changed: dict[str, asyncio.Event] = {}
        self._rejections: dict[tuple[str, str, Kind], Rejection] = {}
        self._nodes: dict[str, dict[str, int]] = {}
        self._on_change = on_change

    def get(self, cluster: str) -> Snapshot | None:
        """None: nobody has said yet what Envoys of that name are to do."""
        return self._snapshots.get(cluster)

    def put(self, cluster: str, snapshot: Snapshot) -> None:
        """From now on, for all Envoys of that name."""
        self._snapshots[cluster] = snapshot
        self._wake(cluster)

    def drop(self, cluster: str) -> None:
        """Envoys that are still there keep what they have."""
        self._snapshots.pop(cluster, None)

    async def changed(self, cluster: str, seen: Snapshot | None) -> None:
        """Returns when the snapshot is another than `seen`."""
        while self._snapshots.get(cluster) is seen:
            await self._changed.setdefault(cluster, asyncio.Event()).wait()

    def joined(self, cluster: str, node: str) -> None:
        """A stream of that Envoy began."""
        nodes = self._nodes.setdefault(cluster, {})
        nodes[node] = nodes.get(node, 0) + 1
        self._on_change(cluster)

    def left(self, cluster: str, node: str) -> None:
        """It ended. What the Envoy rejected is forgotten with its last one."""
        nodes = self._nodes[cluster]
        nodes[node] -= 1
        if not nodes[node]:
            del nodes[node]
            for kind in Kind:
                self._rejections.pop((cluster, node, kind), None)
            if not nodes:
                del self._nodes[cluster]
                self._changed.pop(cluster, None)
        self._on_change(cluster)

    def accepted(self, cluster: str, node: str, kind: Kind) -> None:
        """ACK."""
        if self._rejections.pop((cluster, node, kind), None) is not None:
            self._on_change(cluster)

    def rejected(self, rejection: Rejection) -> None:
        """NACK."""
        self._rejections[rejection.cluster, rejection.node, rejection.kind] = rejection
        self._on_change(rejection.cluster)

    def nodes(self, cluster: str) -> tuple[str, ...]:
        """Envoys that are connected."""
        return tuple(sorted(self._nodes.get(cluster, ())))

    def rejections(self, cluster: str) -> tuple[Rejection, ...]:
        """What connected Envoys refuse at the moment: a condition of whoever made the snapshot."""
        return tuple(rejection for rejection in self._rejections.values() if rejection.cluster == cluster)

    @property
    def num_nodes(self) -> int:
        """Envoys and followers that are connected. May be asked by any thread."""
        return sum(len(nodes) for nodes in list(self._nodes.values()))

    @property
    def num_rejections(self) -> int:
        """Updates that one of them refuses at the moment. May be asked by any thread."""
        return len(self._rejections)

    def _wake(self, cluster: str) -> None:
        event = self._changed.pop(cluster, None)
        if event is not None:
            event.set()
