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
from shoal.operator.reconcile.background import running

LEASE_NAME: Final = "shoal-operator"
_LEASE: Final = Kind("coordination.k8s.io/v1", "Lease", "leases")
_log = structlog.get_logger("shoal.operator")


class Leadership:
    """One operator's claim to a Lease.

    A holder that has not renewed for `duration_s`, by the watcher's own clock since it saw the last change, is taken
    for dead. Whoever holds the Lease stops writing earlier than that when it cannot renew, whatever it waits for: a
    third of that time is left for clocks that differ, and for calls that are on their way.
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

    @property
    def holds(self) -> bool:
        """Whether this operator may write at this moment, also when it was kept from looking at the clock."""
        return self._leads and self._left_s > 0

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Claims the Lease for as long as the block runs, and gives it up at its end."""
        try:
            async with running(self._claim()):
                yield
        finally:
            if self._leads:
                self._set(False)
                with contextlib.suppress(ApiError, TimeoutError):
                    async with asyncio.timeout(self._renew_s):
                        await self._release()

    @property
    def _left_s(self) -> float:
        """Until it has to stop if it cannot renew."""
        return self._renewed_s + self._duration_s * 2 / 3 - _now_s()

    async def _claim(self) -> None:
        while True:
            if not self.holds:  # it slept for longer than it was to
                self._set(False)
            asked_s = _now_s()
            try:
                # Waiting for an answer does not make the Lease last longer.
                async with asyncio.timeout(self._left_s if self._leads else self._duration_s):
                    holds = await self._try()
            except Exception as error:  # whatever it is: it was not renewed
                holds = self.holds
                text = "no answer" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
                _log.warning(
                    "the lease cannot be renewed", error=text, leads=holds,
                    exc_info=not isinstance(error, (ApiError, TimeoutError)),
                )  # fmt: skip
            else:
                # Others count from when they saw it, which is not before it was asked for.
                self._renewed_s = asked_s if holds else self._renewed_s
            self._set(holds)
            await asyncio.sleep(min(self._renew_s, max(self._left_s, 0.0)) if holds else self._renew_s)

    async def _try(self) -> bool:
        """Takes or renews the Lease if that may be."""
        found = await self._api.get(_LEASE, self._namespace, LEASE_NAME)
        if found is None:
            return await self._write("POST", collection_path(_LEASE, self._namespace), self._lease(None))
        version, spec = found["metadata"]["resourceVersion"], found.get("spec", {})
        if version != self._seen[0]:
            self._seen = (version, _now_s())
        is_ours = spec.get("holderIdentity") == self._identity
        is_free = not spec.get("holderIdentity") or _now_s() - self._seen[1] > self._duration_s
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


def _now_s() -> float:
    return asyncio.get_running_loop().time()
