"""Why pods are not there, do not start, or end."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import Any, Final

from shoal.operator.diagnosis.facts import Facts, ServiceFacts
from shoal.operator.diagnosis.findings import Finding, problem, warning
from shoal.operator.diagnosis.scheduling_checks import check_scheduling, refusal_of
from shoal.operator.diagnosis.service_checks import is_ready
from shoal.operator.planner.kubernetes import Manifest

_IMAGE: Final = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
_CONFIG: Final = ("CreateContainerConfigError", "CreateContainerError")
_SLOW_START_S: Final = 600.0
_KILLED: Final = 137
_WRONG_SETTINGS: Final = 2
_MAX_LOG: Final = 600
_WORKLOADS: Final = ("DaemonSet", "Deployment", "LeaderWorkerSet", "StatefulSet", "ReplicaSet")


def check_pods(found: ServiceFacts, facts: Facts) -> Iterator[Finding]:
    """One finding for each thing that is wrong, not for each pod that has it."""
    yield from _check_unmade(found)
    yield from check_scheduling(found, facts)
    told: set[tuple[str, str]] = set()
    for pod in found.pods:
        for finding in _check_pod(pod, found, facts.now_s):
            component = str(pod["metadata"]["labels"].get("app.kubernetes.io/component"))
            if (finding.check, component) not in told:
                told.add((finding.check, component))
                yield finding


def _check_unmade(found: ServiceFacts) -> Iterator[Finding]:
    """Pods that the cluster refuses: a quota, the pod security standard, an admission policy."""
    latest: dict[str, Manifest] = {}
    for event in found.events:
        about = event["involvedObject"]
        if event.get("reason") == "FailedCreate" and about["kind"] in _WORKLOADS:
            latest[about["name"]] = event
    for name, event in latest.items():
        if all(is_ready(pod) for pod in found.pods if pod["metadata"]["name"].startswith(f"{name}-")) and any(
            pod["metadata"]["name"].startswith(f"{name}-") for pod in found.pods
        ):
            continue  # it was so, and is no more
        text = f"{event['involvedObject']['kind']} {name} cannot make pods: {event.get('message', '')}"
        yield problem("pods", 71, text, _remedy_of_refusal(str(event.get("message", ""))))


def _remedy_of_refusal(message: str) -> str:
    """By the words of Kubernetes' own admission plugins."""
    if "violates PodSecurity" in message:
        return (
            "keep to the standard in spec.podTemplate and give kvCache.placement: Pod, or label the namespace "
            "pod-security.kubernetes.io/enforce=privileged"
        )
    if "exceeded quota" in message:
        return "kubectl describe resourcequota: raise it, or ask for less in spec.workers.resources and replicas"
    if "failed quota" in message:
        return (
            "the quota wants limits that are not planned: give them in spec.podTemplate, or by a LimitRange's defaults"
        )
    # What a LimitRange puts in as a limit may be less than what is asked for.
    if any(words in message for words in (" per Container is ", " per Pod is ", "limit to request ratio", "limit of ")):
        return "kubectl describe limitrange: change it, or the resources in spec.workers.resources and spec.podTemplate"
    return "change what the message names"


def _check_pod(pod: Manifest, found: ServiceFacts, now_s: float) -> Iterator[Finding]:
    metadata, status = pod["metadata"], pod.get("status", {})
    if is_ready(pod) or metadata.get("deletionTimestamp") or refusal_of(pod) is not None:
        return
    name = metadata["name"]
    containers = [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]
    finding = next((f for f in (_check_container(name, c, found) for c in containers) if f is not None), None)
    if finding is not None:
        yield finding
        return
    age_s = now_s - datetime.datetime.fromisoformat(metadata["creationTimestamp"]).timestamp()
    if age_s > _SLOW_START_S:
        text = f"{name} has been starting for {age_s / 60:.0f} minutes{_last_warning(found, metadata['uid'])}"
        remedy = f"kubectl logs -n {metadata['namespace']} {name}: loading a large model takes long, a probe may fail"
        yield warning("starting", 45, text, remedy)


def _check_container(pod: str, container: Mapping[str, Any], found: ServiceFacts) -> Finding | None:
    waiting = container.get("state", {}).get("waiting") or {}
    ended = container.get("state", {}).get("terminated") or container.get("lastState", {}).get("terminated")
    reason, name = waiting.get("reason", ""), container["name"]
    if reason in _IMAGE:
        text = (
            f"{pod}, {name}: {container.get('image', 'its image')} cannot be pulled: {waiting.get('message', reason)}"
        )
        remedy = "check --image-prefix and --image-tag of the operator, and spec.imagePullSecrets"
        return problem("images", 70, text, remedy)
    if reason in _CONFIG:
        text = f"{pod}, {name}: {waiting.get('message', reason)}"
        return problem("settings", 69, text, "make the Secret or ConfigMap that it names")
    if ended is None or container.get("ready") or not ended.get("exitCode"):
        return None
    return _crash(pod, name, int(ended["exitCode"]), ended.get("reason", ""), found.logs.get((pod, name), ""))


def _crash(pod: str, container: str, code: int, reason: str, log: str) -> Finding:
    said = f"; it said last:\n{log.strip()[-_MAX_LOG:]}" if log.strip() else ""
    text = f"{pod}, {container} ended with exit code {code}{f' ({reason})' if reason else ''}{said}"
    if reason == "OOMKilled" or code == _KILLED:
        remedy = "give it more memory (spec.workers.resources.memory), or a smaller spec.kvCache.memory"
        return problem("crash", 68, text, remedy)
    if code == _WRONG_SETTINGS:
        return problem(
            "crash", 69, text, "its settings are wrong for this model or machine: change the spec as it says"
        )
    return problem("crash", 68, text, f"kubectl logs --previous {pod} -c {container}")


def _last_warning(found: ServiceFacts, uid: str) -> str:
    messages = [
        str(event.get("message", ""))
        for event in found.events
        if event["involvedObject"].get("uid") == uid and event.get("type") == "Warning"
    ]
    return f": {messages[-1]}" if messages else ""
