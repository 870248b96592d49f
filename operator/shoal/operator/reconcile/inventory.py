"""Takes in what watches and lists tell, in whatever order they come, and says what has to be looked at."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from shoal.operator.planner.kubernetes import FIELD_MANAGER, MANAGED_BY, Manifest
from shoal.operator.planner.kubernetes.envoy import node_cluster
from shoal.operator.planner.kubernetes.plan import Kind
from shoal.operator.reconcile.api_client import ApiClient, Listing
from shoal.operator.reconcile.object_store import Deletions, Key, ObjectStore, version_of, was_there
from shoal.operator.reconcile.reconciler import SERVICE_KIND
from shoal.operator.reconcile.work_queue import WorkQueue
from shoal.operator.xds import Publisher

OURS: Final = f"{MANAGED_BY}={FIELD_MANAGER}"


class Inventory:
    """Told by watches as their `Observer`, and by lists. Belongs to one event loop.

    A list is of one moment, and watches go on while it is on its way: each piece of news counts if it is not older
    than what is known, deletions included.
    """

    def __init__(
        self, services: dict[Key, Manifest], store: ObjectStore, queue: WorkQueue[Key], publisher: Publisher
    ) -> None:
        """services: InferenceServices as last told; kept here, and read by others."""
        self._services = services
        self._store = store
        self._queue = queue
        self._publisher = publisher
        self._deletions: Deletions[Key] = Deletions()

    def seen(self, found: Manifest) -> None:
        """An InferenceService is there, or changed."""
        key = _key_of(found)
        known = self._services.get(key)
        if self._deletions.hides(_scope_of(key), key, version_of(found)):
            return
        if known is not None and version_of(found) < version_of(known):
            return  # our own write was faster than the watch
        self._services[key] = found
        if known is None or _is_other(known, found):
            self._queue.add(key)

    def gone(self, found: Manifest) -> None:
        """An InferenceService is there no more."""
        key = _key_of(found)
        self._deletions.note(_scope_of(key), key, version_of(found))
        known = self._services.get(key)
        if known is None or version_of(found) < version_of(known):
            return
        del self._services[key]
        self._queue.forget(key)
        self._queue.add(key)
        self._publisher.remove(node_cluster(*key))

    def object_seen(self, found: Manifest) -> None:
        """Something that belongs to an InferenceService is there, or changed."""
        key = self._store.put(found)
        if key is None:
            return
        if found["kind"] == "EndpointSlice":
            # At once: calls go to pods that are no more until Envoy knows.
            self._publisher.put_slice(*_slice_names(found), found)
        elif key in self._services:
            self._queue.add(key)

    def object_gone(self, found: Manifest) -> None:
        """It is there no more."""
        key = self._store.remove(found)
        if key is None:
            return
        if found["kind"] == "EndpointSlice":
            self._publisher.drop_slice(*_slice_names(found))
        elif key in self._services:
            self._queue.add(key)

    async def list_objects(self, api: ApiClient, kind: Kind, namespace: str | None) -> None:
        """Reads anew what there is of a kind. Raises ApiError."""
        listing = await api.listing(kind, namespace, OURS)
        for lost in self._store.missing(kind.kind, namespace, listing.items, listing.version):
            self.object_gone(lost)
        for item in listing.items:
            self.object_seen(item)

    async def list_services(self, api: ApiClient, namespace: str | None) -> int:
        """Reads anew what InferenceServices there are, and how many. Raises ApiError."""
        listing = await api.listing(SERVICE_KIND, namespace)
        self._deletions.listed(SERVICE_KIND.kind, namespace, listing.version)
        for lost in list(self._missing(listing, namespace)):
            self.gone(lost)
        for item in listing.items:
            self.seen(item)
        return len(listing.items)

    def _missing(self, listing: Listing, namespace: str | None) -> Iterable[Manifest]:
        listed = {_key_of(item) for item in listing.items}
        for key, found in self._services.items():
            if key not in listed and namespace in (None, key[0]) and was_there(found, listing.version):
                yield found


def _key_of(found: Manifest) -> Key:
    return found["metadata"]["namespace"], found["metadata"]["name"]


def _scope_of(key: Key) -> tuple[str, str | None]:
    return SERVICE_KIND.kind, key[0]


def _slice_names(found: Manifest) -> tuple[str, str, str]:
    """Namespace, Service and the slice's own name."""
    metadata = found["metadata"]
    return metadata["namespace"], metadata["labels"].get("kubernetes.io/service-name", ""), metadata["name"]


def _is_other(known: Manifest, found: Manifest) -> bool:
    """Whether there is something to do. Our own status writes come back from the watch."""
    before, after = known["metadata"], found["metadata"]
    names = ("uid", "generation", "deletionTimestamp")
    return any(before.get(name) != after.get(name) for name in names) or known.get("status") != found.get("status")
