"""What is on the cluster, as far as the operator was told: by watches, by its own writes, and by lists now and then."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from shoal.operator.planner.kubernetes import FIELD_MANAGER, MANAGED_BY, OWNER_LABEL, Manifest

Key = tuple[str, str]
"""Namespace and name of an InferenceService."""
_Id = tuple[str, str]
"""Kind and name of an object."""


class ObjectStore:
    """Objects that carry the operator's labels, by the InferenceService that they belong to.

    Belongs to one event loop. Of two versions of an object the newer one stays, in whatever order they come.
    """

    def __init__(self) -> None:
        self._objects: defaultdict[Key, dict[_Id, Manifest]] = defaultdict(dict)

    def put(self, found: Manifest) -> Key | None:
        """Remembers it; whom it belongs to. None for objects that are not the operator's."""
        key = owner_key(found)
        if key is None:
            return None
        known = self._objects[key].get(_id_of(found))
        if known is None or version_of(known) <= version_of(found):
            self._objects[key][_id_of(found)] = found
        return key

    def remove(self, found: Manifest) -> Key | None:
        """Forgets it, unless it is there anew."""
        key = owner_key(found)
        if key is None:
            return None
        known = self._objects[key].get(_id_of(found))
        if known is not None and version_of(known) <= version_of(found):
            del self._objects[key][_id_of(found)]
        if not self._objects[key]:
            del self._objects[key]
        return key

    def replace(self, kind: str, found: Iterable[Manifest]) -> list[Manifest]:
        """All there is of a kind. Those that went without a watch having told of it; they are forgotten."""
        listed = {_uid(item) for item in found}
        known = [item for objects in self._objects.values() for item in objects.values() if item["kind"] == kind]
        lost = [item for item in known if _uid(item) not in listed]
        for item in lost:
            self.remove(item)
        return lost

    def get(self, key: Key, kind: str, name: str) -> Manifest | None:
        """The object, if it is known."""
        return self._objects.get(key, {}).get((kind, name))

    def of(self, key: Key, kind: str | None = None) -> list[Manifest]:
        """All objects of an InferenceService, or those of one kind, by name."""
        objects = self._objects.get(key, {})
        return [objects[item] for item in sorted(objects) if kind is None or item[0] == kind]


def owner_key(found: Manifest) -> Key | None:
    """The InferenceService that an object's labels name."""
    metadata = found["metadata"]
    labels = metadata.get("labels") or {}
    name = labels.get(OWNER_LABEL)
    if name is None:
        return None
    # Pods have the labels of their template, slices those of their Service.
    return (metadata["namespace"], name) if labels.get(MANAGED_BY) == FIELD_MANAGER else None


def _id_of(found: Manifest) -> _Id:
    return found["kind"], found["metadata"]["name"]


def _uid(found: Manifest) -> str:
    return str(found["metadata"].get("uid"))


def version_of(found: Manifest) -> int:
    """Of two versions of an object the larger is the newer one. What has none is taken as it comes."""
    text = found["metadata"].get("resourceVersion", "")
    return int(text) if text.isdigit() else 0
