"""Any spec that the types allow: rules and planner answer, whatever they answer."""

from __future__ import annotations

from typing import Any

import msgspec
import yaml
from hypothesis import HealthCheck, given, settings

from shoal.operator.api import InferenceService, Machine, ModelFacts, find_contradictions, parse_manifest
from shoal.operator.api.advice import advise
from shoal.operator.api.kubernetes_rules import find_kubernetes_contradictions
from shoal.operator.api.roles import worker_roles
from shoal.operator.planner.kubernetes import Owner, Platform, plan
from support.manifests import specs
from support.valid_specs import manifest_of, without_contradictions

MODEL = ModelFacts(32, 8, 128, 131_072, num_attention_heads=32, num_experts=64, num_parameters=8_030_261_248)
LAPTOP = Machine(num_cores=4, memory_bytes=16 << 30)
thorough = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@thorough
@given(spec=specs())
def test_rules_answer_to_any_spec(spec: Any) -> None:
    service = msgspec.convert(manifest_of(spec), InferenceService)
    for machine in (None, LAPTOP):
        for model in (None, MODEL):
            for problem in find_contradictions(service, machine, model) + find_kubernetes_contradictions(service):
                assert problem.path.startswith("spec."), problem
                assert len(problem.message) < 8192
    assert all(role.replicas >= 1 for role in worker_roles(service.spec))
    assert all(told.path.startswith("spec.") for told in advise(service, MODEL))


@thorough
@given(spec=specs())
def test_what_the_rules_allow_can_be_planned(spec: Any) -> None:
    service = without_contradictions(spec)
    objects = plan(service, Platform(), Owner(namespace="models"))
    assert {found["kind"] for found in objects} >= {"Deployment", "Service"}
    text = yaml.safe_dump(msgspec.to_builtins(manifest_of(service.spec)))
    assert parse_manifest(text, "m.yaml").spec == service.spec, "as text it means the same"
