"""What is said of facts that are hard to bring about on a real cluster; the rest is tested there."""

from __future__ import annotations

import copy
import datetime
from typing import Any

import pytest

from shoal.operator.api.crd import custom_resource_definition
from shoal.operator.diagnosis import Facts, Finding, ServiceFacts, diagnose
from shoal.operator.planner.kubernetes import Manifest

NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
EARLIER = "2029-12-31T00:00:00Z"
CRD: Manifest = {
    **custom_resource_definition(),
    "status": {"conditions": [{"type": "Established", "status": "True"}]},
}
SERVICE: Manifest = {
    "metadata": {"name": "smol", "namespace": "n", "uid": "u", "generation": 1, "creationTimestamp": EARLIER},
    "spec": {"model": {"name": "smol", "uri": "hf://a/b"}},
    "status": {"observedGeneration": 1, "phase": "Ready"},
}


def told(*services: ServiceFacts, **fields: Any) -> list[Finding]:
    """All but what is fine."""
    known = {"now_s": NOW.timestamp(), "server": "https://x", "version": "v1", "definition": CRD, **fields}
    return [finding for finding in diagnose(Facts(services=services, **known)) if finding.verdict != "ok"]


def only(*services: ServiceFacts, check: str, **fields: Any) -> Finding:
    [found] = [finding for finding in told(*services, **fields) if finding.check == check]
    return found


def pod(container: dict[str, Any] | None = None, **metadata: Any) -> Manifest:
    labels = {"app.kubernetes.io/component": "worker"}
    return {
        "kind": "Pod",
        "metadata": {
            "name": "smol-worker-0", "namespace": "n", "uid": "p", "labels": labels, "creationTimestamp": EARLIER,
            **metadata,
        },
        "spec": {"containers": []},
        "status": {"phase": "Running", "containerStatuses": [container] if container else []},
    }  # fmt: skip


def ended(code: int, reason: str = "Error") -> dict[str, Any]:
    return {"name": "worker", "ready": False, "lastState": {"terminated": {"exitCode": code, "reason": reason}}}


def test_without_an_api_server_nothing_else_is_guessed() -> None:
    [found] = told(unreachable="refused", definition=None)
    assert (found.check, found.verdict, found.likelihood) == ("API server", "problem", 100)


def test_the_definition_is_missing_old_new_or_broken() -> None:
    assert "there is no inferenceservices.shoal.dev" in only(check="CRD", definition=None).message
    old = copy.deepcopy(CRD)
    spec = old["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    del spec["properties"]["routing"]
    found = only(check="CRD", definition=old)
    assert (found.verdict, "lacks spec.routing" in found.message) == ("warning", True)
    spec["properties"] |= {
        "routing": CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"][
            "routing"
        ]
    }
    spec["properties"]["shards"] = {"type": "integer"}
    assert "newer than this command, and has spec.shards" in only(check="CRD", definition=old).message
    broken = {**CRD, "status": {"conditions": [{"type": "Established", "status": "False", "message": "names taken"}]}}
    assert "names taken" in only(check="CRD", definition=broken).message


def test_an_operator_that_is_not_ready_or_lost_its_lease() -> None:
    operator = pod(name="shoal-operator-1", namespace="shoal-system")
    assert only(check="operator", operators=(operator,)).message == "none of its 1 pods is ready"
    lease = {"metadata": {"namespace": "s"}, "spec": {"holderIdentity": "", "leaseDurationSeconds": 15}}
    assert "nobody holds the Lease" in only(check="operator", leases=(lease,)).message
    renewed = {"holderIdentity": "a", "renewTime": "2029-12-31T23:59:50.000000Z", "leaseDurationSeconds": 15}
    assert told(leases=({"metadata": {"namespace": "s"}, "spec": renewed},)) == []


def test_names_that_do_not_resolve() -> None:
    nobody = {"endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": False}}]}
    facts = ServiceFacts(service=SERVICE)
    assert "names do not resolve" in only(facts, check="DNS", dns_slices=(nobody,)).message
    assert only(facts, check="DNS").verdict == "unknown"


def test_gpus_that_no_node_has() -> None:
    on_gpus = {**SERVICE, "spec": {**SERVICE["spec"], "workers": {"device": "cuda"}}}
    found = only(ServiceFacts(service=on_gpus), check="GPUs", nodes=({"status": {"allocatable": {}}},))
    assert "no node has nvidia.com/gpu, which n/smol needs" in found.message


@pytest.mark.parametrize(
    ("code", "reason", "remedy"),
    [(2, "Error", "settings are wrong"), (137, "OOMKilled", "more memory"), (1, "Error", "kubectl logs --previous")],
)
def test_crashes(code: int, reason: str, remedy: str) -> None:
    logs = {("smol-worker-0", "worker"): "line 1\nno such file: /models/x\n"}
    found = only(ServiceFacts(service=SERVICE, pods=(pod(ended(code, reason)),), logs=logs), check="crash")
    assert f"exit code {code}" in found.message
    assert "no such file: /models/x" in found.message
    assert remedy in found.remedy


def test_alike_troubles_of_a_component_are_told_once() -> None:
    pods = tuple(pod(ended(1), name=f"smol-worker-{index}", uid=str(index)) for index in range(8))
    assert len([f for f in told(ServiceFacts(service=SERVICE, pods=pods)) if f.check == "crash"]) == 1


def test_a_secret_that_is_missing_and_a_start_that_takes_long() -> None:
    waiting = {"reason": "CreateContainerConfigError", "message": 'secret "keys" not found'}
    settings = {"name": "gateway", "ready": False, "state": {"waiting": waiting}}
    assert (
        'secret "keys" not found'
        in only(ServiceFacts(service=SERVICE, pods=(pod(settings),)), check="settings").message
    )
    probe = {
        "involvedObject": {"uid": "p", "kind": "Pod", "name": "x"},
        "type": "Warning",
        "message": "Startup probe failed",
    }
    slow = only(ServiceFacts(service=SERVICE, pods=(pod(),), events=(probe,)), check="starting")
    assert slow.message == "smol-worker-0 has been starting for 1440 minutes: Startup probe failed"


def test_conditions_become_findings_and_causes_come_first() -> None:
    def condition(kind: str, status: str, reason: str = "X", message: str = "why") -> dict[str, str]:
        return {"type": kind, "status": status, "reason": reason, "message": message}

    status = {
        "observedGeneration": 1,
        "conditions": [
            condition("CacheEventsFlowing", "False", "EventsStopped", "a hears nothing of b"),
            condition("RoutesProgrammed", "False"),
            condition("Planned", "False", "Forbidden", "may not"),
            condition("Accepted", "False", "InvalidSpec", "spec.x: is wrong"),
        ],
    }
    found = [f.check for f in told(ServiceFacts(service={**SERVICE, "status": status})) if f.service]
    assert found == ["objects", "spec", "routes", "cache events"]
