"""What the chart takes from the source is what the source says."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

import shoal.gateway.admission.metrics
import shoal.gateway.metrics
import shoal.operator.measures
import shoal.rpc.interceptor  # noqa: F401 - all four register metrics
from shoal.kv_store.metrics import StoreCollector
from shoal.kv_store.remote.metrics import PeerCollector
from shoal.lora_registry.metrics import RegistryCollector
from shoal.model_worker.metrics import WorkerMetrics
from shoal.operator.api import parse_manifest
from shoal.operator.planner.kubernetes import OPTIONAL_APIS, Owner, Platform, plan
from shoal.operator.reconcile.controller import Controller
from shoal.operator.reconcile.metrics import OperatorCollector
from support.kv_store_core import open_core
from support.manifests import MINIMAL_ON_KUBERNETES, with_fields
from support.memory_disk import MemoryDisk

ROOT = Path(__file__).parents[3]
CHART = ROOT / "charts" / "shoal"
SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
}
# Prometheus writes the label shoal.dev/... with underscores.
METRIC = re.compile(r"\b(?:shoal|process)_(?!dev_)[a-z0-9_]+")


def test_generated_files_are_up_to_date() -> None:
    generated = runpy.run_path(str(ROOT / "tools" / "generate_chart.py"))["generate"]()
    for path, text in generated.items():
        assert path.read_text() == text, f"{path} is out of date: run python tools/generate_chart.py"
    assert {path for path in (CHART / "files").rglob("*") if path.is_file()} == generated.keys()


def test_the_schema_knows_the_values_and_no_others() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert {path for path in _schema_paths(schema) if path != ("global",)} == set(_value_paths(values, schema))


async def test_every_metric_that_is_looked_at_exists() -> None:
    known = {name async for name in _metric_names()}
    dashboards = {path.name: json.loads(path.read_text()) for path in (CHART / "files" / "dashboards").glob("*.json")}
    queries = [
        (f"{name}: {panel['title']}", target["expr"])
        for name, dashboard in dashboards.items()
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    ]
    queries += [
        (f"{name}: namespaces", variable["query"]["query"])
        for name, dashboard in dashboards.items()
        for variable in dashboard["templating"]["list"]
        if variable["type"] == "query"
    ]
    queries += [(rule["alert"], rule["expr"]) for rule in _alerts()]
    assert len(queries) > 50
    unknown = {(place, name) for place, query in queries for name in METRIC.findall(query) if name not in known}
    assert unknown == set()
    assert all(METRIC.search(query) for _, query in queries)


async def test_an_adapter_serves_what_autoscalers_ask_for() -> None:
    known = {name async for name in _metric_names()}
    rules = yaml.safe_load((CHART / "files" / "adapter-rules.yaml").read_text())["rules"]
    served = {rule["name"]["as"]: rule for rule in rules}
    asked = {name: _autoscaler(name) for name in ("queue", "kv_cache", "tokensPerSecond")}
    assert served.keys() == {measured["metric"]["name"] for measured in asked.values()}
    for measured in asked.values():
        rule = served[measured["metric"]["name"]]
        names = METRIC.findall(rule["metricsQuery"])
        assert rule["seriesQuery"].partition("{")[0] in names
        assert set(names) <= known
        ((label, described),) = (item for item in rule["resources"]["overrides"].items() if item[0] != "namespace")
        assert label == "shoal_dev_inferenceservice"
        kind = measured["describedObject"]
        assert (described["group"], described["resource"]) == (kind["apiVersion"].split("/")[0], kind["kind"].lower())


def _autoscaler(metric: str) -> dict[str, Any]:
    """What a HorizontalPodAutoscaler asks for."""
    manifest = with_fields(
        MINIMAL_ON_KUBERNETES, {"spec.autoscaling": {"maxReplicas": 4, "metric": {"name": metric, "target": 0.5}}}
    )
    objects = plan(parse_manifest(yaml.safe_dump(manifest), "m"), Platform(), Owner(namespace="models"))
    [scaler] = [found for found in objects if found["kind"] == "HorizontalPodAutoscaler"]
    [found] = scaler["spec"]["metrics"]
    measured: dict[str, Any] = found["object"]
    return measured


def test_a_mesh_is_chosen_by_the_label_that_monitors_give() -> None:
    objects = plan(parse_manifest(MINIMAL_ON_KUBERNETES, "m"), Platform(apis=OPTIONAL_APIS), Owner(namespace="models"))
    [monitor] = [found for found in objects if found["kind"] == "ServiceMonitor"]
    labels = {re.sub(r"[^a-z0-9]", "_", label) for label in monitor["spec"]["targetLabels"]}
    for name in ("serving", "caches", "kv-store"):
        dashboard = json.loads((CHART / "files" / "dashboards" / f"{name}.json").read_text())
        [query] = [each["query"]["query"] for each in dashboard["templating"]["list"] if each["name"] == "service"]
        assert query.rpartition(", ")[2].rstrip(")") in labels


@pytest.mark.parametrize("path", sorted((CHART / "files" / "dashboards").glob("*.json")), ids=lambda path: path.stem)
def test_panels_do_not_overlap(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }  # of a grid 24 wide
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_alerts_say_how_bad_it_is_and_what_to_do() -> None:
    names = [rule["alert"] for rule in _alerts()]
    assert len(set(names)) == len(names) > 10
    for rule in _alerts():
        assert rule["labels"]["severity"] in ("critical", "warning"), rule["alert"]
        assert rule["annotations"].keys() == {"summary", "description"}, rule["alert"]


def _alerts() -> list[dict[str, Any]]:
    # Without its two templates the file is YAML.
    text = re.sub(r"\{\{ \.Values[^}]*\}\}", "1", (CHART / "alerts.yaml").read_text())
    text = re.sub(r'\{\{ "(\{\{.*?\}\})" \}\}', "VALUE", text)
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


async def _metric_names() -> AsyncIterator[str]:
    """As Prometheus stores them."""
    worker = WorkerMetrics()
    worker.kv_store.is_configured = True
    collectors: list[Collector] = [
        worker,
        PeerCollector(SimpleNamespace(peers=[], outbox=[])),  # type: ignore[arg-type]
        OperatorCollector(Controller(None, Platform())),  # type: ignore[arg-type]
        RegistryCollector(
            SimpleNamespace(contents=lambda: ([], []), limits=SimpleNamespace(max_bytes=1)),  # type: ignore[arg-type]
            SimpleNamespace(problems={}, wanted=[]),  # type: ignore[arg-type]
        ),
    ]
    async with open_core(files=MemoryDisk()) as core:
        for collector in (*collectors, StoreCollector(core.store)):
            registry = CollectorRegistry()
            registry.register(collector)
            for name in _names(registry.collect()):
                yield name
    for name in _names(REGISTRY.collect()):
        yield name


def _names(families: Iterable[Metric]) -> Iterator[str]:
    for family in families:
        for suffix in SUFFIXES.get(family.type, ()):
            yield family.name + suffix


def _schema_paths(schema: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if "properties" not in schema:
        yield path
        return
    assert schema["additionalProperties"] is False, path
    for name, child in schema["properties"].items():
        yield from _schema_paths(child, (*path, name))


def _value_paths(values: Any, schema: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if "properties" not in schema:
        yield path
        return
    for name, value in values.items():
        yield from _value_paths(value, schema["properties"][name], (*path, name))
