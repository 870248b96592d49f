"""The webhook over HTTPS."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import ssl
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import yaml
from prometheus_client import REGISTRY

from shoal.operator.api.spec import Model
from shoal.operator.reconcile.api_client import ApiError
from shoal.operator.substrate.ports import PortReservations
from shoal.operator.webhook import WebhookOptions, running_webhook, serve_webhook, server
from shoal.operator.webhook.configuration import PATH, bundle_of
from support.eventually import eventually
from support.fake_secrets import PLACE, FakeSecrets
from support.manifests import MINIMAL_ON_KUBERNETES

OPTIONS = WebhookOptions(host="127.0.0.1", port=0, hosts=("127.0.0.1",), place=PLACE)


def review_of(spec: Any) -> dict[str, Any]:
    manifest = yaml.safe_load(MINIMAL_ON_KUBERNETES)
    request = {
        "uid": "u",
        "operation": "CREATE",
        "resource": {"group": "shoal.dev", "version": "v1alpha1", "resource": "inferenceservices"},
        "object": {**manifest, "spec": {**manifest["spec"], **spec}},
    }
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}


@contextlib.asynccontextmanager
async def client(api: FakeSecrets, port: int) -> AsyncIterator[aiohttp.ClientSession]:
    """Trusts whom the configuration trusts."""
    assert api.configuration is not None
    bundle = base64.b64decode(bundle_of(api.configuration) or "").decode()
    connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cadata=bundle))
    timeout = aiohttp.ClientTimeout(total=20)
    async with aiohttp.ClientSession(f"https://127.0.0.1:{port}", connector=connector, timeout=timeout) as session:
        yield session
    await asyncio.sleep(0.05)  # TLS connections close by and by


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"shoal_operator_webhook_{name}", labels) or 0.0


async def test_what_it_answers_is_counted() -> None:
    results, sections = ("allowed", "warned", "refused", "bad"), ("kvCache", "model", "other")
    before = [sample("reviews_total", result=result) for result in results]
    problems = [sample("problems_total", section=section) for section in sections]
    num_answers = sample("seconds_count")
    asked = [{}, {"slo": {"ttftMilliseconds": 5}, "workers": {"device": "cuda", "replicas": 2}}]
    asked += [{"kvCache": {"cpu": "1Mi"}}, {"model": {}, "bogus-" + "x" * 50: 1}]
    api = FakeSecrets()
    async with running_webhook(api, OPTIONS) as port, client(api, port) as session:
        assert sample("up") == 1
        assert sample("certificate_expiry_timestamp_seconds") > time.time() + 80 * 86400
        for body in (*map(review_of, asked), {}):
            async with session.post(PATH, json=body) as response:
                await response.read()
    assert sample("up") == 0
    assert [sample("reviews_total", result=result) for result in results] == [
        count + more for count, more in zip(before, (1, 1, 2, 1), strict=True)
    ]
    counted = [sample("problems_total", section=section) for section in sections]
    assert [now - then for now, then in zip(counted, problems, strict=True)] == [1, 2, 1], "no name that was made up"
    assert sample("seconds_count") == num_answers + 5


async def test_reviews_are_answered() -> None:
    api = FakeSecrets()
    async with running_webhook(api, OPTIONS) as port, client(api, port) as session:
        async with session.post(PATH, json=review_of({})) as response:
            assert (await response.json())["response"] == {"uid": "u", "allowed": True}
        async with session.post(PATH, json=review_of({"kvCache": {"cpu": "1Mi"}})) as response:
            assert response.status == 200
            assert not (await response.json())["response"]["allowed"]


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"", 400), (b"{", 400), (b"[]", 400), (b"[" * 100_000, 400), (b" " * (9 << 20), 413)],
    ids=["empty", "cut", "other", "deep", "large"],
)
async def test_other_bodies_are_refused(body: bytes, status: int) -> None:
    api = FakeSecrets()
    async with running_webhook(api, OPTIONS) as port, client(api, port) as session:
        async with session.post(PATH, data=io.BytesIO(body)) as response:
            assert response.status == status
        async with session.post("/other", data=b"") as response:
            assert response.status == 404
        async with session.post(PATH, data=json.dumps(review_of({}))) as response:
            assert response.status == 200


async def test_what_keeps_it_from_serving_passes() -> None:
    api = FakeSecrets()
    api.failures = [ApiError(403, "Forbidden", "no"), ApiError(0, "Unreachable", "gone")]
    with PortReservations() as ports:
        options = WebhookOptions(
            host="127.0.0.1", port=ports.reserve("a"), hosts=("127.0.0.1",), place=PLACE, retry_interval_s=0.01
        )
        serving = asyncio.ensure_future(serve_webhook(api, options, lambda model: None, lambda service: []))
        try:

            async def is_told() -> bool:
                return api.configuration is not None and bool(bundle_of(api.configuration))

            await eventually(is_told, "the authority is told")

            async def answers() -> bool:
                try:
                    async with client(api, options.port) as session, session.post(PATH, json=review_of({})) as found:
                        return found.status == 200
                except aiohttp.ClientConnectionError:
                    return False

            await eventually(answers, "it serves")
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


async def test_it_answers_in_time_though_nothing_is_heard_of_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them at a time than there are threads, and what is wrong without facts is found all the same."""
    monkeypatch.setattr(server, "_REVIEW_TIMEOUT_S", 0.2)
    heard = threading.Event()
    api = FakeSecrets()

    def hear(model: Model) -> None:
        heard.wait(20)

    try:
        async with (
            running_webhook(api, OPTIONS, hear) as port,
            client(api, port) as session,
        ):

            async def allowed(spec: Any) -> bool:
                async with session.post(PATH, json=review_of(spec)) as response:
                    return bool((await response.json())["response"]["allowed"])

            asked = [allowed({"workers": {"replicas": 1 if index % 2 else 2}}) for index in range(40)]
            assert all(await asyncio.wait_for(asyncio.gather(*asked), 10))
            wrong = {"kvCache": {"cpu": "1Gi", "ssdVolume": {"claim": "c", "hostPath": "/kv"}}}
            assert not await asyncio.wait_for(allowed(wrong), 10)
    finally:
        heard.set()
