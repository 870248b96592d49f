"""What kwok does with pods that are bound to a node: it says at once that they run, and lets them go when deleted."""

from __future__ import annotations

from typing import Any, Final

import yaml

_RUNNING: Final = """
{{ $now := Now }}
phase: Running
startTime: {{ $now | Quote }}
conditions:
{{ range $type := list "Initialized" "ContainersReady" "Ready" }}
- {type: {{ $type }}, status: "True", lastTransitionTime: {{ $now | Quote }}}
{{ end }}
containerStatuses:
{{ range .spec.containers }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  imageID: ""
  ready: true
  restartCount: 0
  state: {running: {startedAt: {{ $now | Quote }}}}
{{ end }}
{{ with PodIPsWith .spec.nodeName false (or .metadata.uid "") (or .metadata.name "") (or .metadata.namespace "") }}
podIP: {{ index . 0 | Quote }}
podIPs:
{{ range . }}
- ip: {{ . | Quote }}
{{ end }}
{{ end }}
"""


# Without a stage for nodes kwok looks after none of them, nor their pods.
_READY_NODE: Final = """
{{ $now := Now }}
conditions:
- type: Ready
  status: "True"
  reason: MadeUp
  message: only kwok runs here
  lastTransitionTime: {{ $now | Quote }}
  lastHeartbeatTime: {{ $now | Quote }}
"""


def render_stages() -> str:
    """The file for `kwok --config`."""
    new: list[dict[str, Any]] = [
        {"key": ".metadata.deletionTimestamp", "operator": "DoesNotExist"},
        {"key": ".status.phase", "operator": "In", "values": ["Pending"]},
    ]
    ending: list[dict[str, Any]] = [{"key": ".metadata.deletionTimestamp", "operator": "Exists"}]
    is_ready = '.status.conditions.[] | select(.type == "Ready") | .status'
    not_ready: dict[str, Any] = {"key": is_ready, "operator": "NotIn", "values": ["True"]}
    stages = [
        _stage("node-is-ready", [not_ready], {"statusTemplate": _READY_NODE}, kind="Node"),
        _stage("pod-runs", new, {"statusTemplate": _RUNNING}),
        _stage("pod-ends", ending, {"delete": True}),
    ]
    return yaml.safe_dump_all(stages, sort_keys=False)


def _stage(
    name: str, expressions: list[dict[str, Any]], proceed: dict[str, Any], *, kind: str = "Pod"
) -> dict[str, Any]:
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": name},
        "spec": {
            "resourceRef": {"apiGroup": "v1", "kind": kind},
            "selector": {"matchExpressions": expressions},
            "next": proceed,
        },
    }
