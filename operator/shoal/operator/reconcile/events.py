"""Kubernetes Events: what happened to an InferenceService, as `kubectl describe` shows it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from shoal.operator.api.spec import API_VERSION, KIND
from shoal.operator.api.status import Condition
from shoal.operator.planner.kubernetes import FIELD_MANAGER, Manifest

_TOLD_WHEN_FALSE: Final = ("RoutesProgrammed", "CacheEventsFlowing")
_BAD_WHEN_FALSE: Final = ("Accepted", "Planned", *_TOLD_WHEN_FALSE)


def events_of(found: Manifest, before: Sequence[Condition], after: Sequence[Condition], now: str) -> list[Manifest]:
    """One Event for each condition that changed its status, or why it is not met."""
    known = {condition.type: condition for condition in before}
    events = []
    for condition in after:
        was = known.get(condition.type)
        is_cured = was is not None and was.status == "False" and condition.status == "True"
        if condition.type in _TOLD_WHEN_FALSE and condition.status != "False" and not is_cured:
            continue  # Envoys come and go with their pods
        if was is not None and (was.status, was.reason) == (condition.status, condition.reason):
            continue
        if was is None and condition.status != "True" and condition.type not in _BAD_WHEN_FALSE:
            continue  # that nothing is ready at first needs no telling
        events.append(_event(found, condition, now))
    return events


def refused_status_event(found: Manifest, error: str, now: str) -> Manifest:
    """Told where a status cannot be shown: it is the operator's fault, and nobody would see what became of the spec."""
    text = f"the API server does not take the status, so what is shown is old: {error}"
    condition = Condition(
        type="Degraded",
        status="True",
        reason="StatusRefused",
        message=text,
        last_transition_time=now,
        observed_generation=int(found["metadata"]["generation"]),
    )
    return _event(found, condition, now)


def _event(found: Manifest, condition: Condition, now: str) -> Manifest:
    metadata = found["metadata"]
    # A condition may come, go and come within a second, of which a time knows nothing.
    version = metadata["resourceVersion"]
    digest = hashlib.sha256(f"{metadata['uid']}{version}{condition}{now}".encode()).hexdigest()[:16]
    is_bad = (condition.status == "False" and condition.type in _BAD_WHEN_FALSE) or (
        condition.status == "True" and condition.type == "Degraded"
    )
    yes = {"True": "", "False": "Not", "Unknown": "Unknown"}[condition.status]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name']}.{digest}", "namespace": metadata["namespace"]},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
        },
        "type": "Warning" if is_bad else "Normal",
        "reason": f"{yes}{condition.type}",
        "message": f"{condition.reason}: {condition.message}"[:1024],
        "source": {"component": FIELD_MANAGER},
        "reportingComponent": FIELD_MANAGER,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
