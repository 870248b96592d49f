"""Answers AdmissionReviews (admission.k8s.io/v1) of InferenceServices. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from shoal.operator.api import InferenceService, ModelFacts, Problem, find_contradictions
from shoal.operator.api.advice import advise
from shoal.operator.api.checking import check
from shoal.operator.api.crd import GROUP, PLURAL
from shoal.operator.api.kubernetes_rules import find_kubernetes_contradictions
from shoal.operator.api.spec import API_VERSION, KIND, Model

FindFacts = Callable[[Model], ModelFacts | None]
"""What is known of a model without fetching it."""
FindInfeasible = Callable[[InferenceService], list[Problem]]
"""What this cluster, as it is at the moment, has no means for: told, since what lacks may be installed next."""
REVIEW_VERSION: Final = "admission.k8s.io/v1"
_MAX_WARNINGS: Final = 8
_MAX_WARNING_CHARS: Final = 256
"""What clients show: longer ones may be cut, and many are dropped."""


class BadReview(Exception):
    """It is no AdmissionReview of this version."""


def review(
    body: Any,
    find_facts: FindFacts = lambda model: None,
    find_infeasible: FindInfeasible = lambda service: [],
) -> dict[str, Any]:
    """The answer to an AdmissionReview. Raises BadReview when there is nothing to answer to.

    What is not about an InferenceService's spec is allowed: this webhook was asked by mistake, or the spec stays as it
    is. An object that was stored under other rules can so be labelled, and loses its finalizers.
    """
    request = _request_of(body)
    uid = request["uid"]
    if not _is_about_spec(request):
        return _answer({"uid": uid, "allowed": True})
    service, facts, problems = _check(request["object"], find_facts)
    if service is None or problems:
        return _answer({"uid": uid, "allowed": False, "status": _status(request, problems)})
    advice = [*find_infeasible(service), *advise(service, facts)]
    by_field: dict[str, str] = {}
    for told in advice:  # of several about one field the first
        by_field.setdefault(told.path, str(told)[:_MAX_WARNING_CHARS])
    warnings = list(by_field.values())
    return _answer({"uid": uid, "allowed": True} | ({"warnings": warnings[:_MAX_WARNINGS]} if warnings else {}))


def _request_of(body: Any) -> Mapping[str, Any]:
    if not isinstance(body, dict) or body.get("apiVersion") != REVIEW_VERSION or body.get("kind") != "AdmissionReview":
        raise BadReview(f"not an AdmissionReview of {REVIEW_VERSION}")
    request = body.get("request")
    if not isinstance(request, dict) or not isinstance(request.get("uid"), str):
        raise BadReview("the AdmissionReview has no request with a uid")
    return request


def _is_about_spec(request: Mapping[str, Any]) -> bool:
    resource, found, before = request.get("resource"), request.get("object"), request.get("oldObject")
    if not isinstance(resource, dict) or (resource.get("group"), resource.get("resource")) != (GROUP, PLURAL):
        return False
    if (
        request.get("operation") not in ("CREATE", "UPDATE")
        or request.get("subResource")
        or not isinstance(found, dict)
    ):
        return False
    return not isinstance(before, dict) or before.get("spec") != found.get("spec")


def _check(
    found: Mapping[str, Any], find_facts: FindFacts
) -> tuple[InferenceService | None, ModelFacts | None, list[Problem]]:
    """Facts are asked for once: somebody may have to wait for them."""
    given = found.get("metadata")
    metadata = given if isinstance(given, dict) else {}
    value = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        # Of a name that is still to be made up (generateName) only the rest can be checked.
        "metadata": {"name": metadata.get("name") or "unnamed"},
        "spec": found.get("spec") or {},
    }
    service, problems = check(InferenceService, value)
    facts: ModelFacts | None = None
    if service is not None:
        facts = find_facts(service.spec.model)
        problems = find_contradictions(service, model=facts) + find_kubernetes_contradictions(service)
    return service, facts, problems


def _status(request: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
    """As the API server itself puts it for what its schema refuses; clients show the message."""
    name = request.get("name") or ""
    return {
        "code": 422,
        "reason": "Invalid",
        "message": "; ".join(map(str, problems)),
        "details": {
            "name": name,
            "group": GROUP,
            "kind": KIND,
            "causes": [
                {"reason": "FieldValueInvalid", "field": problem.path, "message": problem.message}
                for problem in problems
            ],
        },
    }


def _answer(response: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": REVIEW_VERSION, "kind": "AdmissionReview", "response": response}
