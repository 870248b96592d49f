"""Two kinds of objects of an API server: Secrets with optimistic locking, and one webhook configuration."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

from shoal.operator.reconcile.api_client import ApiError
from shoal.operator.webhook import validating_webhook_configuration
from shoal.operator.webhook.configuration import ServiceTarget
from shoal.operator.webhook.keeping import Place

PLACE = Place(namespace="shoal-system", secret="webhook", configuration="shoal-operator")
_SECRETS = "/api/v1/namespaces/shoal-system/secrets"
_CONFIGURATION = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/shoal-operator"


class FakeSecrets:
    """What `CertificateKeeper` asks for. Others have their turn during each call."""

    def __init__(self) -> None:
        self.secret: dict[str, Any] | None = None
        self.configuration: dict[str, Any] | None = validating_webhook_configuration(ServiceTarget("a", "b"))
        self.calls: list[str] = []
        self.failures: list[ApiError] = []
        """Raised by the next calls, one each."""

    async def request(
        self, method: str, path: str, body: Any = None, *, query: Any = None, content_type: str = "application/json"
    ) -> dict[str, Any]:
        """As `ApiClient` has it."""
        await asyncio.sleep(0)
        self.calls.append(f"{method} {path.rpartition('/')[2]}")
        if self.failures:
            raise self.failures.pop(0)
        return self._configure(method, body) if path == _CONFIGURATION else self._keep(method, path, body)

    def _keep(self, method: str, path: str, body: Any) -> dict[str, Any]:
        assert path in (_SECRETS, f"{_SECRETS}/webhook")
        if method == "POST":
            if self.secret is not None:
                raise ApiError(409, "AlreadyExists", "it is there")
        elif self.secret is None:
            raise ApiError(404, "NotFound", "there is none")
        elif method == "GET":
            return copy.deepcopy(self.secret)
        elif body["metadata"]["resourceVersion"] != self.secret["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", "it changed")
        version = 1 if self.secret is None else int(self.secret["metadata"]["resourceVersion"]) + 1
        self.secret = copy.deepcopy(body)
        self.secret["metadata"]["resourceVersion"] = str(version)
        return copy.deepcopy(self.secret)

    def _configure(self, method: str, body: Any) -> dict[str, Any]:
        if self.configuration is None:
            raise ApiError(404, "NotFound", "there is none")
        if method == "PATCH":
            (webhook,) = self.configuration["webhooks"]
            webhook["clientConfig"] |= body["webhooks"][0]["clientConfig"]
        return copy.deepcopy(self.configuration)
