"""What the whole cluster lacks."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any, Final

from shoal.operator.api.crd import APPLY_COMMAND, CRD_NAME, custom_resource_definition
from shoal.operator.diagnosis.collecting import GPU, gpus_of
from shoal.operator.diagnosis.facts import Facts
from shoal.operator.diagnosis.findings import Finding, ok, problem, unknown, warning
from shoal.operator.diagnosis.scheduling_checks import lacks_of, refusal_of
from shoal.operator.planner.kubernetes import Manifest

_LEASE_GRACE: Final = 3
"""Durations without a renewal: one or two may be a slow API server."""
_MAX_NAMED: Final = 4


def check_cluster(facts: Facts) -> Iterator[Finding]:
    """In the order of what depends on what."""
    if facts.unreachable:
        yield problem(
            "API server",
            100,
            f"{facts.server} does not answer: {facts.unreachable}",
            "check --kubeconfig or KUBECONFIG, and `kubectl version` with the same; 401 is a token that has expired",
        )
        return
    yield ok("API server", f"{facts.server}, {facts.version or 'of a version that it does not tell'}")
    yield from _check_definition(facts)
    yield from _check_operator(facts)
    yield from _check_rights(facts)
    yield from _check_admission(facts)
    yield from _check_gpus(facts)
    yield from _check_dns(facts)
    for what, why in facts.refused.items():
        yield unknown(what, f"could not be read: {why}", "run this as somebody who may, or judge by the rest")


def _check_definition(facts: Facts) -> Iterator[Finding]:
    found = facts.definition
    if found is None:
        if "definition" not in facts.refused:
            yield problem("CRD", 95, f"there is no {CRD_NAME}", f"{APPLY_COMMAND}, or install the chart")
        return
    conditions = {c["type"]: c for c in found.get("status", {}).get("conditions", ())}
    for kind, wanted in (("Established", "True"), ("NonStructuralSchema", "False")):
        if kind in conditions and conditions[kind]["status"] != wanted:
            yield problem("CRD", 94, f"it is not served: {conditions[kind].get('message', kind)}", APPLY_COMMAND)
            return
    served = _fields(found["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    known = _fields(custom_resource_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    if missing := sorted(known - served):
        text = f"it is older than this command, and lacks {_some(missing)}"
        yield warning("CRD", 60, text, f"{APPLY_COMMAND}; until then those fields are refused or dropped")
    elif more := sorted(served - known):
        text = f"it is newer than this command, and has {_some(more)} beside what is known here"
        yield warning("CRD", 5, text, "use the `shoal` of the operator's version")
    else:
        yield ok("CRD", "of this command's version")


def _fields(schema: dict[str, Any], path: str = "") -> set[str]:
    """Paths of all that a schema knows."""
    found: set[str] = set()
    for name, inner in schema.get("properties", {}).items():
        inside = f"{path}.{name}" if path else name
        found |= {inside} | _fields(inner, inside)
    if "items" in schema:
        found |= _fields(schema["items"], f"{path}[]")
    return found


def _check_operator(facts: Facts) -> Iterator[Finding]:
    ready = [pod for pod in facts.operators if _is_ready(pod)]
    if facts.operators and not ready:
        pod = facts.operators[0]["metadata"]
        yield problem(
            "operator",
            90,
            f"none of its {len(facts.operators)} pods is ready",
            f"kubectl logs -n {pod['namespace']} {pod['name']}",
        )
    for lease in facts.leases:
        yield from _check_lease(lease, facts.now_s)
    if ready:
        yield ok("operator", f"{len(ready)} of {len(facts.operators)} pods ready")
    elif not facts.operators and not facts.leases:
        yield unknown(
            "operator", "no pod of the chart's operator, and no Lease", "fine if it runs elsewhere; else install it"
        )


def _check_lease(lease: Manifest, now_s: float) -> Iterator[Finding]:
    spec, namespace = lease.get("spec", {}), lease["metadata"]["namespace"]
    holder, age_s = spec.get("holderIdentity"), now_s - _seconds(spec.get("renewTime"))
    if not holder:
        text = f"nobody holds the Lease in {namespace}: no operator writes"
        yield problem("operator", 90, text, "start one, or see why it is not ready")
    elif age_s > _LEASE_GRACE * int(spec.get("leaseDurationSeconds", 15)):
        text = f"{holder} holds the Lease in {namespace} and has not renewed it for {age_s:.0f} s"
        yield problem("operator", 91, text, "it is gone or cannot reach the API server; look at its pod, or start one")
    else:
        yield ok("operator", f"{holder} holds the Lease in {namespace}")


def _check_rights(facts: Facts) -> Iterator[Finding]:
    if facts.missing_rights:
        text = f"the operator may not {_some(list(facts.missing_rights))}"
        yield problem("rights", 85, text, "apply the chart's ClusterRole and its binding, of the operator's version")


def _check_admission(facts: Facts) -> Iterator[Finding]:
    names = ", ".join(found["metadata"]["name"] for found in facts.webhooks)
    if "calling webhook" in facts.admission:
        text = f"no InferenceService is admitted, since a webhook does not answer: {facts.admission}"
        remedy = f"start the operator, or `kubectl delete validatingwebhookconfiguration {names or 'NAME'}`"
        yield problem("webhook", 80, text, remedy)
    elif facts.admission:
        text = f"a plain InferenceService is refused: {facts.admission}"
        yield problem("admission", 55, text, "see which policy of the cluster that is")
    elif facts.definition is not None and "admission" not in facts.refused:
        yield ok("admission", f"an InferenceService is admitted{f', asked {names}' if names else ''}")
    for found in facts.webhooks:
        if any(not webhook.get("clientConfig", {}).get("caBundle") for webhook in found.get("webhooks", ())):
            text = f"{found['metadata']['name']} has no CA bundle: the API server cannot trust who answers"
            yield warning("webhook", 79, text, "the operator sets it when it runs and may patch that object")


def _check_gpus(facts: Facts) -> Iterator[Finding]:
    wanting = [item for item in facts.services if item.service["spec"].get("workers", {}).get("device") == "cuda"]
    if not wanting or "nodes" in facts.refused:
        return
    there = sum(int(node.get("status", {}).get("allocatable", {}).get(GPU, 0)) for node in facts.nodes)
    if not there:
        text = f"no node has {GPU}, which {wanting[0].name} needs"
        yield problem("GPUs", 72, text, "add GPU nodes, and NVIDIA's device plugin (or GPU operator) on them")
        return
    pending = [pod for pod in facts.gpu_pods if pod["status"]["phase"] == "Pending" and not pod["spec"].get("nodeName")]
    held = sum(gpus_of(pod) for pod in facts.gpu_pods if pod not in pending)
    # Of the others it is something else that keeps them from nodes.
    waiting = [pod for pod in pending if (said := refusal_of(pod)) is None or GPU in lacks_of(said)]
    if waiting:
        asked = sum(map(gpus_of, waiting))
        pods, gpus = (
            "1 pod waits" if len(waiting) == 1 else f"{len(waiting)} pods wait",
            "GPU" if asked == 1 else "GPUs",
        )
        text = f"{pods} for {asked} {gpus}; {held} of the cluster's {there} are in use"
        yield warning("GPUs", 64, text, "add nodes, or lower spec.workers.replicas")
    else:
        yield ok("GPUs", f"{held} of {there} in use")


def _check_dns(facts: Facts) -> Iterator[Finding]:
    if not facts.services or "dns" in facts.refused:
        return
    endpoints = [endpoint for found in facts.dns_slices for endpoint in found.get("endpoints") or ()]
    if not facts.dns_slices:
        text = "there is no Service kube-dns in kube-system: gateways find tokenizers by name"
        yield unknown("DNS", text, "fine if the cluster's DNS is called otherwise")
    elif not any((endpoint.get("conditions") or {}).get("ready") is not False for endpoint in endpoints):
        yield problem("DNS", 58, "nobody stands behind kube-dns: names do not resolve", "see the pods of CoreDNS")
    else:
        yield ok("DNS", f"{len(endpoints)} endpoints of kube-dns")


def _is_ready(pod: Manifest) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _seconds(text: str | None) -> float:
    return 0.0 if text is None else datetime.datetime.fromisoformat(text).timestamp()


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more
