"""What was read of a cluster, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from shoal.operator.planner.kubernetes import Manifest

Reading = Literal[
    "definition", "leases", "operators", "webhooks", "nodes", "dns", "admission", "rights", "services",
    "objects", "pods", "events", "slices", "claims", "logs",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceFacts:
    """One InferenceService and what belongs to it."""

    service: Manifest
    objects: tuple[Manifest, ...] = ()
    pods: tuple[Manifest, ...] = ()
    slices: tuple[Manifest, ...] = ()
    events: tuple[Manifest, ...] = ()
    """Of the service and of its objects and pods, oldest first."""
    claim: Manifest | None = None
    """The PersistentVolumeClaim that it names, if that exists."""
    logs: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """Pod and container -> the last lines of one that crashed."""

    @property
    def name(self) -> str:
        """Namespace and name."""
        metadata = self.service["metadata"]
        return f"{metadata['namespace']}/{metadata['name']}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One look at a cluster."""

    now_s: float
    """Seconds since the epoch."""
    server: str
    """The API server's address."""
    unreachable: str = ""
    """Why it does not answer, or not us; empty: it does. Then nothing else is known."""
    version: str = ""
    definition: Manifest | None = None
    leases: tuple[Manifest, ...] = ()
    operators: tuple[Manifest, ...] = ()
    """Pods that run the operator."""
    webhooks: tuple[Manifest, ...] = ()
    """ValidatingWebhookConfigurations that concern InferenceServices."""
    admission: str = ""
    """Why a valid InferenceService is not admitted (nothing was made); empty: it is."""
    missing_rights: tuple[str, ...] = ()
    """What the operator's ServiceAccount may not do, as `verb resource`."""
    nodes: tuple[Manifest, ...] = ()
    gpu_pods: tuple[Manifest, ...] = ()
    """Pods of the whole cluster that hold a GPU."""
    dns_slices: tuple[Manifest, ...] = ()
    services: tuple[ServiceFacts, ...] = ()
    refused: Mapping[Reading, str] = field(default_factory=dict)
    """What could not be read, and why."""
