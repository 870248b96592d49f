"""Why pods are on no node: one finding for each cause, with a remedy that fits it."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.operator.diagnosis import Facts, Finding, ServiceFacts, diagnose
from shoal.operator.diagnosis.scheduling_checks import GPU_PRODUCT
from shoal.operator.planner.kubernetes import Manifest

NOW_S = 1.9e9
EARLIER = "2020-01-01T00:00:00Z"
GPU = "nvidia.com/gpu"
FULL = "0/4 nodes are available: 1 node(s) had untolerated taint(s), 3 Insufficient nvidia.com/gpu. preemption: 0/4"
NO_CLAIM = '0/4 nodes are available: persistentvolumeclaim "models" not found. not found'
WRONG_NODES = (
    "0/4 nodes are available: 4 node(s) didn't match Pod's node affinity/selector. preemption: 0/4 nodes are "
    "available: 4 Preemption is not helpful for scheduling."
)


def pod(name: str, refusal: str | None, component: str = "worker", **spec: Any) -> Manifest:
    conditions = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": refusal}]
    return {
        "metadata": {
            "name": name, "namespace": "n", "uid": name, "creationTimestamp": EARLIER,
            "labels": {"app.kubernetes.io/component": component},
        },
        "spec": {"containers": [{"resources": {"limits": {GPU: 2}}}], **spec},
        "status": {"phase": "Pending", "conditions": [] if refusal is None else conditions},
    }  # fmt: skip


def node(product: str | None = "NVIDIA-H100-80GB-HBM3") -> Manifest:
    labels = {} if product is None else {GPU_PRODUCT: product}
    return {"metadata": {"name": "a", "labels": labels}, "status": {"allocatable": {GPU: "8"}}}


NODES = (node(), node())


def findings(
    *pods: Manifest, nodes: tuple[Manifest, ...] = (node(), node()), claim: str | None = None
) -> list[Finding]:
    """Problems and warnings of the service and of the cluster's GPUs."""
    model = {"name": "smol", "uri": "hf://a/b", **({} if claim is None else {"cacheClaim": claim})}
    service = {
        "metadata": {"name": "smol", "namespace": "n", "uid": "u", "generation": 1, "creationTimestamp": EARLIER},
        "spec": {"model": model, "workers": {"device": "cuda"}},
        "status": {"observedGeneration": 1},
    }
    services = (ServiceFacts(service=service, pods=pods),)
    facts = Facts(now_s=NOW_S, server="https://x", services=services, nodes=nodes, gpu_pods=pods)
    of_interest = ("scheduling", "storage", "GPUs", "starting")
    return [each for each in diagnose(facts) if each.check in of_interest and each.verdict != "ok"]


def test_a_claim_that_is_not_there_is_told_once_and_no_gpus_are_missed() -> None:
    pods = [pod(f"smol-worker-{index}", NO_CLAIM) for index in range(14)]
    [found] = findings(*pods, claim="models")
    assert (found.check, found.remedy) == ("storage", "make it, or correct spec.model.cacheClaim")
    assert found.message == "there is no PersistentVolumeClaim models, for which 14 pods wait"


def test_another_claim_is_told_with_its_pods() -> None:
    [found] = findings(pod("smol-worker-0", NO_CLAIM), pod("smol-worker-1", NO_CLAIM))
    assert found.message == f"smol-worker-0 and 1 more pod fit on no node: {NO_CLAIM}"
    assert found.remedy == "make PersistentVolumeClaim models, or correct the name"


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ((node(), node("NVIDIA-L4")), "nodes have NVIDIA-H100-80GB-HBM3, NVIDIA-L4"),
        ((node(None),), "no node has that label, which NVIDIA's GPU feature discovery sets"),
    ],
)
def test_a_gpu_product_that_no_node_has(nodes: tuple[Manifest, ...], words: str) -> None:
    pods = [pod(f"smol-worker-{index}", WRONG_NODES, nodeSelector={GPU_PRODUCT: "H100"}) for index in range(3)]
    [found] = findings(*pods, nodes=nodes)
    assert found.message.startswith("smol-worker-0 and 2 more pods fit on no node: 0/4")
    assert found.remedy == (f"correct gpuProduct in spec.workers.resources: no node has {GPU_PRODUCT}=H100; {words}")


def test_nodes_that_are_full() -> None:
    scheduling, gpus = findings(pod("smol-worker-0", FULL), pod("smol-worker-1", FULL.replace("3 I", "2 I")))
    assert scheduling.message.startswith("smol-worker-0 and 1 more pod fit on no node: ")
    assert scheduling.remedy == "add nodes, free some, or ask for less in spec.workers.resources"
    assert gpus.message == "2 pods wait for 4 GPUs; 0 of the cluster's 16 are in use"


def test_each_cause_has_its_finding() -> None:
    edge = {"pool": "edge"}
    tainted = "0/4 nodes are available: 4 node(s) had untolerated taint(s)."
    found = findings(
        pod("smol-worker-0", FULL),
        pod("smol-gateway-a", WRONG_NODES, "gateway", nodeSelector=edge),
        pod("smol-gateway-b", WRONG_NODES, "gateway", nodeSelector=edge),
        pod("smol-tokenizer-a", tainted, "tokenizer"),
        pod("smol-worker-1", "0/4 nodes are available: pod has unbound immediate PersistentVolumeClaims."),
        pod("smol-worker-2", "0/4 nodes are available: 4 node(s) were unschedulable."),
        pod("smol-worker-3", "0/4 nodes are available: 4 node(s) didn't match pod anti-affinity rules."),
    )
    remedies = {each.message.split(" ")[0]: each.remedy for each in found if each.check == "scheduling"}
    assert remedies == {
        "smol-worker-0": "add nodes, free some, or ask for less in spec.workers.resources",
        "smol-gateway-a": "label a node pool=edge",
        "smol-tokenizer-a": "give tolerations in spec.podTemplate, or take those taints from nodes",
        "smol-worker-1": "kubectl describe pvc: what its StorageClass can do, and on which nodes",
        "smol-worker-2": "kubectl uncordon the nodes, or add some",
        "smol-worker-3": "change what the message names, in spec.podTemplate or of the nodes",
    }
    assert [each.message for each in found if each.check == "GPUs"] == [
        "1 pod waits for 2 GPUs; 0 of the cluster's 16 are in use"
    ]


def test_a_pod_that_the_scheduler_did_not_look_at_yet_waits() -> None:
    [gpus] = [each for each in findings(pod("smol-worker-0", None)) if each.check == "GPUs"]
    assert gpus.message.startswith("1 pod waits for 2 GPUs")
