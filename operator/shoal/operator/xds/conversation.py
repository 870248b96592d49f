"""One stream of aggregated discovery as a state machine: requests and snapshots in, updates out. No I/O.

Follows "xDS REST and gRPC protocol" of Envoy's documentation, for both variants. Make before break: clusters and their
endpoints first; listeners and routes once the Envoy has accepted those; clusters that are no longer needed go when it
has accepted the routes that do without them. What an Envoy rejects is not sent again until it is another.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from shoal.operator.xds.snapshot import Kind, Resource, Snapshot, version_of

_FOUNDATION: Final = (Kind.CLUSTER, Kind.ENDPOINTS)
_TRAFFIC: Final = (Kind.LISTENER, Kind.ROUTES)


@dataclass(frozen=True, slots=True)
class Request:
    """What an Envoy says, in the terms of both variants."""

    kind: Kind
    nonce: str = ""
    """Of the update that it answers; "" when it answers none."""
    error: str | None = None
    """Why it rejects that update."""
    subscribe: Collection[str] = ()
    """State of the world: all names; changes: further ones."""
    unsubscribe: Collection[str] = ()
    """Changes only."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Changes only: what it has already, of an earlier stream."""


@dataclass(frozen=True, slots=True)
class Update:
    """What it is told."""

    kind: Kind
    nonce: str
    version: str
    resources: tuple[Resource, ...]
    """State of the world: all; changes: those that are other than before."""
    removed: tuple[str, ...] = ()
    """Changes only."""


@dataclass(slots=True)
class _Topic:
    """What is known about one kind."""

    is_open: bool = False
    """The Envoy has asked for it."""
    names: set[str] = field(default_factory=set)
    """That it asked for, if the kind is not listed."""
    has: dict[str, str] = field(default_factory=dict)
    """Versions by name, of what it was sent or says it has."""
    bodies: dict[str, Resource] = field(default_factory=dict)
    """What it was sent."""
    due: set[str] = field(default_factory=set)
    """Names to send although the version is the same."""
    must_answer: bool = False
    nonce: str = ""
    is_accepted: bool = False
    """The last update."""

    def forget(self, name: str) -> None:
        self.has.pop(name, None)
        self.bodies.pop(name, None)


