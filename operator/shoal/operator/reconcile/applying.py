"""Makes the objects on the cluster those of a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from shoal.operator.planner.kubernetes import ALL_KINDS, MANAGED_BY, Manifest
from shoal.operator.planner.kubernetes.plan import Kind
from shoal.operator.reconcile.api_client import ApiClient
from shoal.operator.reconcile.object_store import Key, ObjectStore, owner_key

_KIND_OF: Final = {kind.kind: kind for kind in ALL_KINDS}


class LeadLost(Exception):
    """Another operator may write by now, so this one does not."""


class NameTaken(Exception):
    """An object of that name belongs to somebody else; the message says whose name it is."""


@dataclass(frozen=True, slots=True)
class _Applied:
    """What was wanted of an object, and what became of it."""

    wanted: Manifest
    live: Manifest


@dataclass(slots=True)
class Changes:
    """What an `apply` did, by kind and name."""

    applied: list[str] = field(default_factory=list)
    pruned: list[str] = field(default_factory=list)


class Applier:
    """Applies what differs from what was applied last or was changed since, and nothing else.

    Its memory only saves calls: a new one applies everything once, to the same effect.
    """

    def __init__(self, api: ApiClient, store: ObjectStore, may_write: Callable[[], bool]) -> None:
        """may_write: asked before each write, since a plan takes longer than a Lease."""
        self._api = api
        self._may_write = may_write
        self._store = store
        self._applied: dict[Key, dict[tuple[str, str], _Applied]] = {}

    async def apply(self, key: Key, uid: str, plan: Sequence[Manifest]) -> Changes:
        """Raises NameTaken, LeadLost and ApiError: what came before in the plan is applied then, nothing is pruned."""
        memory = self._applied.setdefault(key, {})
        changes = Changes()
        for wanted in plan:
            identity = (wanted["kind"], wanted["metadata"]["name"])
            live = self._store.get(key, *identity)
            known = memory.get(identity)
            if live is not None and known is not None and known.wanted == wanted and _is_as_it_was(live, known):
                memory[identity] = _Applied(wanted, live)  # the same object next time: compared at a glance
                continue
            if live is None or not _is_ours(live, uid):
                await self._require_ours(wanted, key, uid)
            self._require_lead()
            applied = await self._api.apply(_KIND_OF[wanted["kind"]], wanted)
            self._store.put(applied)
            memory[identity] = _Applied(wanted, applied)
            changes.applied.append("/".join(identity))
        await self._prune(key, uid, plan, memory, changes)
        return changes

    def forget(self, key: Key) -> None:
        """The InferenceService is gone, or everything is to be applied again."""
        self._applied.pop(key, None)

    async def _prune(
        self,
        key: Key,
        uid: str,
        plan: Sequence[Manifest],
        memory: dict[tuple[str, str], _Applied],
        changes: Changes,
    ) -> None:
        planned = {(wanted["kind"], wanted["metadata"]["name"]) for wanted in plan}
        for live in self._store.of(key):
            identity = (live["kind"], live["metadata"]["name"])
            if live["kind"] not in _KIND_OF or identity in planned or not _is_ours(live, uid):
                continue
            self._require_lead()
            await self._api.delete(_KIND_OF[live["kind"]], live)
            self._store.remove(live)
            memory.pop(identity, None)
            changes.pruned.append("/".join(identity))

    def _require_lead(self) -> None:
        if not self._may_write():
            raise LeadLost("another operator may write by now")

    async def _require_ours(self, wanted: Manifest, key: Key, uid: str) -> None:
        """Server-side apply would quietly take over an object that somebody else made. One that the service owns is
        its own even if somebody took away the labels by which the operator sees it."""
        kind, metadata = _KIND_OF[wanted["kind"]], wanted["metadata"]
        live = await self._api.get(kind, metadata["namespace"], metadata["name"])
        owners = () if live is None else live["metadata"].get("ownerReferences", ())
        if live is None or owner_key(live) == key or any(owner.get("uid") == uid for owner in owners):
            return
        manager = (live["metadata"].get("labels") or {}).get(MANAGED_BY, "nobody that it names")
        of_other = owner_key(live)
        holder = f"InferenceService {of_other[1]}" if of_other else f"managed by {manager}"
        raise NameTaken(
            f"there is a {kind.kind} {metadata['name']} already ({holder}), which is left alone; rename or delete it, "
            "or rename this InferenceService"
        )


def kind_of(name: str) -> Kind:
    """The kind of a planned object."""
    return _KIND_OF[name]


def _is_ours(live: Manifest, uid: str) -> bool:
    """Of an object that is labelled as this service's: it belongs to it, or to nobody, as those do that are to outlive
    their service (`deletionPolicy: Orphan`)."""
    owners = live["metadata"].get("ownerReferences", ())
    return not owners or any(owner.get("uid") == uid for owner in owners)


def _is_as_it_was(live: Manifest, known: _Applied) -> bool:
    """Whether nobody has asked anything else of an object since: its status is no wish, nor are annotations that are
    not planned, which controllers and people write."""
    before = known.live
    if live is before:
        return True
    metadata = live["metadata"]
    if any(before["metadata"].get(name) != metadata.get(name) for name in ("uid", "labels", "ownerReferences")):
        return False
    planned = known.wanted["metadata"].get("annotations") or {}
    if not planned.items() <= (metadata.get("annotations") or {}).items():
        return False
    return all(before.get(name) == value for name, value in live.items() if name not in ("metadata", "status"))
