"""Prometheus understands every query of dashboards and alerts."""

from __future__ import annotations

import json

import pytest
import yaml

from support.control_plane.helm import CHART, Helm, find
from support.control_plane.promql import find_query_errors

pytestmark = pytest.mark.cluster


@pytest.mark.usefixtures("helm")  # which skips where nothing can be built
def test_dashboards_ask_what_prometheus_understands() -> None:
    dashboards = [json.loads(path.read_text()) for path in (CHART / "files" / "dashboards").glob("*.json")]
    queries = [
        target["expr"].replace("$__rate_interval", "5m")  # as Grafana does
        for dashboard in dashboards
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    ]
    assert len(queries) > 50
    assert find_query_errors(queries) == []


def test_alerts_ask_what_prometheus_understands(helm: Helm) -> None:
    found = find(helm.template("shoal", "shoal-system", "--set=alerts.enabled=true"), "PrometheusRule")
    queries = [" ".join(rule["expr"].split()) for group in found["spec"]["groups"] for rule in group["rules"]]
    assert find_query_errors(queries) == []
    assert len(find_query_errors([f"{query} >" for query in queries])) == len(queries) > 10


def test_an_adapter_asks_what_prometheus_understands(helm: Helm) -> None:
    found = find(
        helm.template("shoal", "shoal-system", "--set=metrics.adapterRules.enabled=true"),
        "ConfigMap",
        "shoal-operator-adapter-rules",
    )
    rules = yaml.safe_load(found["data"]["config.yaml"])["rules"]
    # As the adapter fills them in.
    chosen = {
        "<<.LabelMatchers>>": 'namespace="a",shoal_dev_inferenceservice=~"b|c"',
        "<<.GroupBy>>": "shoal_dev_inferenceservice",
    }
    queries = [rule["seriesQuery"] for rule in rules]
    for rule in rules:
        query = rule["metricsQuery"]
        for placeholder, text in chosen.items():
            assert placeholder in query
            query = query.replace(placeholder, text)
        queries.append(query)
    assert not [query for query in queries if "<<" in query]
    assert find_query_errors(queries) == []
