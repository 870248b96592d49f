"""The API server asks the operator before it stores an InferenceService, over HTTPS that it trusts."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
import subprocess
import urllib.error
from collections.abc import AsyncIterator
from typing import Any

import pytest
import yaml
from cryptography import x509

from shoal.operator.planner.kubernetes.plan import Kind
from shoal.operator.reconcile.api_client import ApiClient
from shoal.operator.reconcile.reconciler import SERVICE_KIND
from shoal.operator.substrate.ports import PortReservations
from shoal.operator.webhook import WebhookOptions, running_webhook, validating_webhook_configuration
from shoal.operator.webhook.keeping import Place
from support.bad_manifests import BAD_FOR_THE_WEBHOOK, QWEN3_8B
from support.control_plane.cluster import ControlPlane
from support.eventually import eventually
from support.manifests import MINIMAL_ON_KUBERNETES, ROLES_ON_KUBERNETES, with_fields
from support.operator_running import Namespace

pytestmark = pytest.mark.cluster
SECRET = Kind("v1", "Secret", "secrets")
CONFIGURATIONS = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"


@contextlib.asynccontextmanager
async def configured(space: Namespace, port: int) -> AsyncIterator[str]:
    """A configuration for this namespace alone, which trusts nobody yet."""
    found = validating_webhook_configuration(
        f"https://127.0.0.1:{port}", name=space.name, namespaces=(space.name,), ca_bundle=b""
    )
    await space.call("POST", CONFIGURATIONS, found)
    try:
        yield f"{CONFIGURATIONS}/{space.name}"
    finally:
        await space.call("DELETE", f"{CONFIGURATIONS}/{space.name}")


@contextlib.asynccontextmanager
async def answering(space: Namespace, **options: Any) -> AsyncIterator[int]:
    connected = await ApiClient.connect(space.plane.kubeconfig)
    async with connected as api:
        place = Place(namespace=space.name, secret="webhook", configuration=space.name)
        wanted = WebhookOptions(host="127.0.0.1", hosts=("127.0.0.1",), place=place, **options)
        async with running_webhook(api, wanted) as port:
            yield port


@pytest.fixture
async def asked(control_plane: ControlPlane, namespace: str) -> AsyncIterator[Namespace]:
    """A namespace whose InferenceServices the webhook is asked about; returns once it is."""
    space = Namespace(control_plane, namespace)
    with PortReservations() as ports:
        port = ports.reserve("webhook")
        async with configured(space, port), answering(space, port=port):
            # The API server learns of configurations by a watch.
            await eventually(lambda: _refuses(space), "the API server asks the webhook")
            yield space


async def _refuses(space: Namespace) -> bool:
    try:
        await try_create(space, with_fields(MINIMAL_ON_KUBERNETES, {"spec.kvCache": {"cpu": "1Mi"}}))
    except urllib.error.HTTPError as error:
        return error.code == 422
    return False


async def try_create(space: Namespace, manifest: dict[str, Any]) -> dict[str, Any]:
    path = f"/apis/shoal.dev/v1alpha1/namespaces/{space.name}/inferenceservices?dryRun=All"
    created: dict[str, Any] = await space.call("POST", path, manifest)
    return created


async def test_what_the_schema_does_not_see_is_refused(asked: Namespace) -> None:
    """The same table as of `shoal validate`, message for message."""
    for fields, field, words in BAD_FOR_THE_WEBHOOK:
        with pytest.raises(urllib.error.HTTPError) as caught:
            await try_create(asked, with_fields(MINIMAL_ON_KUBERNETES, fields))
        status = json.load(caught.value)
        assert f"{field}: " in status["message"], (fields, status["message"])
        assert words in status["message"], (fields, status["message"])
        assert field in [cause["field"] for cause in status["details"]["causes"]]
        assert status["reason"] == "Invalid"


async def test_what_is_right_is_stored(asked: Namespace) -> None:
    await asked.create(yaml.safe_load(MINIMAL_ON_KUBERNETES))
    changed = {"spec": {"workers": {"resources": {"memory": "1Mi"}}}}
    with pytest.raises(urllib.error.HTTPError) as caught:
        await asked.patch(SERVICE_KIND, "smol", changed)
    assert "KV blocks alone are 512.0Mi" in json.load(caught.value)["message"]
    await asked.patch(SERVICE_KIND, "smol", {"spec": {"workers": {"resources": {"memory": "1Gi"}}}})
    await asked.delete(SERVICE_KIND, "smol")


async def test_kubectl_shows_refusals_and_warnings(asked: Namespace) -> None:
    plane, manifest = asked.plane, yaml.safe_load(ROLES_ON_KUBERNETES)
    arguments = ("apply", "--server-side", "-n", asked.name, "--dry-run=server", "-f", "-")
    with_warnings = ("--warnings-as-errors", *arguments)
    error = await asyncio.to_thread(_kubectl_fails, plane, with_warnings, json.dumps(manifest))
    for path in ("spec.prefill", "spec.decode.parallelism", "spec.adapters", "spec.speculative"):
        assert f"Warning: {path}: workers of this version refuse it" in error
    bad = with_fields(MINIMAL_ON_KUBERNETES, {"spec.kvCache": {"memory": "0Mi"}})
    error = await asyncio.to_thread(_kubectl_fails, plane, arguments, json.dumps(bad))
    assert "spec.kvCache.memory: '0Mi' is nothing; give 64Mi or more" in error


def _kubectl_fails(plane: ControlPlane, arguments: tuple[str, ...], stdin: str) -> str:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        plane.kubectl(*arguments, stdin=stdin)
    return str(caught.value.stderr)


async def test_objects_of_other_rules_can_still_be_labelled_and_deleted(
    control_plane: ControlPlane, namespace: str
) -> None:
    """Stored while nobody was asked, and wrong."""
    space = Namespace(control_plane, namespace)
    await space.create(with_fields(MINIMAL_ON_KUBERNETES, {"spec.kvCache": {"cpu": "1Mi"}}))
    with PortReservations() as ports:
        port = ports.reserve("webhook")
        async with configured(space, port), answering(space, port=port):
            await eventually(lambda: _refuses(space), "the API server asks the webhook")
            await space.patch(SERVICE_KIND, "smol", {"metadata": {"labels": {"team": "a"}, "finalizers": ["a.b/c"]}})
            with pytest.raises(urllib.error.HTTPError):
                await space.patch(SERVICE_KIND, "smol", {"spec": {"workers": {"replicas": 2}}})
            await space.delete(SERVICE_KIND, "smol")
            await space.patch(SERVICE_KIND, "smol", {"metadata": {"finalizers": None}})

            async def is_gone() -> bool:
                return not await space.list(SERVICE_KIND)

            await eventually(is_gone, "it is deleted")


async def test_nobody_answering_allows(control_plane: ControlPlane, namespace: str) -> None:
    space = Namespace(control_plane, namespace)
    with PortReservations() as ports:
        port = ports.reserve("webhook")
        async with configured(space, port):
            async with answering(space, port=port):
                await eventually(lambda: _refuses(space), "the API server asks the webhook")
            await try_create(space, with_fields(MINIMAL_ON_KUBERNETES, {"spec.kvCache": {"cpu": "1Mi"}}))


async def test_several_operators_share_a_certificate(asked: Namespace) -> None:
    async with answering(asked, port=0) as port:
        secret = (await asked.list(SECRET))[0]
        served = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))
        assert served.encode() == base64.b64decode(secret["data"]["tls.crt"])
        assert await _refuses(asked)


async def test_a_lost_or_broken_secret_is_replaced_while_serving(control_plane: ControlPlane, namespace: str) -> None:
    space = Namespace(control_plane, namespace)
    with PortReservations() as ports:
        port = ports.reserve("webhook")
        async with configured(space, port) as path, answering(space, port=port, refresh_interval_s=0.2):
            await eventually(lambda: _refuses(space), "the API server asks the webhook")
            first = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))
            await space.delete(SECRET, "webhook")
            second = await _next_certificate(port, first)
            junk = base64.b64encode(b"junk").decode()
            await space.patch(SECRET, "webhook", {"data": {"tls.key": junk}})
            await _next_certificate(port, second)
            await eventually(lambda: _refuses(space), "the API server trusts the new one")
            found = await space.call("GET", path)
            bundle = base64.b64decode(found["webhooks"][0]["clientConfig"]["caBundle"])
            assert x509.load_pem_x509_certificates(bundle)
            managers = {entry["manager"]: entry["fieldsV1"] for entry in found["metadata"]["managedFields"]}
            assert "f:caBundle" in str(managers["shoal-operator"])
            assert "f:rules" not in str(managers["shoal-operator"]), "the rest is not the operator's"


async def _next_certificate(port: int, before: str) -> str:
    found = before

    async def is_other() -> bool:
        nonlocal found
        found = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))
        return found != before

    await eventually(is_other, "another certificate is served")
    return found


async def test_facts_of_the_manifest_count(asked: Namespace) -> None:
    gpu = {"device": "cuda", "parallelism": {"tensor": 2}, "resources": {"gpuProduct": "NVIDIA-L4"}}
    manifest = with_fields(
        MINIMAL_ON_KUBERNETES, {"spec.model.config": QWEN3_8B, "spec.workers": gpu, "spec.model.maxModelLen": 40960}
    )
    assert (await try_create(asked, manifest))["spec"]["model"]["config"] == QWEN3_8B
