"""Which of several operators writes: the one that holds a Lease. The others watch, and tell Envoys what they see."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections.abc import AsyncIterator, Callable
from typing import Final

import structlog

from shoal.operator.planner.kubernetes import Manifest
from shoal.operator.planner.kubernetes.plan import Kind
from shoal.operator.reconcile.api_client import ApiClient, ApiError, collection_path, object_path

LEASE_NAME: Final = "shoal-operator"
_LEASE: Final = Kind("coordination.k8s.io/v1", "Lease", "leases")
_log = structlog.get_logger("shoal.operator")


class Leadership:
    """One operator's claim to a Lease.

    A holder that has not renewed for `duration_s`, by the watcher's own clock since it saw the last change, is taken
    for dead. Whoever holds the Lease stops writing earlier than that when it cannot renew.
    """

    def __init__(
        self,
        api: ApiClient,
        namespace: str,
        identity: str,
        *,
        on_change: Callable[[bool], object],
        duration_s: float = 15.0,
        renew_s: float = 2.0,
    ) -> None:
        """on_change: called with whether this operator leads from now on."""
        self._api = api
        self._namespace = namespace
        self._identity = identity
        self._on_change = on_change
        self._duration_s = duration_s
        self._renew_s = renew_s
        self._leads = False
        self._seen: tuple[str, float] = ("", 0.0)
        """The Lease's version, and when it was first seen."""
        self._renewed_s = 0.0

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Claims the Lease for as long as the block runs, and gives it up at its end."""
        claiming = asyncio.ensure_future(self._claim())
        try:
            yield
        finally:
            claiming.cancel()
            await asyncio.gather(claiming, return_exceptions=True)
            if self._leads:
                self._set(False)
                with contextlib.suppress(ApiError):
                    await self._release()

    async def _claim(self) -> None:
        while True:
            now_s = asyncio.get_running_loop().time()
            try:
                holds = await self._try(now_s)
            except ApiError as error:
                # Others may take it once the duration is over; a third of it is for clocks and slow calls.
                holds = self._leads and now_s - self._renewed_s < self._duration_s * 2 / 3
                _log.warning("the lease cannot be renewed", error=str(error), leads=holds)
            else:
                self._renewed_s = now_s if holds else self._renewed_s
            self._set(holds)
            await asyncio.sleep(self._renew_s)

    async def _try(self, now_s: float) -> bool:
        """Takes or renews the Lease if that may be."""
        found = await self._api.get(_LEASE, self._namespace, LEASE_NAME)
        if found is None:
            return await self._write("POST", collection_path(_LEASE, self._namespace), self._lease(None))
        version, spec = found["metadata"]["resourceVersion"], found.get("spec", {})
        if version != self._seen[0]:
            self._seen = (version, now_s)
        is_ours = spec.get("holderIdentity") == self._identity
        is_free = not spec.get("holderIdentity") or now_s - self._seen[1] > self._duration_s
        if not is_ours and not is_free:
            return False
        return await self._write("PUT", object_path(_LEASE, self._namespace, LEASE_NAME), self._lease(found))

    async def _write(self, method: str, path: str, lease: Manifest) -> bool:
        try:
            await self._api.request(method, path, lease)
        except ApiError as error:
            if error.code == 409:  # another one was faster
                return False
            raise
        return True

    async def _release(self) -> None:
        found = await self._api.get(_LEASE, self._namespace, LEASE_NAME)
        if found is not None and found["spec"].get("holderIdentity") == self._identity:
            found["spec"]["holderIdentity"] = ""
            await self._write("PUT", object_path(_LEASE, self._namespace, LEASE_NAME), found)

    def _lease(self, found: Manifest | None) -> Manifest:
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = dict(found.get("spec", {})) if found is not None else {}
        if spec.get("holderIdentity") != self._identity:
            spec |= {"acquireTime": now, "leaseTransitions": spec.get("leaseTransitions", 0) + 1}
        spec |= {"holderIdentity": self._identity, "renewTime": now, "leaseDurationSeconds": int(self._duration_s)}
        metadata = {"name": LEASE_NAME, "namespace": self._namespace}
        if found is not None:
            metadata["resourceVersion"] = found["metadata"]["resourceVersion"]
        return {"apiVersion": _LEASE.api_version, "kind": _LEASE.kind, "metadata": metadata, "spec": spec}

    def _set(self, leads: bool) -> None:
        if leads != self._leads:
            self._leads = leads
            _log.info("leading" if leads else "not leading any more", identity=self._identity)
            self._on_change(leads)
