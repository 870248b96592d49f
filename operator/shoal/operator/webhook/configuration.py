"""The ValidatingWebhookConfiguration: who is asked about what, and what happens when nobody answers."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from shoal.operator.api.crd import GROUP, PLURAL, VERSION

CONFIGURATION_NAME: Final = "shoal-operator"
SECRET_NAME: Final = "shoal-operator-webhook"  # noqa: S105  # where one is kept
"""Where operators keep its certificate, in their own namespace."""
WEBHOOK_NAME: Final = f"{PLURAL}.{GROUP}"
PATH: Final = "/validate"
API_VERSION: Final = "admissionregistration.k8s.io/v1"
KIND: Final = "ValidatingWebhookConfiguration"
TIMEOUT_SECONDS: Final = 5
"""An answer takes milliseconds; kubectl should not seem to hang when there is none."""


@dataclass(frozen=True, slots=True)
class ServiceTarget:
    """The Service in front of the operators."""

    namespace: str
    name: str
    port: int = 443


def validating_webhook_configuration(
    target: ServiceTarget | str,
    *,
    name: str = CONFIGURATION_NAME,
    ca_bundle: bytes | None = None,
    namespaces: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The whole object. `target`: a Service, or a URL without a path, for an operator outside of the cluster.

    ca_bundle: certificates in PEM; operators put theirs in (`apply_of_bundle`), so that a chart leaves it out.
    namespaces: those that the operator looks after; empty: all.

    Nobody answering allows (`Ignore`): every rule is the reconciler's as well, which shows what is wrong in the status,
    and a cluster whose operator is down must still take manifests, and the deletions that may mend it.
    """
    webhook: dict[str, Any] = {
        "name": WEBHOOK_NAME,
        "clientConfig": _client_config(target, ca_bundle),
        "rules": [
            {
                "apiGroups": [GROUP],
                "apiVersions": [VERSION],
                "resources": [PLURAL],
                "operations": ["CREATE", "UPDATE"],
                "scope": "Namespaced",
            }
        ],
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "failurePolicy": "Ignore",
        "matchPolicy": "Equivalent",
        "timeoutSeconds": TIMEOUT_SECONDS,
    }
    if namespaces:
        expression = {"key": "kubernetes.io/metadata.name", "operator": "In", "values": list(namespaces)}
        webhook["namespaceSelector"] = {"matchExpressions": [expression]}
    metadata = {"name": name, "labels": {"app.kubernetes.io/part-of": "shoal", **(labels or {})}}
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "webhooks": [webhook]}


def apply_of_bundle(name: str, ca_bundle: bytes) -> dict[str, Any]:
    """For server-side apply: the one field that is the operators', of a configuration that is somebody else's."""
    webhook = {"name": WEBHOOK_NAME, "clientConfig": {"caBundle": encode_bundle(ca_bundle)}}
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "webhooks": [webhook]}


def bundle_of(configuration: Mapping[str, Any]) -> str | None:
    """What a configuration holds, encoded; None when it has no such webhook."""
    for webhook in configuration.get("webhooks") or ():
        if webhook.get("name") == WEBHOOK_NAME:
            return str((webhook.get("clientConfig") or {}).get("caBundle") or "")
    return None


def encode_bundle(ca_bundle: bytes) -> str:
    """As in JSON."""
    return base64.b64encode(ca_bundle).decode()


def _client_config(target: ServiceTarget | str, ca_bundle: bytes | None) -> dict[str, Any]:
    bundle = {} if ca_bundle is None else {"caBundle": encode_bundle(ca_bundle)}
    if isinstance(target, str):
        return {"url": f"{target}{PATH}", **bundle}
    service = {"namespace": target.namespace, "name": target.name, "port": target.port, "path": PATH}
    return {"service": service, **bundle}
