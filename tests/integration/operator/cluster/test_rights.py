"""The operator's rights suffice, and are what it uses."""

from __future__ import annotations

import json
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shoal.operator.api.crd import PLURAL
from shoal.operator.planner.kubernetes import ALL_KINDS, FIELD_MANAGER, MANAGED_BY
from shoal.operator.planner.kubernetes.plan import Kind
from shoal.operator.reconcile.reconciler import SERVICE_KIND
from shoal.operator.reconcile.rights import (
    GROUP_OF_WEBHOOKS,
    configuration_rules,
    lease_rules,
    roles,
    rules,
    secret_rules,
)
from shoal.operator.webhook import validating_webhook_configuration
from shoal.operator.webhook.configuration import SECRET_NAME
from support.control_plane.cluster import ControlPlane
from support.eventually import eventually
from support.logged_process import LoggedProcess
from support.manifests import MINIMAL_ON_KUBERNETES, with_fields
from support.operator_running import Namespace

pytestmark = pytest.mark.cluster
SECRET = Kind("v1", "Secret", "secrets")
OF_OTHER_KINDS = {
    "metadata.name": "more",
    "spec.workers": {"device": "cuda", "parallelism": {"pipeline": 2}, "resources": {"gpus": 1}},
    "spec.kvCache": {"cpu": "1Gi", "placement": "Node"},
    "spec.autoscaling": {"maxReplicas": 2, "engine": "keda"},
    "spec.slo": {"ttftMilliseconds": 500},
}


@pytest.fixture
def account(control_plane: ControlPlane, namespace: str) -> Iterator[str]:
    """A ServiceAccount with the operator's rights, in a namespace of its own name."""
    name = f"operator-{secrets.token_hex(4)}"
    body = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}
    control_plane.request("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", json.dumps(body).encode())
    granted = roles(name, namespace, configuration=name)
    for found in granted:
        control_plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(found))
    yield name
    control_plane.kubectl("delete", "validatingwebhookconfiguration", name, "--ignore-not-found")
    for found in granted:
        control_plane.kubectl("delete", "--wait=false", "-f", "-", stdin=json.dumps(found))


def used(plane: ControlPlane, user: str, namespace: str) -> dict[tuple[str, str, str], int]:
    """(API group, resource with subresource, verb) -> answer's code, of everything that this user asked for there or
    without a namespace. In namespaces of other tests, which end, nothing may be made."""
    found = {}
    for line in plane.audit_log.read_text().splitlines():
        entry = json.loads(line)
        if entry["user"]["username"] != user or "objectRef" not in entry:
            continue
        about = entry["objectRef"]
        if about.get("namespace", namespace) != namespace:
            continue
        resource = "/".join(filter(None, (about["resource"], about.get("subresource"))))
        found[about.get("apiGroup", ""), resource, entry["verb"]] = entry.get("responseStatus", {}).get("code", 0)
    return found


async def test_the_role_is_what_the_operator_uses(
    control_plane: ControlPlane, namespace: str, account: str, tmp_path: Path
) -> None:
    space = Namespace(control_plane, namespace)
    kubeconfig = control_plane.kubeconfig_of(namespace, account, tmp_path / "kubeconfig")
    await _leave_webhook(space, account)
    flags = (
        f"--kubeconfig={kubeconfig}",
        f"--lease-namespace={namespace}",
        f"--webhook-configuration={account}",
        f"--webhook-secret={namespace}/{SECRET_NAME}",
        "--webhook-port=0",
        "--resync-s=2",
        "--log-format=json",
    )
    async with await LoggedProcess.launch("shoal.operator.main", *flags) as process:
        await process.wait_logged("webhook")
        await process.wait_logged("watching")
        await space.delete(SECRET, SECRET_NAME)
        await space.create(with_fields(MINIMAL_ON_KUBERNETES, {"spec.autoscaling": {"maxReplicas": 2}}))
        await space.until_phase("smol", "Ready")
        await space.create(with_fields(MINIMAL_ON_KUBERNETES, OF_OTHER_KINDS))
        await eventually(lambda: _has_all_kinds(space), "something of each kind is there")
        await _leave_something_of_each_kind(space)
        await eventually(lambda: _is_pruned(space), "what is not planned goes")
        await eventually(lambda: _has_secret(space), "the webhook's certificate is made anew")
        await space.delete(SERVICE_KIND, "smol")
        process.signal(signal.SIGTERM)
        assert await process.wait_ended() == 0, process.logs[-5:]
    calls = used(control_plane, f"system:serviceaccount:{namespace}:{account}", namespace)
    assert [call for call, code in calls.items() if code == 403] == []
    granted = {
        (group, resource, verb)
        for rule in rules() + configuration_rules() + lease_rules() + secret_rules()
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    asked = set(calls)
    # Applying an object that is not there yet needs the right to create it, and is logged as the patch that it is.
    asked |= {
        (group, resource, "create")
        for group, resource, verb in asked
        if verb == "patch" and "/" not in resource and group != GROUP_OF_WEBHOOKS  # which it never makes
    }
    assert asked - granted == set()
    assert granted - asked == {("shoal.dev", f"{PLURAL}/finalizers", "update")}


async def _leave_webhook(space: Namespace, name: str) -> None:
    """A configuration, as of a chart, and a Secret that holds no certificate."""
    found = validating_webhook_configuration("https://127.0.0.1:1", name=name, namespaces=(space.name,))
    space.plane.kubectl("create", "-f", "-", stdin=json.dumps(found))
    data = dict.fromkeys(("tls.crt", "tls.key"), "anVuaw==")
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET_NAME}, "type": "kubernetes.io/tls"}
    await space.call("POST", f"/api/v1/namespaces/{space.name}/secrets", secret | {"data": data})


