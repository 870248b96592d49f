"""`shoal status` and `shoal doctor` against a real API server, with faults made on purpose."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from shoal.client.cli.app import cli
from shoal.operator.planner.kubernetes.plan import Kind
from shoal.operator.reconcile.api_client import collection_path, object_path
from shoal.operator.reconcile.rights import roles
from support.control_plane.cluster import ControlPlane
from support.eventually import eventually
from support.manifests import MINIMAL_ON_KUBERNETES, with_fields
from support.operator_running import POD, Namespace, running_controller

pytestmark = pytest.mark.cluster
LEASE = Kind("coordination.k8s.io/v1", "Lease", "leases")
SERVICE = Kind("v1", "Service", "services")
CONFIGURATIONS = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"


@pytest.fixture
def space(control_plane: ControlPlane, namespace: str) -> Namespace:
    return Namespace(control_plane, namespace)


async def run(space: Namespace, *arguments: str, kubeconfig: Path | None = None) -> Result:
    where = ("--kubeconfig", str(kubeconfig or space.plane.kubeconfig), "-n", space.name)
    return await asyncio.to_thread(CliRunner().invoke, cli, [*arguments, *where], env={"COLUMNS": "200"})


async def doctor(space: Namespace, *arguments: str) -> list[dict[str, Any]]:
    """Problems and warnings, in their order; the exit code says whether there is a problem."""
    result = await run(space, "doctor", *arguments, "-o", "json")
    assert result.exit_code in (0, 1), result.output
    # The operator of this process says what it does between the lines.
    text = next(line for line in result.stdout.splitlines() if line.startswith("["))
    findings = [found for found in json.loads(text) if found["verdict"] in ("problem", "warning")]
    assert result.exit_code == any(found["verdict"] == "problem" for found in findings)
    return findings


def manifest(**fields: Any) -> dict[str, Any]:
    return with_fields(MINIMAL_ON_KUBERNETES, {name.replace("__", "."): value for name, value in fields.items()})


@asynccontextmanager
async def served(space: Namespace, **fields: Any) -> AsyncIterator[None]:
    """With an operator; what it knows of Envoys is made up to be nothing, since kwok runs none."""
    async with running_controller(space.plane, space.name):
        await space.create(manifest(**fields))
        yield


async def test_all_is_well(space: Namespace) -> None:
    async with served(space):
        await space.until_phase("smol", "Ready")
        # Its pods are made up, and so are no Envoys connected: the only thing to say.
        assert [(found["verdict"], found["check"]) for found in await doctor(space, "smol")] == [("warning", "routes")]
        text = await run(space, "doctor")
        assert text.exit_code == 0
        assert "no problem found" in text.stdout
        assert "admission: an InferenceService is admitted" in text.stdout


async def test_status_is_one_screen(space: Namespace) -> None:
    nothing = await run(space, "status")
    assert (nothing.exit_code, nothing.stdout.strip()) == (0, "there are no InferenceServices")
    async with served(space):
        await space.until_phase("smol", "Ready")
        shown = await run(space, "status", "smol")
        assert shown.exit_code == 0, shown.output
        assert f"{space.name}/smol serves smol: Ready" in shown.stdout
        assert f"grpc        smol.{space.name}.svc:8080" in shown.stdout
        assert "workers         1 of 1 ready" in shown.stdout
        assert "CacheEventsFlowing" in shown.stdout
        assert "Normal   Ready: Serving: every role has a ready pod" in shown.stdout
        assert len(shown.stdout.splitlines()) < 40
        data = json.loads((await run(space, "status", "smol", "-o", "json")).stdout)
        assert data["service"]["status"]["phase"] == "Ready"
        assert {event["reason"] for event in data["events"]} >= {"Ready", "WorkersReady"}
        listed = await run(space, "status")
        assert listed.stdout.split()[:4] == ["name", "model", "phase", "workers"]
        assert "smol  smol   Ready  1/1" in listed.stdout
        missing = await run(space, "status", "other")
        assert missing.exit_code == 1
        assert "there is no InferenceService other" in missing.stderr


async def test_no_cluster(space: Namespace, tmp_path: Path) -> None:
    config = yaml.safe_load(space.plane.kubeconfig.read_text())
    away = tmp_path / "away"
    away.write_text(
        yaml.safe_dump({**config, "clusters": [{"name": "test", "cluster": {"server": "http://127.0.0.1:9"}}]})
    )
    stranger = tmp_path / "stranger"
    stranger.write_text(yaml.safe_dump({**config, "users": [{"name": "admin", "user": {"token": "wrong"}}]}))
    for kubeconfig, words in ((away, "cannot be reached"), (stranger, "Unauthorized")):
        result = await run(space, "doctor", kubeconfig=kubeconfig)
        assert result.exit_code == 1
        assert words in result.stdout
        assert "-> check --kubeconfig" in result.stdout
    result = await run(space, "status", kubeconfig=tmp_path / "none")
    assert result.exit_code == 1
    assert "error:" in result.stderr


async def test_nobody_looks_after_it(space: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.operator.diagnosis.service_checks._PATIENCE_S", 0.0)
    await space.create(manifest())
    [found] = await doctor(space)
    assert (found["check"], found["service"]) == ("operator", f"{space.name}/smol")
    assert "nobody has looked at it" in found["message"]
    lease = {
        "apiVersion": LEASE.api_version,
        "kind": "Lease",
        "metadata": {"name": "shoal-operator", "namespace": space.name},
        "spec": {"holderIdentity": "op-1", "renewTime": "2020-01-01T00:00:00.000000Z", "leaseDurationSeconds": 15},
    }
    await space.call("POST", collection_path(LEASE, space.name), lease)
    findings = await doctor(space)
    assert [found["check"] for found in findings] == ["operator", "operator"]
    assert "op-1 holds the Lease" in findings[0]["message"], "the cause comes first"
    await space.call("DELETE", object_path(LEASE, space.name, "shoal-operator"))


async def test_pods_that_fit_nowhere_crash_or_have_no_image(space: Namespace) -> None:
    async with served(space, spec__workers={"replicas": 1, "resources": {"cpu": 900}}):
        await eventually(lambda: _has_findings(space, "scheduling"), "it is seen")
        [found] = [found for found in await doctor(space) if found["check"] == "scheduling"]
        assert "smol-worker-0 fits on no node" in found["message"]
        assert "Insufficient cpu" in found["message"]
        gateway = (await space.list(POD, "app.kubernetes.io/component=gateway"))[0]["metadata"]["name"]
        tokenizer = (await space.list(POD, "app.kubernetes.io/component=tokenizer"))[0]["metadata"]["name"]
        pull = {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "x/gateway:9"'}}
        await _report(space, gateway, "gateway", pull)
        crash = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}
        await _report(space, tokenizer, "tokenizer", crash, {"terminated": {"exitCode": 2, "reason": "Error"}})
        findings = await doctor(space, "smol")
        assert [found["check"] for found in findings[:3]] == ["images", "crash", "scheduling"], "by likelihood"
        assert 'pulling image "x/gateway:9"' in findings[0]["message"]
        assert "ended with exit code 2" in findings[1]["message"]
        assert "settings are wrong" in findings[1]["remedy"]


async def _has_findings(space: Namespace, check: str) -> bool:
    return any(found["check"] == check for found in await doctor(space))


async def _report(
    space: Namespace, pod: str, container: str, state: dict[str, Any], last: dict[str, Any] | None = None
) -> None:
    """As a kubelet would."""
    told = {"name": container, "image": "x", "imageID": "", "ready": False, "restartCount": 3, "state": state}
    status = {
        "containerStatuses": [{**told, "lastState": last or {}}],
        "conditions": [{"type": "Ready", "status": "False"}, {"type": "PodScheduled", "status": "True"}],
    }
    path = f"{object_path(POD, space.name, pod)}/status"
    await space.call("PATCH", path, {"status": status}, "application/merge-patch+json")


QUOTA = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}}
RANGE = {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "r"}}
REFUSALS: dict[str, tuple[dict[str, Any] | None, dict[str, Any], str, str]] = {
    "a quota of pods": (
        {**QUOTA, "spec": {"hard": {"pods": "0"}}},
        {},
        "exceeded quota: q",
        "raise it, or ask for less",
    ),
    "a quota of memory": (
        {**QUOTA, "spec": {"hard": {"limits.cpu": "100"}}},
        {},
        "failed quota: q: must specify limits.cpu",
        "by a LimitRange's defaults",
    ),
    "a range": (
        {**RANGE, "spec": {"limits": [{"type": "Container", "max": {"cpu": "2m"}}]}},
        {},
        "must be less than or equal to cpu limit of 2m",
        "kubectl describe limitrange",
    ),
    "the security standard": (
        None,
        {"spec__kvCache": {"cpu": "1Gi", "placement": "Node"}},
        'violates PodSecurity "restricted',
        "kvCache.placement: Pod",
    ),
    "the security standard and a template": (
        None,
        {"spec__podTemplate": {"gateway": {"spec": {"hostNetwork": True}}}},
        'violates PodSecurity "restricted',
        "keep to the standard in spec.podTemplate",
    ),
}


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_pods_that_may_not_be_made(space: Namespace, refusal: str) -> None:
    plugin, fields, words, remedy = REFUSALS[refusal]
    if plugin is not None:
        await space.call("POST", f"/api/v1/namespaces/{space.name}/{plugin['kind'].lower()}s", plugin)
    async with served(space, **fields):
        await eventually(lambda: _has_findings(space, "pods"), "it is seen", 30)
        findings = await doctor(space)
        assert findings[0]["check"] == "pods", "the likeliest cause comes first"
        assert words in findings[0]["message"]
        assert remedy in findings[0]["remedy"]


async def test_a_service_is_not_told_of_another_whose_name_begins_alike(space: Namespace) -> None:
    other = with_fields(
        MINIMAL_ON_KUBERNETES,
        {"metadata.name": "smol-gateway-b", "spec.podTemplate": {"gateway": {"spec": {"hostNetwork": True}}}},
    )
    async with served(space):
        await space.until_phase("smol", "Ready")
        await space.create(other)
        await eventually(lambda: _has_findings(space, "pods"), "the other one's pods are refused", 30)
        assert "pods" not in [found["check"] for found in await doctor(space, "smol")]


async def test_a_webhook_that_does_not_answer(space: Namespace) -> None:
    name = f"doctor-{secrets.token_hex(4)}"
    configuration = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": name},
        "webhooks": [
            {
                "name": "isvc.shoal.dev",
                "rules": [
                    {
                        "apiGroups": ["shoal.dev"],
                        "apiVersions": ["v1alpha1"],
                        "operations": ["CREATE"],
                        "resources": ["inferenceservices"],
                    }
                ],
                "clientConfig": {"url": "https://127.0.0.1:9/validate", "caBundle": _ca(space.plane)},
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": space.name}},
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "timeoutSeconds": 1,
            }
        ],
    }
    await space.call("POST", CONFIGURATIONS, configuration)
    try:
        await eventually(lambda: _has_findings(space, "webhook"), "it is in force")
        [found] = [found for found in await doctor(space) if found["check"] == "webhook"]
        assert "isvc.shoal.dev" in found["message"]
        assert f"kubectl delete validatingwebhookconfiguration {name}" in found["remedy"]
    finally:
        await space.call("DELETE", f"{CONFIGURATIONS}/{name}")


def _ca(plane: ControlPlane) -> str:
    return base64.b64encode((plane.folder / "ca.crt").read_bytes()).decode()


async def test_rights_that_the_operator_lacks(space: Namespace) -> None:
    account = f"operator-{secrets.token_hex(4)}"
    body = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account}}
    await space.call("POST", f"/api/v1/namespaces/{space.name}/serviceaccounts", body)
    flag = ("--operator-account", f"{space.name}/{account}")
    [found] = await doctor(space, *flag)
    assert found["check"] == "rights"
    assert "may not list inferenceservices" in found["message"]
    granted = [found for found in roles(account, space.name) if found["kind"].startswith("Cluster")]
    text = yaml.safe_dump_all(granted)
    await asyncio.to_thread(space.plane.kubectl, "apply", "--server-side", "-f", "-", stdin=text)
    try:
        await eventually(lambda: _is_fine(space, *flag), "it has them")
    finally:
        await asyncio.to_thread(space.plane.kubectl, "delete", "--wait=false", "-f", "-", stdin=text)
    usage = await run(space, "doctor", "--operator-account", "x")
    assert usage.exit_code == 2


async def _is_fine(space: Namespace, *arguments: str) -> bool:
    return await doctor(space, *arguments) == []


async def test_who_may_see_little_is_told_so(space: Namespace, tmp_path: Path) -> None:
    """A person with no rights but to log in."""
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
    path = f"/api/v1/namespaces/{space.name}/serviceaccounts/default/token"
    await eventually(lambda: _has_account(space), "the namespace has its account")
    token = (await space.call("POST", path, body))["status"]["token"]
    config = yaml.safe_load(space.plane.kubeconfig.read_text())
    config["users"] = [{"name": "admin", "user": {"token": token}}]
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(config))
    result = await run(space, "doctor", kubeconfig=kubeconfig)
    assert result.exit_code == 0, result.output
    assert "services: could not be read" in result.stdout
    assert "run this as somebody who may" in result.stdout


async def _has_account(space: Namespace) -> bool:
    accounts = await space.list(Kind("v1", "", "serviceaccounts"))
    return any(found["metadata"]["name"] == "default" for found in accounts)


async def test_a_claim_that_is_not_there(space: Namespace) -> None:
    async with served(space, spec__model__cacheClaim="weights"):
        await eventually(lambda: _has_findings(space, "storage"), "it is seen")
        found = next(found for found in await doctor(space) if found["check"] == "storage")
        assert "there is no PersistentVolumeClaim weights" in found["message"]


async def test_a_service_that_leads_nowhere(space: Namespace) -> None:
    async with served(space):
        await space.until_phase("smol", "Ready")
    # Without the operator, which would put it right.
    await space.patch(SERVICE, "smol-tokenizer", {"spec": {"selector": {"app.kubernetes.io/component": "wrong"}}})
    await eventually(lambda: _has_findings(space, "endpoints"), "nobody is behind it")
    [found] = [found for found in await doctor(space) if found["check"] == "endpoints"]
    assert found["message"] == "Service smol-tokenizer leads to 0 of 1 ready pods"


async def test_gpus_that_nobody_has_enough_of(space: Namespace) -> None:
    async with served(space, spec__workers={"device": "cuda", "replicas": 20}):
        text = "4 pods wait for 4 GPUs; 16 of the cluster's 16 are in use"

        async def is_told() -> bool:
            return any(found["message"] == text for found in await doctor(space))

        await eventually(is_told, "pods wait for GPUs", 30)
        findings = {found["check"]: found for found in await doctor(space)}
        assert "Insufficient nvidia.com/gpu" in findings["scheduling"]["message"]


async def test_what_the_operator_could_not_apply_and_what_is_paused(space: Namespace) -> None:
    stranger = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "smol-gateway"}}
    await space.call("POST", f"/api/v1/namespaces/{space.name}/serviceaccounts", stranger)
    async with served(space, spec__paused=True):
        await space.until_phase("smol", "Paused")
        assert "paused" in [found["check"] for found in await doctor(space)]
        await space.patch(Kind("shoal.dev/v1alpha1", "", "inferenceservices"), "smol", {"spec": {"paused": False}})
        await space.until_phase("smol", "Failed")
        found = (await doctor(space))[0]
        assert found["check"] == "objects"
        assert found["message"].startswith("NameTaken: there is a ServiceAccount smol-gateway already")
