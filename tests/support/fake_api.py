"""An API server's objects in memory, behind the real client's calls: for what cannot be timed with a real one."""

from __future__ import annotations

import copy
import inspect
import itertools
import re
from collections.abc import Awaitable, Callable
from typing import Any

from shoal.operator.planner.kubernetes import ALL_KINDS, Manifest
from shoal.operator.reconcile.api_client import ApiClient, ApiError
from shoal.operator.reconcile.handlers import Observer
from shoal.operator.reconcile.reconciler import SERVICE_KIND
from shoal.operator.reconcile.rights import DERIVED

_PATH = re.compile(
    r"/apis?/(?P<api>.+?)(?:/namespaces/(?P<ns>[^/]+))?/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+))?(?P<sub>/status)?$"
)
_KINDS = {kind.plural: kind for kind in (*ALL_KINDS, *DERIVED, SERVICE_KIND)}
Hook = Callable[[str, str], Awaitable[None] | None]
"""Called with method and path. May wait, and may raise ApiError."""
_Id = tuple[str, str, str]
"""Plural, namespace and name."""


class FakeApi(ApiClient):
    """Applies by merging, counts versions, and tells its observer of each change at once."""

    def __init__(self, other: FakeApi | None = None) -> None:
        """other: a client of the same API server."""
        self.objects: dict[_Id, Manifest] = {} if other is None else other.objects
        self._versions: list[int] = [0] if other is None else other._versions
        self.writes: list[str] = []
        """`PATCH smol-worker`: those that were asked for, Events and Leases among them."""
        self.events: list[Manifest] = []
        self.before: Hook = _pass
        """Before a call is carried out."""
        self.after: Hook = _pass
        """After that, while its answer is on its way."""
        self.observer: Observer | None = None
        self._uids = itertools.count(1)

    @property
    def version(self) -> int:
        """Of the last change."""
        return self._versions[0]

    async def request(
        self, method: str, path: str, body: Any = None, *, query: Any = None, content_type: str = "application/json"
    ) -> Manifest:
        """One call. Raises ApiError."""
        await _run(self.before, method, path)
        answer = copy.deepcopy(self._carry_out(method, path, copy.deepcopy(body), query or {}))
        await _run(self.after, method, path)
        return answer

    def put(self, manifest: Manifest) -> Manifest:
        """As somebody else creates or changes it."""
        kind = next(kind for kind in _KINDS.values() if kind.kind == manifest["kind"])
        metadata = manifest["metadata"]
        where = (kind.plural, metadata["namespace"], metadata["name"])
        before = self.objects.get(where, {})
        kept = {name: before[name] for name in ("metadata", "status") if name in before}
        after = _merged(kept, copy.deepcopy(manifest))
        if "annotations" in metadata:
            after["metadata"]["annotations"] = dict(metadata["annotations"])
        return self._keep(where, after)

    def delete_object(self, plural: str, namespace: str, name: str) -> None:
        """As somebody else does."""
        found = self.objects.pop((plural, namespace, name))
        self._versions[0] += 1
        self._tell({**found, "metadata": {**found["metadata"], "resourceVersion": str(self.version)}}, gone=True)

    def names(self, kind: str) -> list[str]:
        """Of all objects of a kind."""
        return sorted(found["metadata"]["name"] for found in self.objects.values() if found["kind"] == kind)

    def _carry_out(self, method: str, path: str, body: Any, query: Any) -> Manifest:
        match = _PATH.fullmatch(path)
        assert match is not None, path
        where = (match["plural"], match["ns"] or "", match["name"] or "")
        if method != "GET":
            self.writes.append(f"{method} {match['name'] or match['plural']}")
        if method == "GET" and not match["name"]:
            return self._list(match["plural"], match["ns"], query.get("labelSelector", ""))
        if method == "POST" and match["plural"] == "events":
            self.events.append(body)
            return {**body}
        found = self.objects.get(where)
        if method == "POST":
            where = (*where[:2], body["metadata"]["name"])
            if where in self.objects:
                raise ApiError(409, "AlreadyExists", f"{where[2]} exists")
            return self._apply(where, body, "")
        if method == "PATCH" and (found is not None or not match["sub"]):
            return self._apply(where, body, match["sub"] or "")
        if found is None:
            raise ApiError(404, "NotFound", f"{where[0]} {where[2]} not found")
        if method == "PUT":
            if body["metadata"].get("resourceVersion") != found["metadata"]["resourceVersion"]:
                raise ApiError(409, "Conflict", f"{where[2]} has been modified")
            return self._apply(where, body, "")
        if method == "DELETE":
            if body["preconditions"]["uid"] != found["metadata"]["uid"]:
                raise ApiError(409, "Conflict", "another uid")
            self.delete_object(*where)
        return found

    def _list(self, plural: str, namespace: str | None, selector: str) -> Manifest:
        wanted = dict(part.split("=") for part in selector.split(",") if part)
        items = [
            found
            for (kind, where, _), found in sorted(self.objects.items())
            if kind == plural
            and namespace in (None, where)
            and wanted.items() <= (found["metadata"].get("labels") or {}).items()
        ]
        return {"metadata": {"resourceVersion": str(self.version)}, "items": items}

    def _apply(self, where: _Id, body: Manifest, subresource: str) -> Manifest:
        before = self.objects.get(where)
        after: Manifest = _merged(before or {}, {"status": body["status"]} if subresource else body)
        if subresource:
            after["status"] = _without_null(after["status"])
        return self._keep(where, after)

    def _keep(self, where: _Id, after: Manifest) -> Manifest:
        before = self.objects.get(where)
        metadata = after["metadata"]
        if before is None:
            metadata |= {"uid": f"uid-{next(self._uids)}", "generation": 1}
        elif after == before:
            return before
        elif after.get("spec") != before.get("spec"):
            metadata["generation"] += 1
        self._versions[0] += 1
        metadata["resourceVersion"] = str(self.version)
        self.objects[where] = after
        self._tell(after)
        return after

    def _tell(self, found: Manifest, gone: bool = False) -> None:
        if self.observer is None or found["kind"] == "Lease":
            return
        told = copy.deepcopy(found)
        if found["kind"] == SERVICE_KIND.kind:
            (self.observer.gone if gone else self.observer.seen)(told)
        else:
            (self.observer.object_gone if gone else self.observer.object_seen)(told)


def _merged(before: Any, after: Any) -> Any:
    """Of two maps each field, the later one's where both have it."""
    if not isinstance(before, dict) or not isinstance(after, dict):
        return after
    return {**before, **{name: _merged(before.get(name), value) for name, value in after.items()}}


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_null(item) for name, item in value.items() if item is not None}
    return value


def _pass(method: str, path: str) -> None:
    pass


async def _run(hook: Hook, method: str, path: str) -> None:
    waiting = hook(method, path)
    if inspect.isawaitable(waiting):
        await waiting
