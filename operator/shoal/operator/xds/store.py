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
        self._waiting: dict[str, set[str]] = {}
        """Envoys that have not accepted all that they were told first."""
        self._followers: dict[str, set[str]] = {}
        """Nodes that are none."""
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

    def joined(self, cluster: str, node: str, *, is_envoy: bool = True) -> None:
        """A stream of that node began: an Envoy, or somebody who only wants to know of endpoints."""
        nodes = self._nodes.setdefault(cluster, {})
        nodes[node] = nodes.get(node, 0) + 1
        if not is_envoy:
            self._followers.setdefault(cluster, set()).add(node)
        elif nodes[node] == 1:
            self._waiting.setdefault(cluster, set()).add(node)
        self._on_change(cluster)

    def settled(self, cluster: str, node: str) -> None:
        """It has accepted all that it is to have, of every kind."""
        waiting = self._waiting.get(cluster, set())
        if node in waiting:
            waiting.discard(node)
            self._on_change(cluster)

    def left(self, cluster: str, node: str) -> None:
        """It ended. What the Envoy rejected is forgotten with its last one."""
        nodes = self._nodes[cluster]
        nodes[node] -= 1
        if not nodes[node]:
            del nodes[node]
            for kind in Kind:
                self._rejections.pop((cluster, node, kind), None)
            for names in (self._waiting, self._followers):
                names.get(cluster, set()).discard(node)
            if not nodes:
                for each in (self._nodes, self._waiting, self._followers):
                    each.pop(cluster, None)
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
        """Envoys and followers that are connected."""
        return tuple(sorted(self._nodes.get(cluster, ())))

    def envoys(self, cluster: str) -> tuple[int, int]:
        """How many are connected, and how many of them have yet to accept what they were told first."""
        num_nodes = len(self._nodes.get(cluster, ())) - len(self._followers.get(cluster, ()))
        return num_nodes, len(self._waiting.get(cluster, ()))

    @property
    def clusters(self) -> tuple[str, ...]:
        """Those of which somebody is connected."""
        return tuple(self._nodes)

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
