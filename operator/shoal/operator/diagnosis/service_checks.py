"""What is wrong with an InferenceService beside its pods."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import Any, Final

from shoal.operator.diagnosis.facts import Facts, ServiceFacts
from shoal.operator.diagnosis.findings import Finding, problem, unknown, warning
from shoal.operator.diagnosis.scheduling_checks import waits_for_claim
from shoal.operator.planner.kubernetes import Manifest
from shoal.operator.reconcile.observing import ENGINES
from shoal.operator.xds.endpoint_slices import ready_endpoints

_PATIENCE_S: Final = 15.0
"""An operator has looked at a change by then."""
_NOT_APPLIED: Final = {
    "Forbidden": (84, "give the operator the right (chart's ClusterRole), or change the policy that refuses it"),
    "NameTaken": (74, "rename or delete that object, or rename the InferenceService"),
    "Infeasible": (75, "install what the message names, or change the spec"),
    "PlanFailed": (75, "report it, with the spec; what runs goes on"),
    "Invalid": (73, "a cluster of another version may refuse what is planned: see the message"),
}


def check_service(found: ServiceFacts, facts: Facts) -> Iterator[Finding]:
    """Of its spec, its status, and the Services in front of its pods."""
    service = found.service
    conditions = {c["type"]: c for c in service.get("status", {}).get("conditions", ())}
    yield from _check_seen(service, facts.now_s)
    yield from _check_planned(conditions)
    if service["spec"].get("paused"):
        yield warning("paused", 30, "spec.paused is true: nothing is changed or put right", "set it to false")
    yield from _check_claim(found, facts)
    yield from _check_endpoints(found)
    yield from _check_routes(conditions)
    yield from _check_caches(conditions)


def _check_seen(service: Manifest, now_s: float) -> Iterator[Finding]:
    metadata, status = service["metadata"], service.get("status", {})
    changed = [entry.get("time") for entry in metadata.get("managedFields", ()) if not entry.get("subresource")]
    times = [_seconds(text) for text in [*changed, metadata["creationTimestamp"]] if text]
    age_s = now_s - max(times)
    if status.get("observedGeneration", 0) >= metadata["generation"] or age_s < _PATIENCE_S:
        return
    what = "it" if not status else f"its change to generation {metadata['generation']}"
    yield problem(
        "operator",
        89,
        f"nobody has looked at {what} for {age_s:.0f} s",
        "is an operator running, and does it look after this namespace (--namespaces)?",
    )


def _check_planned(conditions: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    accepted, planned = conditions.get("Accepted"), conditions.get("Planned")
    if accepted is not None and accepted["status"] == "False":
        yield problem("spec", 78, accepted["message"], "change the spec as the message says")
    elif accepted is not None and accepted["reason"] == "ValidWithWarnings":
        yield warning("spec", 35, accepted["message"], "do what it says about each field")
    if planned is not None and planned["status"] == "False":
        likelihood, remedy = _NOT_APPLIED.get(planned["reason"], (70, "see the message; the operator tries again"))
        yield problem("objects", likelihood, f"{planned['reason']}: {planned['message']}", remedy)


def _check_claim(found: ServiceFacts, facts: Facts) -> Iterator[Finding]:
    name = found.service["spec"].get("model", {}).get("cacheClaim")
    if name is None or "claims" in facts.refused:
        return
    if found.claim is None:
        count = sum(waits_for_claim(pod, name) for pod in found.pods)
        waiting = "" if not count else f", for which {count} pod{' waits' if count == 1 else 's wait'}"
        text = f"there is no PersistentVolumeClaim {name}{waiting}"
        yield problem("storage", 76, text, "make it, or correct spec.model.cacheClaim")
    elif found.claim.get("status", {}).get("phase") != "Bound":
        phase = found.claim.get("status", {}).get("phase", "not bound")
        text = f"PersistentVolumeClaim {name} is {phase}"
        yield warning("storage", 63, text, f"kubectl describe pvc {name}: its StorageClass may be missing")


def _check_endpoints(found: ServiceFacts) -> Iterator[Finding]:
    """Ready pods that a Service does not lead to."""
    if not found.objects:
        return
    name = found.service["metadata"]["name"]
    services = {item["metadata"]["name"]: item for item in found.objects if item["kind"] == "Service"}
    for component in (*ENGINES, "gateway", "tokenizer"):
        ready = [pod for pod in found.pods if _component(pod) == component and is_ready(pod)]
        service = services.get(f"{name}-{component}")
        if not ready or service is None:
            continue
        slices = [item for item in found.slices if _service_of(item) == service["metadata"]["name"]]
        addresses = {endpoint.host for endpoint in ready_endpoints(slices, "grpc")}
        lost = [pod for pod in ready if pod["status"].get("podIP") not in addresses]
        if lost:
            yield problem(
                "endpoints",
                50,
                f"Service {service['metadata']['name']} leads to {len(ready) - len(lost)} of {len(ready)} ready pods",
                "somebody changed its selector, or the cluster's endpoint controller is behind",
            )


def _check_routes(conditions: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    routes, gateways = conditions.get("RoutesProgrammed"), conditions.get("GatewaysReady")
    if routes is None:
        return
    if routes["status"] == "False":
        yield problem("routes", 48, routes["message"], "a bug of the operator, or an Envoy of another version")
    elif routes["reason"] == "NoEnvoys" and gateways is not None and gateways["status"] == "True":
        yield warning(
            "routes",
            46,
            "gateways are ready, and none of their Envoys is connected to the operator: they would not hear of changes",
            "does --control-plane of the operator name its Service, and do NetworkPolicies let pods reach it?",
        )


def _check_caches(conditions: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    caches = conditions.get("CacheEventsFlowing")
    if caches is None:
        return
    if caches["status"] == "False":
        yield problem("cache events", 40, caches["message"], "restart the workers that it names, and keep their logs")
    elif caches["reason"] == "GatewaysUnreachable":
        yield unknown("cache events", caches["message"], "let the operator reach the gateways' metrics port (9090)")


def is_ready(pod: Manifest) -> bool:
    """Whether a pod takes requests."""
    conditions = pod.get("status", {}).get("conditions", ())
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _component(pod: Manifest) -> str:
    return str(pod["metadata"]["labels"].get("app.kubernetes.io/component"))


def _service_of(found: Manifest) -> str:
    return str(found["metadata"]["labels"].get("kubernetes.io/service-name"))


def _seconds(text: str) -> float:
    return datetime.datetime.fromisoformat(text).timestamp()
