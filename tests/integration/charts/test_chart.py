"""The chart, by helm's own eyes and a real API server's."""

from __future__ import annotations

import json
import secrets
import subprocess
import urllib.error
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.config import load
from shoal.operator.config import OperatorConfig
from shoal.operator.main import platform_of
from shoal.operator.planner.kubernetes import Platform
from shoal.operator.reconcile import rights
from shoal.operator.webhook.configuration import ServiceTarget, validating_webhook_configuration
from support.control_plane.cluster import ControlPlane
from support.control_plane.helm import CHART, Helm, find

pytestmark = pytest.mark.cluster

VALUES = {"default": [], **{path.stem: [f"--values={path}"] for path in sorted((CHART / "ci").glob("*.yaml"))}}
every_values = pytest.mark.parametrize("flags", VALUES.values(), ids=VALUES)
# What a cluster with Prometheus' operator has.
MONITORED = [f"--api-versions=monitoring.coreos.com/v1/{kind}" for kind in ("ServiceMonitor", "PrometheusRule")]


@every_values
def test_helm_finds_nothing_to_complain_about(helm: Helm, flags: list[str]) -> None:
    said = helm("lint", "--strict", str(CHART), *flags)
    assert "1 chart(s) linted, 0 chart(s) failed" in said
    assert "WARNING" not in said
    assert helm.template("shoal", "shoal-system", *flags) == helm.template("shoal", "shoal-system", *flags)


