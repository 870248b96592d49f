"""From `helm install` to a mesh that is ready, with the rights that the chart gives and no others."""

from __future__ import annotations

import json
import secrets
import signal
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.operator.api.crd import GROUP, PLURAL, custom_resource_definition
from shoal.operator.reconcile.reconciler import SERVICE_KIND
from support.control_plane.cluster import ControlPlane
from support.control_plane.helm import CHART, OPERATOR, Helm, operator_flags
from support.eventually import eventually
from support.logged_process import LoggedProcess
from support.operator_running import Namespace

pytestmark = pytest.mark.cluster

EXAMPLE = Path(__file__).parents[3] / "examples" / "smollm2-135m.yaml"
DEFINITION = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{PLURAL}.{GROUP}"
CONFIGURATION = f"/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/{OPERATOR}"


@pytest.fixture
def models(cluster: ControlPlane) -> Iterator[Namespace]:
    """Where InferenceServices are."""
    with cluster.fresh_namespace(prefix="models") as name:
        yield Namespace(cluster, name)


@pytest.fixture(params=["cluster", "namespace"])
def installed(cluster: ControlPlane, helm: Helm, models: Namespace, request: pytest.FixtureRequest) -> Iterator[str]:
    """The namespace of a release called shoal, which may see the whole cluster, or the one namespace of its models."""
    namespace = f"shoal-{secrets.token_hex(4)}"
    flags = [f"--namespace={namespace}", "--create-namespace", "--wait", "--timeout=60s"]
    if request.param == "namespace":
        flags.append(f"--set=operator.namespaces={{{models.name}}}")
    # The API server has no way to a Service's address here, and would wait for an answer.
    helm("install", "shoal", str(CHART), *flags, "--set=webhook.timeoutSeconds=1")
    try:
        yield namespace
    finally:
        if json.loads(helm("list", f"--namespace={namespace}", "--output=json")):
            helm("uninstall", "shoal", f"--namespace={namespace}")
        cluster.kubectl("delete", "crd", "inferenceservices.shoal.dev", "--ignore-not-found")
        cluster.request("DELETE", f"/api/v1/namespaces/{namespace}")


async def test_a_manifest_becomes_a_mesh(
    cluster: ControlPlane, helm: Helm, models: Namespace, installed: str, tmp_path: Path
) -> None:
    """The operator is a process, started as the chart's pods say and with their account; kwok plays what it plans."""
    async with await LoggedProcess.launch(
        "shoal.operator.main", *operator_flags(cluster, installed, tmp_path)
    ) as operator:
        await operator.wait_logged("watching")
        cluster.kubectl("apply", f"--namespace={models.name}", "-f", str(EXAMPLE))
        await models.until_phase("smollm2-135m", "Ready", timeout_s=60.0)
        line = cluster.kubectl("get", "isvc", f"--namespace={models.name}", "--no-headers")
        assert line.split()[0] == "smollm2-135m"
        bundle = await _bundle(models)

        values = ["--reuse-values", "--set=operator.replicas=3"]
        helm("upgrade", "shoal", str(CHART), f"--namespace={installed}", *values)
        assert await _bundle(models) == bundle, "what operators put into the webhook outlives an upgrade"
        deployments = f"/apis/apps/v1/namespaces/{installed}/deployments/{OPERATOR}"
        assert (await models.call("GET", deployments))["spec"]["replicas"] == 3
        operator.signal(signal.SIGTERM)
        assert await operator.wait_ended() == 0, operator.logs[-5:]
        assert [line for line in operator.logs if "forbidden" in json.dumps(line).lower()] == []

    helm("uninstall", "shoal", f"--namespace={installed}")
    with pytest.raises(urllib.error.HTTPError):
        await models.call("GET", CONFIGURATION)
    assert [found["metadata"]["name"] for found in await models.list(SERVICE_KIND)] == ["smollm2-135m"]
    assert (await models.call("GET", DEFINITION))["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    # Another release finds what was kept, and then one that kubectl applied.
    helm("install", "again", str(CHART), f"--namespace={installed}", "--take-ownership")
    assert [found["metadata"]["name"] for found in await models.list(SERVICE_KIND)] == ["smollm2-135m"]
    helm("uninstall", "again", f"--namespace={installed}")
    definition = tmp_path / "definition.json"
    definition.write_text(json.dumps(custom_resource_definition()))
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(definition))
    helm("install", "again", str(CHART), f"--namespace={installed}", "--take-ownership", "--force-conflicts")
    assert [found["metadata"]["name"] for found in await models.list(SERVICE_KIND)] == ["smollm2-135m"]
    helm("uninstall", "again", f"--namespace={installed}")


async def _bundle(space: Namespace) -> str:
    bundle = ""

    async def is_there() -> bool:
        nonlocal bundle
        [webhook] = (await space.call("GET", CONFIGURATION))["webhooks"]
        bundle = webhook["clientConfig"].get("caBundle", "")
        return bool(bundle)

    await eventually(is_there, "the operator puts its authority into the webhook", 30.0)
    return bundle
