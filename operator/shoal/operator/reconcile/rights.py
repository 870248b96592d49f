"""What the operator may do on a cluster: no more than it does.

A test runs the operator with these rights, and compares them with what the API server's audit log says that it used.
"""

from __future__ import annotations

from typing import Any, Final

from shoal.operator.api.crd import GROUP, PLURAL
from shoal.operator.planner.kubernetes import ALL_KINDS, Manifest
from shoal.operator.planner.kubernetes.plan import Kind
from shoal.operator.webhook.configuration import CONFIGURATION_NAME, SECRET_NAME

GROUP_OF_WEBHOOKS: Final = "admissionregistration.k8s.io"
DERIVED: Final = (
    Kind("v1", "Pod", "pods"),
    Kind("discovery.k8s.io/v1", "EndpointSlice", "endpointslices"),
)
"""What Kubernetes makes of planned objects."""
_APPLIES: Final = ["create", "delete", "get", "list", "patch", "watch"]
_SEES: Final = ["list", "watch"]


def rules() -> list[dict[str, Any]]:
    """For a ClusterRole, or for a Role in each namespace that the operator looks after."""
    owned = [_rule(group_of(kind), kind.plural, _APPLIES) for kind in ALL_KINDS]
    derived = [_rule(group_of(kind), kind.plural, _SEES) for kind in DERIVED]
    return [
        _rule(GROUP, PLURAL, _SEES),
        _rule(GROUP, f"{PLURAL}/status", ["patch"]),
        # Not used by itself: some clusters let only those who may write finalizers hold up the deletion of an owner.
        _rule(GROUP, f"{PLURAL}/finalizers", ["update"]),
        *owned,
        *derived,
        _rule("", "events", ["create"]),
    ]


def lease_rules() -> list[dict[str, Any]]:
    """For a Role in the operator's own namespace."""
    return [_rule("coordination.k8s.io", "leases", ["create", "get", "update"])]


def configuration_rules(configuration: str = CONFIGURATION_NAME) -> list[dict[str, Any]]:
    """For the ClusterRole: the authority of the webhook's certificate is put into this configuration."""
    rule = _rule(GROUP_OF_WEBHOOKS, "validatingwebhookconfigurations", ["get", "patch"])
    return [rule | {"resourceNames": [configuration]}]


def secret_rules(secret: str = SECRET_NAME) -> list[dict[str, Any]]:
    """For the Role: that certificate is kept in this Secret. What is not there yet has no name to go by."""
    return [
        _rule("", "secrets", ["get", "update"]) | {"resourceNames": [secret]},
        _rule("", "secrets", ["create"]),
    ]


def roles(
    name: str, namespace: str, *, configuration: str = CONFIGURATION_NAME, secret: str = SECRET_NAME
) -> list[Manifest]:
    """ClusterRole and Role of those rules, and their bindings to the ServiceAccount `name`."""
    subject = {"kind": "ServiceAccount", "name": name, "namespace": namespace}
    objects = []
    of_cluster = rules() + configuration_rules(configuration)
    of_namespace = lease_rules() + secret_rules(secret)
    for kind, scope, granted in (("ClusterRole", {}, of_cluster), ("Role", {"namespace": namespace}, of_namespace)):
        metadata = {"name": name, **scope}
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name}
        version = "rbac.authorization.k8s.io/v1"
        objects += [
            {"apiVersion": version, "kind": kind, "metadata": metadata, "rules": granted},
            {
                "apiVersion": version,
                "kind": f"{kind}Binding",
                "metadata": metadata,
                "roleRef": reference,
                "subjects": [subject],
            },
        ]
    return objects


def group_of(kind: Kind) -> str:
    """Empty for the core API."""
    return kind.api_version.rpartition("/")[0]


def _rule(group: str, resource: str, verbs: list[str]) -> dict[str, Any]:
    return {"apiGroups": [group], "resources": [resource], "verbs": verbs}
