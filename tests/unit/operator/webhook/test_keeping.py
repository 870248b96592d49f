"""The certificate in its Secret: several operators, and a Secret that others touch."""

from __future__ import annotations

import asyncio
import base64
import copy
import datetime
from typing import Any

import pytest

from shoal.operator.reconcile.api_client import ApiError
from shoal.operator.webhook import validating_webhook_configuration
from shoal.operator.webhook.certificates import AUTHORITY_LIFETIME, SERVER_LIFETIME
from shoal.operator.webhook.configuration import ServiceTarget, bundle_of, encode_bundle
from shoal.operator.webhook.keeping import CertificateKeeper, Place

NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
PLACE = Place(namespace="shoal-system", secret="webhook", configuration="shoal-operator")
SECRET = "/api/v1/namespaces/shoal-system/secrets/webhook"
CONFIGURATION = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/shoal-operator"


class FakeApi:
    """Secrets with optimistic locking, and one configuration that merges what is applied."""

    def __init__(self) -> None:
        self.secret: dict[str, Any] | None = None
        self.configuration: dict[str, Any] | None = validating_webhook_configuration(ServiceTarget("a", "b"))
        self.calls: list[str] = []

    async def request(
        self, method: str, path: str, body: Any = None, *, query: Any = None, content_type: str = "application/json"
    ) -> dict[str, Any]:
        await asyncio.sleep(0)  # others have their turn
        self.calls.append(f"{method} {path.rpartition('/')[2]}")
        if path == CONFIGURATION:
            return self._configure(method, body)
        assert path in (SECRET, SECRET.rpartition("/")[0])
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


def keeper(api: FakeApi, now: datetime.datetime = NOW) -> CertificateKeeper:
    return CertificateKeeper(api, PLACE, ("shoal-operator.shoal-system.svc",), now=lambda: now)


async def test_it_is_made_once_and_told_once() -> None:
    api = FakeApi()
    first = await keeper(api).refresh()
    assert api.calls == ["GET webhook", "POST secrets", "GET shoal-operator", "PATCH shoal-operator"]
    assert api.configuration is not None
    assert bundle_of(api.configuration) == encode_bundle(first.ca_bundle)
    api.calls.clear()
    assert await keeper(api).refresh() == first
    assert api.calls == ["GET webhook", "GET shoal-operator"]


async def test_operators_that_start_at_once_agree() -> None:
    api = FakeApi()
    issued = await asyncio.gather(*(keeper(api).refresh() for _ in range(5)))
    assert len(set(issued)) == 1
    assert api.configuration is not None
    assert bundle_of(api.configuration) == encode_bundle(issued[0].ca_bundle)


@pytest.mark.parametrize("passed", [SERVER_LIFETIME * 3 / 4, SERVER_LIFETIME * 2, AUTHORITY_LIFETIME])
async def test_operators_that_renew_at_once_agree(passed: datetime.timedelta) -> None:
    api = FakeApi()
    first = await keeper(api).refresh()
    later = await asyncio.gather(*(keeper(api, NOW + passed).refresh() for _ in range(5)))
    assert len(set(later)) == 1
    assert later[0] != first
    assert api.configuration is not None
    assert bundle_of(api.configuration) == encode_bundle(later[0].ca_bundle)


@pytest.mark.parametrize("text", ["", "anVuaw==", "not base64!", None])
async def test_a_broken_secret_is_replaced(text: str | None) -> None:
    api = FakeApi()
    first = await keeper(api).refresh()
    assert api.secret is not None
    api.secret["data"]["tls.crt"] = text
    api.secret["data"]["other"] = "a2VwdA=="
    second = await keeper(api).refresh()
    assert second != first
    assert base64.b64decode(api.secret["data"]["tls.crt"]) == second.certificate
    assert api.secret["data"]["other"] == "a2VwdA==", "what others keep there stays"


async def test_without_a_configuration_it_serves_nevertheless() -> None:
    api = FakeApi()
    api.configuration = None
    assert (await keeper(api).refresh()).certificate


async def test_a_secret_that_always_changes_is_given_up() -> None:
    api = FakeApi()
    await keeper(api).refresh()
    given = api.request

    async def disturbed(method: str, path: str, *rest: Any, **named: Any) -> dict[str, Any]:
        if method == "PUT":
            raise ApiError(409, "Conflict", "it changed")
        return await given(method, path, *rest, **named)

    api.request = disturbed  # type: ignore[method-assign]
    with pytest.raises(ApiError, match="it changed"):
        await keeper(api, NOW + SERVER_LIFETIME).refresh()
    assert api.calls.count("GET webhook") == 6
