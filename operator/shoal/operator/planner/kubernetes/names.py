"""Names and labels of an InferenceService's objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from shoal.operator.api import InferenceService
from shoal.operator.api.spec import API_VERSION, KIND
from shoal.operator.planner.kubernetes.platform import Manifest, Owner

FIELD_MANAGER: Final = "shoal-operator"
"""Who applies the objects: fields of other managers stay as they are."""
MANAGED_BY: Final = "app.kubernetes.io/managed-by"
OWNER_LABEL: Final = "shoal.dev/inferenceservice"
COMPONENT_LABEL: Final = "app.kubernetes.io/component"
GROUP_LABEL: Final = "shoal.dev/group"
"""On workers: the hash of what their group cannot change in place."""
TEMPLATE_ANNOTATION: Final = "shoal.dev/template"
"""On StatefulSets of workers: the hash of their pods' template as it was planned."""
ENDPOINT_LABEL: Final = "shoal.dev/endpoint"
"""On pods that answer for a worker: of which Service they are endpoints. Other pods of the same worker lack it."""


def object_name(service: InferenceService, component: str) -> str:
    """`NAME-worker`."""
    return f"{service.metadata.name}-{component}"


def selector(name: str, component: str) -> dict[str, str]:
    """Labels that a component's pods have, and no other pods of the namespace. They never change: selectors of
    Deployments and StatefulSets cannot."""
    return {OWNER_LABEL: name, COMPONENT_LABEL: component}


def workers_selector(name: str) -> str:
    """The pods that answer for its workers, of all roles and groups: one for each worker, whatever it is made of."""
    return f"{OWNER_LABEL}={name},{ENDPOINT_LABEL}"


def labels(service: InferenceService, component: str) -> dict[str, str]:
    """What every object gets: its selector, and what Kubernetes recommends."""
    return {
        **selector(service.metadata.name, component),
        "app.kubernetes.io/name": "shoal",
        "app.kubernetes.io/instance": service.metadata.name,
        "app.kubernetes.io/part-of": "shoal",
        MANAGED_BY: FIELD_MANAGER,
    }


def manifest(
    service: InferenceService,
    owner: Owner,
    api_version: str,
    kind: str,
    component: str,
    *,
    name: str | None = None,
    labelled: Mapping[str, str] | None = None,
    **fields: Any,
) -> Manifest:
    """An object of the service's namespace, owned by the service, with `fields` beside its metadata. `labelled`: more
    labels."""
    metadata: dict[str, Any] = {
        "name": name or object_name(service, component),
        "namespace": owner.namespace,
        "labels": {**labels(service, component), **(labelled or {})},
    }
    if owner.uid is not None:
        metadata["ownerReferences"] = [
            {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": service.metadata.name,
                "uid": owner.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ]
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **fields}
