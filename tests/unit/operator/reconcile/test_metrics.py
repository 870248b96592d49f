"""What the operator tells Prometheus."""

from __future__ import annotations

from typing import cast

from prometheus_client import REGISTRY, CollectorRegistry

from shoal.operator.planner.kubernetes import Platform
from shoal.operator.reconcile.api_client import ApiClient
from shoal.operator.reconcile.controller import Controller
from shoal.operator.reconcile.metrics import OperatorCollector
from shoal.operator.xds.snapshot import Kind
from shoal.operator.xds.store import Rejection


def service(name: str, status: dict[str, str] | None) -> dict[str, object]:
    return {"metadata": {"namespace": "models", "name": name}, **({} if status is None else {"status": status})}


def sample(name: str, **labels: str) -> float:
    """Of what is counted where it happens, by all tests of this process."""
    return REGISTRY.get_sample_value(f"shoal_operator_{name}", labels) or 0.0


async def test_numbers_are_those_of_the_controller() -> None:
    controller = Controller(cast(ApiClient, None), Platform())
    registry = CollectorRegistry()
    registry.register(OperatorCollector(controller))
    for name, status in {"a": {"phase": "Ready"}, "b": {"phase": "Ready"}, "c": None, "d": {"phase": "Odd"}}.items():
        controller.reconciler.services["models", name] = service(name, status)
    controller.reconciler.writes = False
    controller.snapshots.joined("models/a", "envoy-0")
    controller.snapshots.joined("models/b", "envoy-0")
    controller.snapshots.rejected(Rejection("models/a", "envoy-0", Kind.CLUSTER, "1", "no"))
    for name in "ab":
        controller.queue.add(("models", name), 0.0)
    results = ("done", "failed")
    before = [sample("reconcile_seconds_count", result=result) for result in results]
    num_waited = sample("queue_seconds_count")
    assert controller.queue.failed(await controller.queue.get()) > 0
    controller.queue.done(await controller.queue.get())

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"shoal_operator_{name}", labels)

    assert [value("inferenceservices", phase=phase) for phase in ("Ready", "Failed", "Unknown")] == [2, 0, 2]
    assert value("leads") == 0
    assert [value("queue_services", state=state) for state in ("waiting", "running", "failing")] == [1, 0, 1]
    unready = {"inferenceservice": "models/c", "phase": "Unknown"}
    assert value("inferenceservice_not_ready", **unready) == 1
    assert value("inferenceservice_not_ready", inferenceservice="models/a", phase="Ready") is None
    assert value("inferenceservice_not_ready", inferenceservice="models/d", phase="Unknown") == 1
    counted = [sample("reconcile_seconds_count", result=result) for result in results]
    assert [now - then for now, then in zip(counted, before, strict=True)] == [1, 1]
    assert sample("queue_seconds_count") == num_waited + 2
    assert value("discovery_clients") == 2
    assert value("discovery_rejections") == 1
