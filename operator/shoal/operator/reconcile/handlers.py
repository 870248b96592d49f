"""kopf's part: it watches, and says what it saw. Nothing is decided here, and kopf writes nothing to any object."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import kopf
from kubernetes_asyncio.client import Configuration

from shoal.operator.api.crd import GROUP, PLURAL, VERSION
from shoal.operator.planner.kubernetes import Manifest
from shoal.operator.planner.kubernetes.plan import Kind


class Observer(Protocol):
    """Who is told."""

    def seen(self, found: Manifest) -> None:
        """Of an InferenceService that is there."""

    def gone(self, found: Manifest) -> None:
        """Of one that is there no more."""

    def object_seen(self, found: Manifest) -> None:
        """Of an object with the operator's labels."""

    def object_gone(self, found: Manifest) -> None:
        """Of one that is there no more."""


class WatchHandlers:
    """Functions for kopf to call, one for each kind of news."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    async def on_service(self, event: Mapping[str, Any], **_: Any) -> None:
        """An InferenceService was added, changed or deleted."""
        self._tell(event, self._observer.seen, self._observer.gone)

    async def on_object(self, event: Mapping[str, Any], **_: Any) -> None:
        """The same of another object."""
        self._tell(event, self._observer.object_seen, self._observer.object_gone)

    @staticmethod
    def _tell(event: Mapping[str, Any], seen: Callable[[Manifest], None], gone: Callable[[Manifest], None]) -> None:
        found = dict(event["object"])
        (gone if event["type"] == "DELETED" else seen)(found)


def make_registry(
    handlers: WatchHandlers, configuration: Configuration, watched: Iterable[Kind]
) -> kopf.OperatorRegistry:
    """A registry of our own, with the API client's credentials."""
    registry = kopf.OperatorRegistry()

    async def log_in(**_: Any) -> kopf.ConnectionInfo:
        return await _connection(configuration)

    kopf.on.login(registry=registry)(log_in)
    kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)(handlers.on_service)
    for kind in watched:
        group, _, version = kind.api_version.rpartition("/")
        kopf.on.event(group, version, kind.plural, registry=registry, id=kind.plural)(handlers.on_object)
    return registry


async def _connection(configuration: Configuration) -> kopf.ConnectionInfo:
    token = (await configuration.get_api_key_with_prefix("BearerToken")) or ""
    return kopf.ConnectionInfo(
        server=str(configuration.host),
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        token=token.removeprefix("Bearer ") or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
    )
