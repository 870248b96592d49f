"""The certificate in a Secret that all operators share, and its authority in the configuration of the webhook."""

from __future__ import annotations

import base64
import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import structlog

from shoal.operator.planner.kubernetes import FIELD_MANAGER, Manifest
from shoal.operator.reconcile.api_client import ApiError
from shoal.operator.webhook.certificates import Issued, Unusable, expiry_of, is_due, issue
from shoal.operator.webhook.configuration import apply_of_bundle, bundle_of, encode_bundle

_MAX_TRIES: Final = 5
_APPLY: Final = "application/apply-patch+yaml"
# Of a Secret of the type kubernetes.io/tls, and one more.
_FIELDS: Final = {"certificate": "tls.crt", "key": "tls.key", "ca_bundle": "ca.crt", "ca_key": "ca.key"}
_log = structlog.get_logger("shoal.operator")


class Requests(Protocol):
    """The part of `ApiClient` that is used."""

    async def request(
        self, method: str, path: str, body: Any = None, *, query: Any = None, content_type: str = "application/json"
    ) -> Manifest:
        """One call. Raises ApiError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where it is kept."""

    namespace: str
    secret: str
    configuration: str
    """Of the ValidatingWebhookConfiguration, which is somebody else's: a chart's, say."""


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class CertificateKeeper:
    """Brings about that the Secret holds a certificate with time left, and that the API server trusts it."""

    def __init__(
        self, api: Requests, place: Place, hosts: Sequence[str], now: Callable[[], datetime.datetime] = _now
    ) -> None:
        """hosts: names and addresses under which the API server calls."""
        self._api = api
        self._place = place
        self._hosts = tuple(hosts)
        self._now = now
        self._secret = f"/api/v1/namespaces/{place.namespace}/secrets"
        self._configuration = (
            f"/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/{place.configuration}"
        )

    async def refresh(self) -> Issued:
        """What to serve from now on. Raises ApiError.

        The authority is told before the certificate is served. Where several operators renew at once, one is faster,
        and the others take what it wrote.
        """
        issued = await self._ensure_secret()
        await self._tell(issued)
        return issued

    async def _ensure_secret(self) -> Issued:
        failure: ApiError | None = None
        for _ in range(_MAX_TRIES):
            found = await self._get(f"{self._secret}/{self._place.secret}")
            kept = None if found is None else _issued_of(found)
            try:
                if kept is not None and not is_due(kept, self._hosts, self._now()):
                    return kept
                issued = issue(self._hosts, self._now(), kept)
            except Unusable as error:
                _log.warning("the webhook's certificate is replaced", secret=self._place.secret, reason=str(error))
                issued = issue(self._hosts, self._now())
            try:
                await self._write(found, issued)
            except ApiError as error:
                if error.code not in (404, 409):  # another operator was faster, or somebody deleted it
                    raise
                failure = error
                continue
            _log.info("issued the webhook's certificate", hosts=self._hosts, until=expiry_of(issued).isoformat())
            return issued
        assert failure is not None
        raise failure

    async def _write(self, found: Manifest | None, issued: Issued) -> None:
        encoded = {name: base64.b64encode(getattr(issued, field)).decode() for field, name in _FIELDS.items()}
        if found is not None:
            path = f"{self._secret}/{self._place.secret}"
            await self._api.request("PUT", path, {**found, "data": {**(found.get("data") or {}), **encoded}})
            return
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": self._place.secret,
                "namespace": self._place.namespace,
                "labels": {"app.kubernetes.io/part-of": "shoal", "app.kubernetes.io/managed-by": FIELD_MANAGER},
            },
            "type": "kubernetes.io/tls",
            "data": encoded,
        }
        await self._api.request("POST", self._secret, secret)

    async def _tell(self, issued: Issued) -> None:
        """Puts the authorities into the configuration, if there is one."""
        found = await self._get(self._configuration)
        held = None if found is None else bundle_of(found)
        if held is None:
            _log.warning("there is no webhook to tell of the certificate", configuration=self._place.configuration)
        elif held != encode_bundle(issued.ca_bundle):
            body = apply_of_bundle(self._place.configuration, issued.ca_bundle)
            query = {"fieldManager": FIELD_MANAGER, "force": "true"}
            await self._api.request("PATCH", self._configuration, body, query=query, content_type=_APPLY)

    async def _get(self, path: str) -> Manifest | None:
        try:
            return await self._api.request("GET", path)
        except ApiError as error:
            if error.code == 404:
                return None
            raise


def _issued_of(secret: Manifest) -> Issued:
    """What it holds; empty where there is nothing that could be read, which `is_due` then refuses."""
    data = secret.get("data") or {}
    return Issued(**{field: _decoded(data.get(name)) for field, name in _FIELDS.items()})


def _decoded(text: object) -> bytes:
    try:
        return base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except ValueError:
        return b""