class Conversation:
    """With one Envoy. Owned by the coroutine that serves its stream."""

    def __init__(self, *, by_changes: bool) -> None:
        """by_changes: the variant, incremental ("delta") or state of the world."""
        self._by_changes = by_changes
        self._snapshot: Snapshot | None = None
        self._topics = {kind: _Topic() for kind in Kind}
        self._nonces = itertools.count(1)

    def is_current(self, request: Request) -> bool:
        """Whether it is about the last update of its kind, or about none."""
        return request.nonce in ("", self._topics[request.kind].nonce)

    def version_of_last(self, kind: Kind) -> str:
        """Of the last update of that kind: what is rejected when it is."""
        return version_of(self._topics[kind].has)

    @property
    def is_settled(self) -> bool:
        """Whether the Envoy has accepted all that it is to have, down to its listeners."""
        snapshot = self._snapshot
        return snapshot is not None and self._topics[Kind.LISTENER].is_open and self._is_settled(snapshot, tuple(Kind))

    def hear(self, request: Request) -> list[Update]:
        """Updates in the order to send them in."""
        topic = self._topics[request.kind]
        if not self.is_current(request):
            return []  # another update has overtaken the one it is about
        if request.nonce:
            topic.is_accepted = request.error is None
        if not topic.is_open:
            topic.is_open = topic.must_answer = True
            topic.has = dict(request.versions)
        if not request.kind.is_listed:
            self._subscribe(topic, request)
        return self._advance()

    def tell(self, snapshot: Snapshot) -> list[Update]:
        """From now on, `snapshot` is what it should have."""
        self._snapshot = snapshot
        return self._advance()

    def _subscribe(self, topic: _Topic, request: Request) -> None:
        subscribed = set(request.subscribe)
        if self._by_changes:
            topic.due |= subscribed
            topic.names |= subscribed | set(request.versions)
            gone = set(request.unsubscribe)
        else:
            gone = topic.names - subscribed
            topic.names |= subscribed
        topic.names -= gone
        topic.due -= gone
        for name in gone:
            topic.forget(name)

    def _advance(self) -> list[Update]:
        """Everything that may be sent at this moment."""
        snapshot = self._snapshot
        if snapshot is None:
            return []
        updates: list[Update] = []
        may_remove = self._topics[Kind.LISTENER].is_open and self._is_settled(snapshot, _TRAFFIC)
        for kind in _FOUNDATION:
            kept = () if may_remove else self._topics[kind].has.keys() - snapshot.of(kind).keys()
            self._update(kind, snapshot, frozenset(kept), updates)
        if self._is_founded(snapshot):
            for kind in _TRAFFIC:
                self._update(kind, snapshot, frozenset(), updates)
        return updates

    def _is_founded(self, snapshot: Snapshot) -> bool:
        """Whether routes may point at all clusters: the Envoy has accepted them, and knows whom they consist of."""
        needed = snapshot.of(Kind.CLUSTER).keys() & snapshot.of(Kind.ENDPOINTS).keys()
        return self._is_settled(snapshot, _FOUNDATION) and needed <= self._topics[Kind.ENDPOINTS].names

    def _is_settled(self, snapshot: Snapshot, kinds: Collection[Kind]) -> bool:
        """Whether it has accepted what the snapshot says of these kinds, as far as it asked."""
        return all(self._has_accepted(self._topics[kind], self._wanted(kind, snapshot)) for kind in kinds)

    def _has_accepted(self, topic: _Topic, wanted: Mapping[str, Resource]) -> bool:
        is_sent = all(topic.has.get(name) == resource.version for name, resource in wanted.items())
        return not topic.is_open or (is_sent and topic.is_accepted and not topic.must_answer)

    def _wanted(self, kind: Kind, snapshot: Snapshot) -> dict[str, Resource]:
        resources = snapshot.of(kind)
        names = resources.keys() if kind.is_listed else self._topics[kind].names & resources.keys()
        return {name: resources[name] for name in sorted(names)}

    def _update(self, kind: Kind, snapshot: Snapshot, kept: Collection[str], updates: list[Update]) -> None:
        """Appends what is to be said about a kind, if anything is. kept: names that stay although they are gone."""
        topic, wanted = self._topics[kind], self._wanted(kind, snapshot)
        if not topic.is_open:
            return
        changed = [name for name, resource in wanted.items() if topic.has.get(name) != resource.version]
        removed = [name for name in topic.has if name not in wanted and name not in kept]
        if self._by_changes:
            removed += topic.due - wanted.keys() - set(removed)  # asked for, and not there
        due = topic.due & wanted.keys()
        if not (changed or removed or due or topic.must_answer):
            topic.due.clear()
            return
        said = wanted.keys() if not self._by_changes else due | set(changed)
        resources = [wanted[name] for name in wanted if name in said]
        if not self._by_changes:
            resources += [topic.bodies[name] for name in kept if name in topic.bodies]
        for name in removed:
            topic.forget(name)
        for resource in resources:
            topic.has[resource.name], topic.bodies[resource.name] = resource.version, resource
        topic.due.clear()
        topic.must_answer = topic.is_accepted = False
        topic.nonce = str(next(self._nonces))
        gone = tuple(removed) if self._by_changes else ()
        updates.append(Update(kind, topic.nonce, version_of(topic.has), tuple(resources), gone))
        self._refresh(kind, changed)

    def _refresh(self, kind: Kind, changed: Collection[str]) -> None:
        """Envoy warms a changed cluster or listener until what it refers to is sent again, though that is the same."""
        if kind is Kind.CLUSTER:
            endpoints = self._topics[Kind.ENDPOINTS]
            endpoints.due |= endpoints.names & set(changed)
        elif kind is Kind.LISTENER and changed:
            routes = self._topics[Kind.ROUTES]
            routes.due |= routes.names
