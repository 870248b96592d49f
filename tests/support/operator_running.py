"""The operator's controller in this process, against a real API server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.operator.planner.kubernetes import KINDS, OWNER_LABEL, Platform
from shoal.operator.planner.kubernetes.plan import Kind
from shoal.operator.reconcile.api_client import ApiClient, collection_path, object_path
from shoal.operator.reconcile.cache_watch import Fetch
from shoal.operator.reconcile.controller import Controller, ControllerOptions
from shoal.operator.reconcile.reconciler import SERVICE_KIND
from support.control_plane.cluster import ControlPlane
from support.control_plane.operator_account import operator_kubeconfig
from support.eventually import eventually

POD = Kind("v1", "Pod", "pods")
EVENT = Kind("v1", "Event", "events")


@asynccontextmanager
async def running_controller(
    plane: ControlPlane,
    namespace: str,
    *,
    make_client: Callable[[Any], ApiClient] = ApiClient,
    fetch: Fetch | None = None,
    kubeconfig: Path | None = None,
    **options: Any,
) -> AsyncIterator[Controller]:
    """Looks after one namespace until the block ends; with the operator's own rights unless there is a kubeconfig."""
    own = kubeconfig or await asyncio.to_thread(operator_kubeconfig, plane)
    connected = await ApiClient.connect(own)
    await connected.__aexit__(None, None, None)
    stop, ready = asyncio.Event(), asyncio.Event()
    async with make_client(connected.configuration) as api:
        controller = Controller(api, Platform(), ControllerOptions(namespaces=(namespace,), **options), fetch)
        running = asyncio.ensure_future(controller.run(stop, ready))
        try:
            waiting = asyncio.ensure_future(ready.wait())
            await asyncio.wait({running, waiting}, timeout=30, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if running.done():
                running.result()
            assert ready.is_set(), "the operator watches"
            yield controller
        finally:
            stop.set()
            await asyncio.wait_for(running, 30)
            await asyncio.sleep(0.1)  # TLS connections that were cut in the middle close their sockets by and by


@dataclass(frozen=True, slots=True)
class Namespace:
    """What a person does in one namespace, and sees there."""

    plane: ControlPlane
    name: str

    async def call(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Any:
        """As an administrator. Raises urllib.error.HTTPError."""
        data = None if body is None else json.dumps(body).encode()
        return await asyncio.to_thread(self.plane.request, method, path, data, content_type)

    async def create(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """An InferenceService."""
        created: dict[str, Any] = await self.call("POST", collection_path(SERVICE_KIND, self.name), manifest)
        return created

    async def patch(self, kind: Kind, name: str, change: dict[str, Any]) -> dict[str, Any]:
        """A merge patch, as `kubectl edit` sends it."""
        path = object_path(kind, self.name, name)
        patched: dict[str, Any] = await self.call("PATCH", path, change, "application/merge-patch+json")
        return patched

    async def delete(self, kind: Kind, name: str) -> None:
        """And what it owns, in the background."""
        await self.call("DELETE", object_path(kind, self.name, name), {"propagationPolicy": "Background"})

    async def list(self, kind: Kind, selector: str = "") -> list[dict[str, Any]]:
        """All of one kind."""
        query = f"?labelSelector={selector}" if selector else ""
        items: list[dict[str, Any]] = (await self.call("GET", collection_path(kind, self.name) + query))["items"]
        return items

    async def objects(self, service: str) -> dict[tuple[str, str], dict[str, Any]]:
        """What belongs to an InferenceService, of the kinds that plans hold."""
        found = {}
        for kind in KINDS:
            for item in await self.list(kind, f"{OWNER_LABEL}={service}"):
                found[kind.kind, item["metadata"]["name"]] = {"apiVersion": kind.api_version, "kind": kind.kind, **item}
        return found

    async def service(self, name: str) -> dict[str, Any]:
        """The InferenceService."""
        found: dict[str, Any] = await self.call("GET", object_path(SERVICE_KIND, self.name, name))
        return found

    async def until_phase(
        self, name: str, phase: str, generation: int | None = None, timeout_s: float = 30.0
    ) -> dict[str, Any]:
        """The status, once it says so of that generation (the newest)."""

        async def is_so() -> bool:
            found = await self.service(name)
            wanted = generation or found["metadata"]["generation"]
            status = found.get("status", {})
            return bool(status.get("phase") == phase and status.get("observedGeneration", 0) >= wanted)

        try:
            await eventually(is_so, f"{name} is {phase}", timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}: {(await self.service(name)).get('status')}") from None
        status: dict[str, Any] = (await self.service(name))["status"]
        return status