@every_values
def test_the_api_server_takes_every_object(cluster: ControlPlane, helm: Helm, flags: list[str]) -> None:
    """Against its own schemas, with unknown fields refused, and the "restricted" security standard for pods."""
    namespace = f"chart-{secrets.token_hex(4)}"
    for name in (namespace, *(["team-a", "team-b"] if "namespaces" in str(flags) else [])):
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        cluster.request("POST", "/api/v1/namespaces", json.dumps(body).encode())
    objects = helm.template("shoal", namespace, *flags, *MONITORED)
    listed = {"apiVersion": "v1", "kind": "List", "items": objects}
    created = cluster.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", stdin=json.dumps(listed))
    assert len(created.splitlines()) == len(objects) > 5
    spec = find(objects, "Deployment")["spec"]["template"]["spec"]
    del spec["serviceAccountName"]  # it is not there
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": spec}
    path = f"/api/v1/namespaces/{namespace}/pods?dryRun=All"
    cluster.request("POST", path, json.dumps(pod).encode())
    spec["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    with pytest.raises(urllib.error.HTTPError):
        cluster.request("POST", path, json.dumps(pod).encode())


@pytest.mark.parametrize(
    ("prefix", "image"),
    [
        ("registry.example/shoal", "registry.example/shoal/operator:7"),
        ("registry.example/shoal/", "registry.example/shoal/operator:7"),
        ("registry.example/shoal-", "registry.example/shoal-operator:7"),
        ("registry.example:5000", "registry.example:5000/operator:7"),
        ("", "operator:7"),
    ],
)
def test_images_are_in_the_folder_that_is_given(helm: Helm, prefix: str, image: str) -> None:
    objects = helm.template(
        "shoal", "shoal-system", f"--set-string=images.prefix={prefix}", "--set-string=images.tag=7"
    )
    [container] = find(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == image
    config = load(OperatorConfig, program="shoal-operator", argv=container["args"], environ={})
    assert f"{config.image_prefix}operator:{config.image_tag}" == image


@every_values
def test_the_operator_takes_its_flags(helm: Helm, flags: list[str]) -> None:
    objects = helm.template("shoal", "shoal-system", *flags)
    deployment = find(objects, "Deployment")
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    config = load(OperatorConfig, program="shoal-operator", argv=container["args"], environ={})
    service = find(objects, "Service", deployment["metadata"]["name"])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports["discovery"] == (config.tls_port if config.tls_certificate else config.port)
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    for path in filter(None, (config.tls_certificate, config.tls_key, config.control_plane_ca)):
        assert str(Path(path).parent) in mounts
    assert ports["metrics"] == config.metrics_port
    host = f"{service['metadata']['name']}.shoal-system.svc"
    assert config.control_plane == f"{host}:{service['spec']['ports'][0]['port']}"
    platform = platform_of(replace(config, control_plane_ca=""))  # which is there in pods alone
    assert container["image"] == platform.images["operator"]
    if not flags:
        assert platform == Platform()
    webhooks = [found for found in objects if found["kind"] == "ValidatingWebhookConfiguration"]
    assert [found["metadata"]["name"] for found in webhooks] == list(filter(None, [config.webhook_configuration]))
    for found in webhooks:
        assert ports["webhook"] == config.webhook_port
        assert config.webhook_hosts == host
        target = found["webhooks"][0]["clientConfig"]["service"]
        assert f"{target['name']}.{target['namespace']}.svc" == host
        assert target["port"] in [port["port"] for port in service["spec"]["ports"] if port["targetPort"] == "webhook"]


@pytest.mark.parametrize("namespaces", [(), ("team-a", "team-b")])
def test_the_webhook_is_the_operators(helm: Helm, namespaces: tuple[str, ...]) -> None:
    flags = [f"--set=operator.namespaces={{{','.join(namespaces)}}}"] if namespaces else []
    found = find(helm.template("shoal", "shoal-system", *flags), "ValidatingWebhookConfiguration")
    target = ServiceTarget("shoal-system", "shoal-operator")
    wanted = validating_webhook_configuration(target, name="shoal-operator", namespaces=namespaces)
    assert found["webhooks"] == wanted["webhooks"]


def test_rights_are_those_that_the_operator_uses(helm: Helm) -> None:
    objects = helm.template("shoal", "shoal-system")
    wanted = rights.roles("shoal-operator", "shoal-system")
    for kind, name in (("ClusterRole", "shoal-operator"), ("Role", "shoal-operator-own")):
        assert find(objects, kind, name)["rules"] == find(wanted, kind)["rules"]
        binding = find(objects, f"{kind}Binding", name)
        assert binding["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name}
        assert binding["subjects"] == find(wanted, f"{kind}Binding")["subjects"]


def test_an_operator_of_some_namespaces_may_see_no_others(helm: Helm) -> None:
    objects = helm.template("shoal", "shoal-system", *VALUES["namespaces-values"])
    assert find(objects, "ClusterRole")["rules"] == rights.configuration_rules("team-shoal")
    for namespace in ("team-a", "team-b"):
        [role] = [each for each in objects if each["kind"] == "Role" and each["metadata"]["namespace"] == namespace]
        assert role["rules"] == rights.rules()


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("operator.replicas=0", "/operator/replicas"),
        ("operator.replica=2", "additional properties 'replica' not allowed"),
        ("webhook.failurePolicy=Maybe", "/webhook/failurePolicy"),
        ("images.tag=a b", "/images/tag"),
        ("alerts.errorRatio=2", "/alerts/errorRatio"),
    ],
)
def test_wrong_values_are_refused_by_name(helm: Helm, flag: str, said: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        helm.template("shoal", "shoal-system", f"--set={flag}")
    assert said in refused.value.stderr


def test_alerts_keep_prometheus_templates(helm: Helm) -> None:
    rule = find(helm.template("shoal", "shoal-system", *MONITORED), "PrometheusRule")
    alerts = [each for group in rule["spec"]["groups"] for each in group["rules"]]
    texts = [text for alert in alerts for text in alert["annotations"].values()]
    assert any("{{ $labels.namespace }}" in text for text in texts)
    assert not [text for text in texts if ".Values" in text or '{{ "' in text]


def test_nothing_asks_for_kinds_that_are_not_there(helm: Helm) -> None:
    kinds = {found["kind"] for found in helm.template("shoal", "shoal-system")}
    assert not kinds & {"ServiceMonitor", "PrometheusRule"}
    assert {"ServiceMonitor", "PrometheusRule"} <= {
        found["kind"] for found in helm.template("shoal", "shoal-system", *MONITORED)
    }


def test_the_chart_is_packaged_without_its_tests(helm: Helm, tmp_path: Path) -> None:
    helm("package", str(CHART), f"--destination={tmp_path}")
    [package] = tmp_path.glob("*.tgz")
    listed = subprocess.run(["tar", "tzf", str(package)], capture_output=True, text=True, check=True).stdout.split()
    assert "shoal/values.schema.json" in listed
    assert "shoal/files/crd.yaml" in listed
    assert not [name for name in listed if name.startswith("shoal/ci/")]
