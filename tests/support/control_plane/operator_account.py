"""The operator's own account, with the rights of the chart and no more, for every test that runs an operator."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from shoal.operator.reconcile.rights import lease_rules, roles
from support.control_plane.cluster import ControlPlane
from support.eventually import wait_until

NAME: Final = "shoal-operator"
NAMESPACE: Final = "shoal-system"
_USER: Final = f"system:serviceaccount:{NAMESPACE}:{NAME}"
_LEASES: Final = "shoal-operator-leases"
_RBAC: Final = "rbac.authorization.k8s.io"


def operator_kubeconfig(plane: ControlPlane) -> Path:
    """Of that account, which is made at the first call."""
    path = plane.folder / "operator-kubeconfig"
    if path.exists():
        return path
    metadata = {"name": NAME, "namespace": NAMESPACE}
    objects = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        *_leases_everywhere(),
        *roles(NAME, NAMESPACE),
    ]
    plane.kubectl(
        "apply", "--server-side", "-f", "-", stdin=json.dumps({"kind": "List", "apiVersion": "v1", "items": objects})
    )
    wait_until(lambda: _may_list_pods(plane), "the roles are in force")
    return plane.kubeconfig_of(NAMESPACE, NAME, path)


def denials(plane: ControlPlane) -> list[str]:
    """What operators with that account were not allowed to do."""
    if not (plane.folder / "operator-kubeconfig").exists():
        return []
    found = []
    for line in plane.audit_log.read_text().splitlines():
        entry = json.loads(line)
        status = entry.get("responseStatus", {})
        if entry["user"]["username"] != _USER or status.get("code") != 403:
            continue
        received = datetime.fromisoformat(entry["requestReceivedTimestamp"])
        is_starting = any(start <= received <= end for start, end in plane.restarts)
        # Nothing may be made in namespaces of tests that end, whatever rights somebody has.
        if not is_starting and "terminated" not in status.get("message", ""):
            found.append(f"{entry['verb']} {entry['requestURI']}: {status.get('message', '')}")
    return found


def _leases_everywhere() -> list[dict[str, Any]]:
    """Each test's operators have their Lease in the test's namespace."""
    version, metadata = f"{_RBAC}/v1", {"name": _LEASES}
    subject = {"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}
    return [
        {"apiVersion": version, "kind": "ClusterRole", "metadata": metadata, "rules": lease_rules()},
        {
            "apiVersion": version,
            "kind": "ClusterRoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": _LEASES},
            "subjects": [subject],
        },
    ]


def _may_list_pods(plane: ControlPlane) -> bool:
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": _USER, "resourceAttributes": {"resource": "pods", "verb": "list"}},
    }
    path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
    return bool(plane.request("POST", path, json.dumps(review).encode())["status"].get("allowed"))
