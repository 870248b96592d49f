"""LeaderWorkerSet's controller beside a control plane, as a process that ends with it."""

from __future__ import annotations

import base64
import json
import urllib.error
from pathlib import Path
from typing import Any, Final

import yaml

from shoal.operator.substrate.ports import PortReservations
from support.control_plane.cluster import HOST, ControlPlane
from support.control_plane.definitions import find_definitions

API_VERSION: Final = "leaderworkerset.x-k8s.io/v1"
PATH: Final = "/apis/leaderworkerset.x-k8s.io/v1/namespaces/{namespace}/leaderworkersets"
_OF_A_GROUP: Final = {"matchExpressions": [{"key": "leaderworkerset.sigs.k8s.io/name", "operator": "Exists"}]}


def start_lws(plane: ControlPlane, ports: PortReservations) -> None:
    """Returns once LeaderWorkerSets are checked, defaulted and turned into pods.

    Their webhooks are called under an address of this machine, with a certificate of the control plane's own: the
    controller's own certificates are for a Service, which nothing here leads to.
    """
    for name in ("leaderworkersets", "disaggregatedsets"):
        definition = find_definitions()[name]
        plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(definition))
        plane.kubectl("wait", "--for=condition=Established", f"crd/{definition['metadata']['name']}")
    port = ports.reserve("webhooks of LeaderWorkerSet")
    config = plane.folder / "lws.yaml"
    config.write_text(yaml.safe_dump(_configuration(plane.folder / "webhooks", port)))
    command = [str(plane.programs["lws"]), f"--config={config}", f"--kubeconfig={plane.kubeconfig}"]
    plane.processes.start("lws", [*command, "--metrics-bind-address=0"])
    for configuration in _webhooks(plane, port):
        plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(configuration))
    plane.processes.wait("lws", lambda: _is_checked(plane), "LeaderWorkerSets are checked")


def leader_worker_set(name: str, *, replicas: int = 1, size: int = 2) -> dict[str, Any]:
    """Groups of `size` pods that keep to the "restricted" security standard."""
    container = {
        "name": "worker",
        "image": "none",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    pod = {
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }
    template = {"size": size, "workerTemplate": {"spec": pod}}
    spec = {"replicas": replicas, "leaderWorkerTemplate": template}
    return {"apiVersion": API_VERSION, "kind": "LeaderWorkerSet", "metadata": {"name": name}, "spec": spec}


def _configuration(certificates: Path, port: int) -> dict[str, Any]:
    return {
        "apiVersion": "config.lws.x-k8s.io/v1alpha1",
        "kind": "Configuration",
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": False},
        "health": {"healthProbeBindAddress": "0"},
        "webhook": {"host": HOST, "port": port, "certDir": str(certificates)},
    }


def _webhooks(plane: ControlPlane, port: int) -> list[dict[str, Any]]:
    """As the project's own manifests have them: groups, and pods of groups."""
    authority = base64.b64encode((plane.folder / "ca.crt").read_bytes()).decode()

    def webhook(name: str, path: str, operations: list[str], group: str, resource: str) -> dict[str, Any]:
        rule = {"apiGroups": [group], "apiVersions": ["v1"], "operations": operations, "resources": [resource]}
        return {
            "name": name,
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "failurePolicy": "Fail",
            "clientConfig": {"url": f"https://{HOST}:{port}{path}", "caBundle": authority},
            "rules": [rule],
            **({} if group else {"objectSelector": _OF_A_GROUP}),
        }

    group, plural = "leaderworkerset.x-k8s.io", "leaderworkersets"
    path = "leaderworkerset-x-k8s-io-v1-leaderworkerset"
    always = ["CREATE", "UPDATE"]
    kinds = {
        "Mutating": [
            webhook("mleaderworkerset.kb.io", f"/mutate-{path}", always, group, plural),
            webhook("mpod.kb.io", "/mutate--v1-pod", ["CREATE"], "", "pods"),
        ],
        "Validating": [
            webhook("vleaderworkerset.kb.io", f"/validate-{path}", always, group, plural),
            webhook("vpod.kb.io", "/validate--v1-pod", always, "", "pods"),
        ],
    }
    return [
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": f"{kind}WebhookConfiguration",
            "metadata": {"name": "leaderworkerset"},
            "webhooks": webhooks,
        }
        for kind, webhooks in kinds.items()
    ]


def _is_checked(plane: ControlPlane) -> bool:
    body = json.dumps(leader_worker_set("asked-whether-it-would-be-taken")).encode()
    try:
        plane.request("POST", f"{PATH.format(namespace='default')}?dryRun=All", body)
    except urllib.error.HTTPError:
        return False
    return True
