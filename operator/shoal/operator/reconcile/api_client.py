"""The few calls of the Kubernetes API that reconciling needs, on plain data."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import aiohttp
import msgspec
from kubernetes_asyncio import client, config

from shoal.operator.measures import API_REQUESTS, API_SECONDS, timed
from shoal.operator.planner.kubernetes import FIELD_MANAGER, Manifest
from shoal.operator.planner.kubernetes.plan import Kind

_TIMEOUT_S: Final = 30.0
_MAX_ATTEMPTS: Final = 5
_MAX_RETRY_AFTER_S: Final = 5.0
_APPLY: Final = "application/apply-patch+yaml"
_MERGE: Final = "application/merge-patch+json"
_ESCAPED: Final = re.compile("[\x7f-\uffff]")


class ApiError(Exception):
    """The API server refused a call, or could not be reached (`code` 0)."""

    def __init__(self, code: int, reason: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s
        """After how long the API server wants to be asked again; nothing was done."""
        self.reason = reason
        """As in the answer: `NotFound`, `Conflict`, `Invalid`, ...; a word in any case."""

    @property
    def is_temporary(self) -> bool:
        """Whether the same call may go through later, with nothing changed by anybody."""
        return self.code in (0, 409, 429) or self.code >= 500


@dataclass(frozen=True, slots=True)
class Listing:
    """What there was at one moment."""

    items: tuple[Manifest, ...]
    version: int
    """What has a later resourceVersion came after it; 0: not known."""


class ApiClient:
    """One connection pool to an API server. Use as an asynchronous context manager."""

    def __init__(self, configuration: client.Configuration) -> None:
        self.configuration = configuration
        self._api = client.ApiClient(configuration)

    @classmethod
    async def connect(cls, kubeconfig: Path | None = None) -> ApiClient:
        """By `kubeconfig`; without one by the pod's service account; outside of pods by KUBECONFIG or `~/.kube/config`.

        Raises ConfigException when there is none of them.
        """
        configuration = client.Configuration()
        configuration.connection_pool_maxsize = 16
        if kubeconfig is None and "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            path = None if kubeconfig is None else str(kubeconfig)
            await config.load_kube_config(config_file=path, client_configuration=configuration)
        return cls(configuration)

    async def __aenter__(self) -> ApiClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._api.close()

    async def get(self, kind: Kind, namespace: str, name: str) -> Manifest | None:
        """The object, or None."""
        try:
            return await self.request("GET", object_path(kind, namespace, name))
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    async def serves(self, kind: Kind) -> bool:
        """Whether the cluster knows that kind, in that version."""
        try:
            found = await self.request("GET", collection_path(kind, None).rpartition("/")[0])
        except ApiError as error:
            if error.code == 404:
                return False
            raise
        return any(resource["name"] == kind.plural for resource in found.get("resources", ()))

    async def list(self, kind: Kind, namespace: str | None, label_selector: str = "") -> list[Manifest]:
        """All objects of a namespace, or of all of them, with those labels."""
        return list((await self.listing(kind, namespace, label_selector)).items)

    async def listing(self, kind: Kind, namespace: str | None, label_selector: str = "") -> Listing:
        """The same, and of which moment it is."""
        query = {"labelSelector": label_selector, "limit": "500"}
        found: list[Manifest] = []
        version = ""
        while True:
            try:
                answer = await self.request("GET", collection_path(kind, namespace), query=query)
            except ApiError as error:
                if error.code != 410 or "continue" not in query:
                    raise
                # Too old to be read on (etcd was compacted): the whole in one answer, as client-go asks for it then.
                query, found, version = {"labelSelector": label_selector}, [], ""
                continue
            # Items of a list leave these out.
            items, metadata = answer.get("items"), answer.get("metadata")
            if not isinstance(items, list) or not isinstance(metadata, dict):
                text = f"{self.configuration.host} answers with what is no list of {kind.plural}"
                raise ApiError(0, "NotAList", text)
            found += [{"apiVersion": kind.api_version, "kind": kind.kind, **item} for item in items]
            version = version or str(metadata.get("resourceVersion", ""))
            proceed = metadata.get("continue")
            if not proceed:
                return Listing(tuple(found), int(version) if version.isdigit() else 0)
            query["continue"] = proceed

    async def apply(self, kind: Kind, manifest: Manifest, *, dry_run: bool = False) -> Manifest:
        """Server-side apply: the object has the given fields afterwards, and no others that we gave before."""
        metadata = manifest["metadata"]
        path = object_path(kind, metadata["namespace"], metadata["name"])
        query = {"fieldManager": FIELD_MANAGER, "force": "true"} | ({"dryRun": "All"} if dry_run else {})
        return await self.request("PATCH", path, manifest, query=query, content_type=_APPLY)

    async def patch_status(self, kind: Kind, found: Manifest, change: Manifest) -> Manifest:
        """Changes the status of that very object. Fields that an earlier definition lacks are left out by the API
        server, where an apply would be refused as a whole: operators are brought up to date before definitions."""
        metadata = found["metadata"]
        path = object_path(kind, metadata["namespace"], metadata["name"]) + "/status"
        body = {"metadata": {"uid": metadata["uid"]}, "status": change}
        query = {"fieldManager": FIELD_MANAGER}
        return await self.request("PATCH", path, body, query=query, content_type=_MERGE)

    async def delete(self, kind: Kind, manifest: Manifest) -> None:
        """That very object, if it is still there; what it owns goes later."""
        metadata = manifest["metadata"]
        body = {"propagationPolicy": "Background", "preconditions": {"uid": metadata["uid"]}}
        try:
            await self.request("DELETE", object_path(kind, metadata["namespace"], metadata["name"]), body)
        except ApiError as error:
            if error.code not in (404, 409):  # gone, or another by now
                raise

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Manifest:
        """One call. Raises ApiError."""
        content = await self._send(method, path, body, query, content_type)
        try:
            return msgspec.json.decode(content, type=Manifest)
        except msgspec.DecodeError as error:  # something else answers at that address
            text = f"{self.configuration.host} answers {method} {path} with what is no object: {error}"
            raise ApiError(0, "NotAnObject", text) from error

    async def request_text(self, path: str, query: Mapping[str, str] | None = None) -> str:
        """Reads what is no object, such as a container's log. Raises ApiError."""
        return (await self._send("GET", path, None, query, accept="*/*")).decode(errors="replace")

    async def _send(
        self,
        method: str,
        path: str,
        body: Any,
        query: Mapping[str, str] | None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> bytes:
        """Waits and tries again for as long as the API server says that it is busy, a few times."""
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            try:
                return await self._send_once(method, path, body, query, content_type, accept)
            except ApiError as error:
                if error.retry_after_s is None or attempt == _MAX_ATTEMPTS:
                    raise
                await asyncio.sleep(min(error.retry_after_s, _MAX_RETRY_AFTER_S))
        raise AssertionError("the last attempt returns or raises")

    async def _send_once(
        self, method: str, path: str, body: Any, query: Mapping[str, str] | None, content_type: str, accept: str
    ) -> bytes:
        headers = {"Content-Type": content_type, "Accept": accept}
        try:
            await self._api.update_params_for_auth(headers, [], ["BearerToken"])
        except Exception as error:  # of a file, a program or a service that gives out tokens
            text = f"there are no credentials to be had for {self.configuration.host}: {error or type(error).__name__}"
            raise ApiError(0, "NoCredentials", text) from error
        if content_type == _APPLY:
            headers["Content-Type"], body = f"{_APPLY}; charset=utf-8", as_yaml(body)
        url = f"{self.configuration.host}{path}"
        try:
            with timed(API_SECONDS.labels(method)):
                answer = await self._api.rest_client.request(
                    method,
                    url,
                    headers=headers,
                    body=body,
                    query_params=dict(query or {}),
                    _request_timeout=_TIMEOUT_S,
                )
        except client.ApiException as error:
            API_REQUESTS.labels(method, str(error.status)).inc()
            raise _as_error(error) from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            API_REQUESTS.labels(method, "0").inc()
            text = f"{self.configuration.host} cannot be reached: {error or type(error).__name__}"
            raise ApiError(0, "Unreachable", text) from error
        API_REQUESTS.labels(method, str(answer.status)).inc()
        data: bytes = answer.data
        return data


def as_yaml(value: Any) -> bytes:
    """JSON that is the same as YAML, as which the API server reads what is applied.

    YAML knows no pairs of surrogates, which JSON libraries escape characters beyond the first 65,536 with, and takes
    some others for line breaks or refuses them unless they are escaped.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text).encode()


def collection_path(kind: Kind, namespace: str | None) -> str:
    """`/apis/apps/v1/namespaces/default/deployments`."""
    root = f"/api/{kind.api_version}" if "/" not in kind.api_version else f"/apis/{kind.api_version}"
    return f"{root}/{kind.plural}" if namespace is None else f"{root}/namespaces/{namespace}/{kind.plural}"


def object_path(kind: Kind, namespace: str, name: str) -> str:
    """`/apis/apps/v1/namespaces/default/deployments/x`."""
    return f"{collection_path(kind, namespace)}/{name}"


def _as_error(error: client.ApiException) -> ApiError:
    try:
        status = msgspec.json.decode(error.body or b"{}")
    except msgspec.DecodeError:
        status = {}
    said = status if isinstance(status, dict) else {}
    message = said.get("message") or f"{error.status} {error.reason}"
    # Some answers have none, as when an applied object has a field that there is not. Conditions take a word.
    reason = said.get("reason") or re.sub(r"[^A-Za-z]", "", str(error.reason or "")) or "ApiError"
    return ApiError(int(error.status), str(reason), str(message), _retry_after_s(error))


def _retry_after_s(error: client.ApiException) -> float | None:
    """Of an answer that nothing was done (429), or could be (503). Dates are not sent by API servers."""
    if error.status not in (429, 503):
        return None
    headers: Mapping[str, str] = error.headers or {}
    text = str(headers.get("Retry-After", ""))
    return float(text) if text.isdigit() else None
