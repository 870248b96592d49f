"""Autoscaling, monitors, what is public, and what a cluster cannot do."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from shoal.operator.api import InferenceService, parse_manifest
from shoal.operator.envoy import render_resources
from shoal.operator.planner.kubernetes import OPTIONAL_APIS, Manifest, Owner, Platform, find_infeasible, plan
from shoal.operator.planner.kubernetes.envoy import envoy_options
from shoal.operator.xds import Kind
from shoal.operator.xds.snapshot import encode
from support.manifests import MINIMAL_ON_KUBERNETES, with_fields

OWNER = Owner(namespace="models")
EVERYTHING_THERE = Platform(apis=OPTIONAL_APIS)
TWO_PODS = {"device": "cuda", "parallelism": {"tensor": 8, "pipeline": 2}}
SCALED = {"minReplicas": 2, "maxReplicas": 6}


def service_of(fields: dict[str, Any]) -> InferenceService:
    return parse_manifest(yaml.safe_dump(with_fields(MINIMAL_ON_KUBERNETES, fields)), "m.yaml")


def planned(fields: dict[str, Any], platform: Platform = EVERYTHING_THERE) -> dict[str, list[Manifest]]:
    found: dict[str, list[Manifest]] = {}
    for each in plan(service_of(fields), platform, OWNER):
        found.setdefault(each["kind"], []).append(each)
    return found


def test_autoscaling_sets_the_number_of_the_service_itself() -> None:
    objects = planned({"spec.autoscaling": {**SCALED, "scaleDownStabilizationSeconds": 60}})
    (scaler,) = objects["HorizontalPodAutoscaler"]
    spec = scaler["spec"]
    assert spec["scaleTargetRef"] == {"apiVersion": "shoal.dev/v1alpha1", "kind": "InferenceService", "name": "smol"}
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 6)
    assert spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 60
    (measured,) = spec["metrics"]
    assert measured["object"]["metric"]["name"] == "shoal_queued_requests"
    assert measured["object"]["target"] == {"type": "AverageValue", "averageValue": "4000m"}


@pytest.mark.parametrize(("asked", "expected"), [(1, 2), (4, 4), (9, 6)])
def test_a_number_beyond_the_bounds_is_brought_within(asked: int, expected: int) -> None:
    objects = planned({"spec.autoscaling": SCALED, "spec.workers.replicas": asked})
    assert objects["StatefulSet"][0]["spec"]["replicas"] == expected


def test_keda_asks_prometheus() -> None:
    metric = {"name": "tokensPerSecond", "target": 2500}
    objects = planned({"spec.autoscaling": {**SCALED, "engine": "keda", "metric": metric}})
    assert "HorizontalPodAutoscaler" not in objects
    (trigger,) = objects["ScaledObject"][0]["spec"]["triggers"]
    assert trigger["metadata"]["threshold"] == "2500"
    assert trigger["metadata"]["query"] == (
        'sum(rate(shoal_worker_generation_tokens_total{namespace="models",shoal_dev_inferenceservice="smol"}[1m]))'
    )


def test_prometheus_is_told_where_metrics_are() -> None:
    objects = planned({"spec.kvCache.cpu": "1Gi"})
    (monitor,) = objects["ServiceMonitor"]
    ports = {port["name"] for service in objects["Service"] for port in service["spec"]["ports"]}
    assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= ports
    chosen = monitor["spec"]["selector"]["matchLabels"].items()
    assert all(chosen <= service["metadata"]["labels"].items() for service in objects["Service"])
    assert "PrometheusRule" not in objects


def test_monitors_are_left_out_where_they_are_unknown_or_not_wanted() -> None:
    assert "ServiceMonitor" not in planned({}, Platform())
    assert "ServiceMonitor" not in planned({"spec.observability.serviceMonitor": False})
    assert "PrometheusRule" not in planned({"spec.slo": {"ttftMilliseconds": 500}}, Platform())


def test_aims_become_alerts() -> None:
    (rules,) = planned({"spec.slo": {"ttftMilliseconds": 500, "itlMilliseconds": 40}})["PrometheusRule"]
    found = rules["spec"]["groups"][0]["rules"]
    assert [each["expr"].rpartition(" > ")[2] for each in found] == ["0.5", "0.04"]


def test_the_public_service_is_as_asked() -> None:
    gateway = {
        "port": 80,
        "grpc": {"port": 9000},
        "http": {"port": 443},
        "service": {"type": "LoadBalancer", "annotations": {"example.com/a": "b"}},
    }
    objects = planned({"spec.gateway": gateway})
    (public,) = (each for each in objects["Service"] if each["metadata"]["name"] == "smol")
    assert public["metadata"]["annotations"] == {"example.com/a": "b"}
    assert public["spec"]["type"] == "LoadBalancer"
    assert {port["port"]: port["targetPort"] for port in public["spec"]["ports"]} == {80: 8080, 9000: 8081, 443: 8082}


def test_envoys_are_told_of_each_port() -> None:
    service = service_of({"spec.gateway": {"grpc": {"port": 9000}, "http": {"port": 443}}})
    options = envoy_options(service, EVERYTHING_THERE, OWNER)
    snapshot = encode(render_resources(options, {}))
    edges = {"edge", "edge-grpc", "edge-http", "mesh"}
    assert set(snapshot.of(Kind.LISTENER)) == set(snapshot.of(Kind.ROUTES)) == edges


def test_what_a_cluster_lacks_is_named() -> None:
    service = service_of({"spec.workers": TWO_PODS, "spec.autoscaling": {**SCALED, "engine": "keda"}})
    problems = {problem.path: problem.message for problem in find_infeasible(service, Platform())}
    assert (
        "16 GPUs at 8 a pod make a worker of 2 pods, which takes LeaderWorkerSet"
        in problems["spec.workers.parallelism"]
    )
    assert "give hpa" in problems["spec.autoscaling.engine"]
    assert find_infeasible(service, EVERYTHING_THERE) == []


def test_adapters_need_nothing_of_a_cluster() -> None:
    service = service_of({"spec.adapters": [{"name": "sql", "uri": "hf://org/sql"}]})
    assert find_infeasible(service, Platform()) == []
