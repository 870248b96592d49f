"""What operators tell each other of their Envoys: one writes the status, and Envoys connect to any.

In one Lease beside the one that says who writes, an annotation for each operator that does not write. It renews its own
and drops those that nobody renews.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from shoal.operator.planner.kubernetes import Manifest
from shoal.operator.planner.kubernetes.plan import Kind
from shoal.operator.reconcile.api_client import ApiClient, ApiError, collection_path, object_path
from shoal.operator.reconcile.routes import RoutesState

LEASE_NAME: Final = "shoal-operator-envoys"
INTERVAL_S: Final = 5.0
"""How often operators look, and tell if there is something else to tell."""
RENEW_S: Final = 15.0
MAX_AGE_S: Final = 60.0
"""Of a report that counts, by clocks of several machines."""
_LEASE: Final = Kind("coordination.k8s.io/v1", "Lease", "leases")
_PREFIX: Final = "envoys.shoal.dev/"
_MAX_REJECTION: Final = 300
_MAX_BYTES: Final = 60_000
"""Of one report: an object's annotations have 256 KiB together."""
_ENCODER: Final = msgspec.json.Encoder(order="deterministic")


class _Report(msgspec.Struct, frozen=True):
    identity: str
    at_unix_s: float
    envoys: dict[str, RoutesState]
    """By the name of their cluster."""


class EnvoyReports:
    """This operator's side of it. Belongs to one event loop."""

    def __init__(
        self,
        api: ApiClient,
        namespace: str,
        identity: str,
        *,
        on_change: Callable[[str], object],
        now_unix_s: Callable[[], float] = time.time,
    ) -> None:
        """on_change: called with the name of each cluster of which others have come to say something else."""
        self._api = api
        self._namespace = namespace
        self._identity = identity
        self._own = _PREFIX + hashlib.sha256(identity.encode()).hexdigest()[:16]
        self._on_change = on_change
        self._now_unix_s = now_unix_s
        self._others: dict[str, RoutesState] = {}
        self._told: tuple[bytes, float] = (b"", 0.0)

    def of_others(self, cluster: str) -> RoutesState:
        """What the Envoys do that are connected elsewhere, as last read."""
        return self._others.get(cluster, RoutesState())

    async def exchange(self, envoys: Mapping[str, RoutesState], *, is_writer: bool) -> None:
        """Reads if this operator writes the status, else tells. Raises ApiError."""
        if is_writer:
            self._note(await self._api.get(_LEASE, self._namespace, LEASE_NAME))
            return
        self._others.clear()
        told = _ENCODER.encode(_fitting(envoys))
        now_s = self._now_unix_s()
        if told == self._told[0] and now_s - self._told[1] < RENEW_S:
            return
        found = await self._api.get(_LEASE, self._namespace, LEASE_NAME)
        report = _Report(self._identity, now_s, _fitting(envoys))
        kept = {key: text for key, text in _texts(found).items() if self._read(text) is not None}
        annotations = kept | {self._own: _ENCODER.encode(report).decode()}
        metadata = {"name": LEASE_NAME, "namespace": self._namespace, "annotations": annotations}
        lease = {"apiVersion": _LEASE.api_version, "kind": _LEASE.kind, "metadata": metadata}
        try:
            if found is None:
                await self._api.request("POST", collection_path(_LEASE, self._namespace), lease)
            else:
                metadata["resourceVersion"] = found["metadata"]["resourceVersion"]
                await self._api.request("PUT", object_path(_LEASE, self._namespace, LEASE_NAME), lease)
        except ApiError as error:
            if error.code != 409:
                raise  # another one was faster; the next round is soon
        else:
            self._told = (told, now_s)

    def _note(self, found: Manifest | None) -> None:
        reports = [self._read(text) for key, text in _texts(found).items() if key != self._own]
        others: dict[str, RoutesState] = {}
        for report in reports:
            for cluster, state in (report.envoys if report is not None else {}).items():
                others[cluster] = others[cluster].joined(state) if cluster in others else state
        changed = [name for name in {*others, *self._others} if others.get(name) != self._others.get(name)]
        self._others = others
        for cluster in changed:
            self._on_change(cluster)

    def _read(self, text: str) -> _Report | None:
        """None: too old, or not of this version."""
        try:
            report = msgspec.json.decode(text, type=_Report)
        except msgspec.MsgspecError:
            return None
        return report if self._now_unix_s() - report.at_unix_s <= MAX_AGE_S else None


def _texts(found: Manifest | None) -> dict[str, str]:
    annotations = (found or {"metadata": {}})["metadata"].get("annotations") or {}
    return {key: text for key, text in annotations.items() if key.startswith(_PREFIX)}


def _fitting(envoys: Mapping[str, RoutesState]) -> dict[str, RoutesState]:
    """Those with something wrong first, as far as there is room."""
    told: dict[str, RoutesState] = {}
    left = _MAX_BYTES
    for name in sorted(envoys, key=lambda each: (not envoys[each].rejection, each)):
        state = envoys[name].shortened(_MAX_REJECTION)
        left -= len(name) + len(_ENCODER.encode(state)) + 4
        if left < 0:
            break
        told[name] = state
    return told
