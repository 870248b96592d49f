"""Why pods are on no node, in the words of Kubernetes' scheduler."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from shoal.operator.diagnosis.facts import Facts, ServiceFacts
from shoal.operator.diagnosis.findings import Finding, problem
from shoal.operator.planner.kubernetes import Manifest
from shoal.operator.reconcile.observing import ENGINES

GPU_PRODUCT: Final = "nvidia.com/gpu.product"
_LACKS: Final = ("Insufficient ", "Too many pods")
_STORAGE: Final = ("persistentvolumeclaim", "persistent volumes", "volume node affinity", "volume zone", "volume count")
_MAX_NAMED: Final = 6


def refusal_of(pod: Manifest) -> str | None:
    """What the scheduler says of a pod that it has no node for; None: it has one, or was not asked yet."""
    for condition in pod.get("status", {}).get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message", ""))
    return None


def lacks_of(refusal: str) -> set[str]:
    """Resources that some node has too little of, such as `nvidia.com/gpu`."""
    return set(re.findall(r"Insufficient ([-\w./]+[\w])", refusal))


def missing_claim(refusal: str) -> str | None:
    """The PersistentVolumeClaim that is not there."""
    found = re.search(r'persistentvolumeclaim "([^"]+)" not found', refusal)
    return None if found is None else found.group(1)


def waits_for_claim(pod: Manifest, name: str) -> bool:
    """Whether nothing but a claim of this name keeps it from its node, as far as is known."""
    return missing_claim(refusal_of(pod) or "") == name


def check_scheduling(found: ServiceFacts, facts: Facts) -> Iterator[Finding]:
    """One finding for each cause. Pods that wait for the model's claim are told of where that is."""
    claim = found.service["spec"].get("model", {}).get("cacheClaim")
    causes: dict[tuple[str, str], list[Manifest]] = {}
    for pod in found.pods:
        refusal = refusal_of(pod)
        if refusal is None or pod["metadata"].get("deletionTimestamp"):
            continue
        if claim is None or found.claim is not None or not waits_for_claim(pod, claim):
            causes.setdefault((_reasons(refusal), _remedy(pod, refusal, facts)), []).append(pod)
    for (_, remedy), pods in causes.items():
        first, *more = pods
        others = "" if not more else f" and {len(more)} more pod{'s' if len(more) > 1 else ''}"
        fits = f"{first['metadata']['name']}{others} {'fit' if more else 'fits'} on no node"
        yield problem("scheduling", 66, f"{fits}: {refusal_of(first)}", remedy)


def _reasons(refusal: str) -> str:
    """Without numbers of nodes, which change from pod to pod, and without what preemption would do."""
    return re.sub(r"\b[0-9]+(/[0-9]+)? ", "", refusal.partition("preemption:")[0])


def _remedy(pod: Manifest, refusal: str, facts: Facts) -> str:
    """Of a cause that concerns all nodes; otherwise of each that some node has."""
    said = refusal.partition("preemption:")[0]
    if (claim := missing_claim(said)) is not None:
        return f"make PersistentVolumeClaim {claim}, or correct the name"
    if any(words in said.lower() for words in _STORAGE):
        return "kubectl describe pvc: what its StorageClass can do, and on which nodes"
    remedies = []
    if any(words in said for words in _LACKS):
        remedies.append(f"add nodes, free some, or ask for less in {_place_of_resources(pod)}")
    if "node affinity/selector" in said:
        remedies.append(_remedy_of_selector(pod, facts))
    if "untolerated taint" in said and not remedies:
        remedies.append("give tolerations in spec.podTemplate, or take those taints from nodes")
    if "were unschedulable" in said and not remedies:
        remedies.append("kubectl uncordon the nodes, or add some")
    return "; ".join(remedies) or "change what the message names, in spec.podTemplate or of the nodes"


def _place_of_resources(pod: Manifest) -> str:
    component = pod["metadata"].get("labels", {}).get("app.kubernetes.io/component")
    section = "workers" if component == "worker" else component
    return f"spec.{section}.resources" if component in ENGINES else "spec.podTemplate"


def _remedy_of_selector(pod: Manifest, facts: Facts) -> str:
    wanted = pod.get("spec", {}).get("nodeSelector") or {}
    product = wanted.get(GPU_PRODUCT)
    there = sorted({node["metadata"].get("labels", {}).get(GPU_PRODUCT, "") for node in facts.nodes} - {""})
    if product is None or product in there:
        labels = ", ".join(f"{key}={value}" for key, value in sorted(wanted.items()))
        return f"label a node {labels}" if labels else "correct nodeSelector and affinity in spec.podTemplate"
    shown = ", ".join(there[:_MAX_NAMED]) + (", ..." if len(there) > _MAX_NAMED else "")
    told = f"nodes have {shown}" if there else "no node has that label, which NVIDIA's GPU feature discovery sets"
    return f"correct gpuProduct in {_place_of_resources(pod)}: no node has {GPU_PRODUCT}={product}; {told}"
