"""What is on the cluster, as far as the operator was told: by watches, by its own writes, and by lists now and then."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from shoal.operator.planner.kubernetes import FIELD_MANAGER, MANAGED_BY, OWNER_LABEL, Manifest

Key = tuple[str, str]
"""Namespace and name of an InferenceService."""
_Id = tuple[str, str]
"""Kind and name of an object."""
_I = TypeVar("_I")


class Deletions(Generic[_I]):
    """What went, and when, so that an older answer does not bring it back.

    A list, or the answer to a write, may be on its way while a watch tells of a deletion. Each deletion is kept until
    two lists of its scope have been taken in since: whoever was told of that object before has had its answer by then.
    """

    def __init__(self) -> None:
        self._versions: defaultdict[tuple[str, str | None], dict[_I, int]] = defaultdict(dict)
        self._listed: dict[tuple[str, str | None], int] = {}

    def note(self, scope: tuple[str, str | None], what: _I, version: int) -> None:
        """It went at that version. scope: kind and namespace."""
        known = self._versions[scope]
        known[what] = max(version, known.get(what, 0))

    def hides(self, scope: tuple[str, str | None], what: _I, version: int) -> bool:
        """Whether that version of it is from before it went. Something without a version is not."""
        return 0 < version <= self._versions.get(scope, {}).get(what, 0)

    def listed(self, kind: str, namespace: str | None, version: int) -> None:
        """A list of that version was taken in; namespace: None for one of all."""
        before = self._listed.get((kind, namespace), 0)
        self._listed[kind, namespace] = version
        for scope in [each for each in self._versions if each[0] == kind and namespace in (None, each[1])]:
            kept = {what: gone for what, gone in self._versions[scope].items() if gone > before}
            if kept:
                self._versions[scope] = kept
            else:
                del self._versions[scope]

    def __len__(self) -> int:
        return sum(map(len, self._versions.values()))


class ObjectStore:
    """Objects that carry the operator's labels, by the InferenceService that they belong to.

    Belongs to one event loop. Of two versions of an object the newer one stays, and its deletion if that is newer, in
    whatever order they come.
    """

    def __init__(self) -> None:
        self._objects: defaultdict[Key, dict[_Id, Manifest]] = defaultdict(dict)
        self._deletions: Deletions[_Id] = Deletions()

    def put(self, found: Manifest) -> Key | None:
        """Remembers it; whom it belongs to. None for objects that are not the operator's, and for old news."""
        key = owner_key(found)
        if key is None or self._deletions.hides(_scope_of(found), _id_of(found), version_of(found)):
            return None
        known = self._objects.get(key, {}).get(_id_of(found))
        if known is not None and version_of(known) > version_of(found):
            return None
        self._objects[key][_id_of(found)] = found
        return key

    def remove(self, found: Manifest) -> Key | None:
        """Forgets it; whom it belonged to. None if it was not there, or is there anew."""
        key = owner_key(found)
        if key is None:
            return None
        self._deletions.note(_scope_of(found), _id_of(found), version_of(found))
        known = self._objects.get(key, {}).get(_id_of(found))
        if known is None or version_of(known) > version_of(found):
            return None
        del self._objects[key][_id_of(found)]
        if not self._objects[key]:
            del self._objects[key]
        return key

    def missing(self, kind: str, namespace: str | None, listed: Iterable[Manifest], version: int) -> list[Manifest]:
        """What is known of a kind, in a namespace or in all, and was not there any more when it was listed, at that
        version. What came later is not among it, although the list lacks it."""
        uids = {_uid(item) for item in listed}
        self._deletions.listed(kind, namespace, version)
        known = [item for item in self._of_kind(kind) if namespace in (None, item["metadata"]["namespace"])]
        return [item for item in known if _uid(item) not in uids and was_there(item, version)]

    def get(self, key: Key, kind: str, name: str) -> Manifest | None:
        """The object, if it is known."""
        return self._objects.get(key, {}).get((kind, name))

    def of(self, key: Key, kind: str | None = None) -> list[Manifest]:
        """All objects of an InferenceService, or those of one kind, by name."""
        objects = self._objects.get(key, {})
        return [objects[item] for item in sorted(objects) if kind is None or item[0] == kind]

    @property
    def num_deletions(self) -> int:
        """That are remembered for a while."""
        return len(self._deletions)

    def _of_kind(self, kind: str) -> Iterator[Manifest]:
        return (item for objects in self._objects.values() for item in objects.values() if item["kind"] == kind)


def owner_key(found: Manifest) -> Key | None:
    """The InferenceService that an object's labels name."""
    metadata = found["metadata"]
    labels = metadata.get("labels") or {}
    name = labels.get(OWNER_LABEL)
    if name is None:
        return None
    # Pods have the labels of their template, slices those of their Service.
    return (metadata["namespace"], name) if labels.get(MANAGED_BY) == FIELD_MANAGER else None


def _scope_of(found: Manifest) -> tuple[str, str | None]:
    return found["kind"], found["metadata"]["namespace"]


def _id_of(found: Manifest) -> _Id:
    return found["kind"], found["metadata"]["name"]


def _uid(found: Manifest) -> str:
    return str(found["metadata"].get("uid"))


def version_of(found: Manifest) -> int:
    """Of two versions of an object the larger is the newer one. What has none is taken as it comes."""
    text = found["metadata"].get("resourceVersion", "")
    return int(text) if text.isdigit() else 0


def was_there(found: Manifest, version: int) -> bool:
    """Whether a list of that version has it, if it still existed then. 0: a list that does not say, and has all."""
    return not version or version_of(found) <= version
