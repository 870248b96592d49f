"""The certificate in its Secret: several operators, and a Secret that others touch."""

from __future__ import annotations

import asyncio
import base64
import datetime
from typing import Any

import pytest

from shoal.operator.reconcile.api_client import ApiError
from shoal.operator.webhook.certificates import AUTHORITY_LIFETIME, SERVER_LIFETIME
from shoal.operator.webhook.configuration import bundle_of, encode_bundle
from shoal.operator.webhook.keeping import CertificateKeeper
from support.fake_secrets import PLACE, FakeSecrets

NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)


def keeper(api: FakeSecrets, now: datetime.datetime = NOW) -> CertificateKeeper:
    return CertificateKeeper(api, PLACE, ("shoal-operator.shoal-system.svc",), now=lambda: now)


async def test_it_is_made_once_and_told_once() -> None:
    api = FakeSecrets()
    first = await keeper(api).refresh()
    assert api.calls == ["GET webhook", "POST secrets", "GET shoal-operator", "PATCH shoal-operator"]
    assert api.configuration is not None
    assert bundle_of(api.configuration) == encode_bundle(first.ca_bundle)
    api.calls.clear()
    assert await keeper(api).refresh() == first
    assert api.calls == ["GET webhook", "GET shoal-operator"]


async def test_operators_that_start_at_once_agree() -> None:
    api = FakeSecrets()
    issued = await asyncio.gather(*(keeper(api).refresh() for _ in range(5)))
    assert len(set(issued)) == 1
    assert api.configuration is not None
    assert bundle_of(api.configuration) == encode_bundle(issued[0].ca_bundle)


@pytest.mark.parametrize("passed", [SERVER_LIFETIME * 3 / 4, SERVER_LIFETIME * 2, AUTHORITY_LIFETIME])
async def test_operators_that_renew_at_once_agree(passed: datetime.timedelta) -> None:
    api = FakeSecrets()
    first = await keeper(api).refresh()
    later = await asyncio.gather(*(keeper(api, NOW + passed).refresh() for _ in range(5)))
    assert len(set(later)) == 1
    assert later[0] != first
    assert api.configuration is not None
    assert bundle_of(api.configuration) == encode_bundle(later[0].ca_bundle)


@pytest.mark.parametrize("text", ["", "anVuaw==", "not base64!", None])
async def test_a_broken_secret_is_replaced(text: str | None) -> None:
    api = FakeSecrets()
    first = await keeper(api).refresh()
    assert api.secret is not None
    api.secret["data"]["tls.crt"] = text
    api.secret["data"]["other"] = "a2VwdA=="
    second = await keeper(api).refresh()
    assert second != first
    assert base64.b64decode(api.secret["data"]["tls.crt"]) == second.certificate
    assert api.secret["data"]["other"] == "a2VwdA==", "what others keep there stays"


async def test_without_a_configuration_it_serves_nevertheless() -> None:
    api = FakeSecrets()
    api.configuration = None
    assert (await keeper(api).refresh()).certificate


async def test_a_secret_that_always_changes_is_given_up() -> None:
    api = FakeSecrets()
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