async def _has_secret(space: Namespace) -> bool:
    return bool(await space.list(SECRET))


async def _objects(space: Namespace) -> dict[Kind, dict[str, Any]]:
    """One of each kind that plans may hold."""
    lists = {kind: await space.list(kind, f"{MANAGED_BY}={FIELD_MANAGER}") for kind in ALL_KINDS}
    return {kind: found[0] for kind, found in lists.items() if found}


async def _has_all_kinds(space: Namespace) -> bool:
    return len(await _objects(space)) == len(ALL_KINDS)


async def _leave_something_of_each_kind(space: Namespace) -> None:
    for kind, found in (await _objects(space)).items():
        metadata = {key: found["metadata"][key] for key in ("labels", "ownerReferences", "namespace")}
        body: dict[str, Any] = {**found, "apiVersion": kind.api_version, "kind": kind.kind}
        body["metadata"] = {**metadata, "name": "smol-old"}
        body.pop("status", None)
        if kind.kind == "Service":
            body["spec"] = {"ports": found["spec"]["ports"], "clusterIP": "None"}
        space.plane.kubectl("create", "-f", "-", stdin=json.dumps(body))


async def _is_pruned(space: Namespace) -> bool:
    lists = [await space.list(kind) for kind in ALL_KINDS]
    return not [item for found in lists for item in found if item["metadata"]["name"] == "smol-old"]


async def test_an_operator_with_a_part_of_its_rights_says_what_it_lacks_and_goes_on_once_it_has_it(
    control_plane: ControlPlane, namespace: str, account: str, tmp_path: Path
) -> None:
    space = Namespace(control_plane, namespace)
    granted = next(found for found in roles(account, namespace) if found["kind"] == "ClusterRole")
    lacking = [rule if rule["resources"] != ["deployments"] else {**rule, "verbs": ["get", "list", "watch"]}
               for rule in granted["rules"]]  # fmt: skip
    control_plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps({**granted, "rules": lacking}))
    kubeconfig = control_plane.kubeconfig_of(namespace, account, tmp_path / "kubeconfig")
    flags = (f"--kubeconfig={kubeconfig}", f"--namespaces={namespace}", "--resync-s=2", "--log-format=json")
    async with await LoggedProcess.launch("shoal.operator.main", *flags) as process:
        await process.wait_logged("watching")
        await space.create(with_fields(MINIMAL_ON_KUBERNETES, {}))
        status = await space.until_phase("smol", "Failed")
        planned = next(found for found in status["conditions"] if found["type"] == "Planned")
        assert planned["reason"] == "Forbidden"
        assert f'serviceaccount:{namespace}:{account}" cannot patch resource "deployments"' in planned["message"]
        assert ("StatefulSet", "smol-worker") in await space.objects("smol"), "what may be done is done"
        control_plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(granted))
        await space.until_phase("smol", "Ready")
        assert process.process.returncode is None
