"""The CustomResourceDefinition `inferenceservices.shoal.dev`, generated from the spec. `shoal crd` prints it."""

from __future__ import annotations

from typing import Any, Final

from shoal.operator.api.cel import RULES
from shoal.operator.api.schema import structural_schema
from shoal.operator.api.spec import API_VERSION, KIND, InferenceServiceSpec
from shoal.operator.api.status import InferenceServiceStatus

GROUP, VERSION = API_VERSION.split("/")
PLURAL: Final = "inferenceservices"
CRD_NAME: Final = f"{PLURAL}.{GROUP}"
APPLY_COMMAND: Final = "shoal crd | kubectl apply --server-side -f -"
"""What messages say to do where a cluster lacks the definition; server-side, since it is too long for an annotation."""
_COLUMNS: Final = (
    ("Model", "string", ".spec.model.name", 0),
    ("Phase", "string", ".status.phase", 0),
    ("Workers", "string", ".status.workersReady", 0),
    ("Endpoint", "string", ".status.endpoints.grpc", 0),
    ("Device", "string", ".spec.workers.device", 1),
    ("Policy", "string", ".spec.routing.policy", 1),
    ("Message", "string", ".status.message", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
)


def custom_resource_definition() -> dict[str, Any]:
    """The whole object, as plain data."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": CRD_NAME, "labels": {"app.kubernetes.io/part-of": "shoal"}},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "plural": PLURAL,
                "singular": KIND.lower(),
                "kind": KIND,
                "listKind": f"{KIND}List",
                "shortNames": ["isvc"],
                "categories": ["all"],
            },
            "versions": [_version()],
        },
    }


def _version() -> dict[str, Any]:
    return {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": _schema()},
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.workers.replicas",
                "statusReplicasPath": ".status.workers.current",
                "labelSelectorPath": ".status.workerSelector",
            },
        },
        "additionalPrinterColumns": [
            {"name": name, "type": kind, "jsonPath": path, "priority": priority}
            for name, kind, path, priority in _COLUMNS
        ],
    }


def _schema() -> dict[str, Any]:
    of_spec = [rule.as_schema() for rule in RULES if rule.is_about_spec]
    of_whole = [rule.as_schema() for rule in RULES if not rule.is_about_spec]
    return {
        "type": "object",
        "description": "One model, served.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": structural_schema(InferenceServiceSpec) | {"x-kubernetes-validations": of_spec},
            "status": structural_schema(InferenceServiceStatus),
        },
        "x-kubernetes-validations": of_whole,
    }
