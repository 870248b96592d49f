"""Answers to AdmissionReviews."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.operator.api import ModelFacts
from shoal.operator.api.spec import Model
from shoal.operator.planner.kubernetes import Platform, find_infeasible
from shoal.operator.webhook.review import BadReview, review
from support.bad_manifests import BAD_FOR_THE_WEBHOOK, BAD_MANIFESTS, QWEN3_8B
from support.manifests import MINIMAL_ON_KUBERNETES, ROLES_ON_KUBERNETES, with_fields

LLAMA_8B = ModelFacts(32, 8, 128, 131_072, num_attention_heads=32, num_parameters=8_030_261_248)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


def ask(found: dict[str, Any], before: dict[str, Any] | None = None, **request: Any) -> dict[str, Any]:
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "u-1",
            "operation": "CREATE" if before is None else "UPDATE",
            "resource": {"group": "shoal.dev", "version": "v1alpha1", "resource": "inferenceservices"},
            "object": found,
            "oldObject": before,
            **request,
        },
    }


def answer(fields: dict[str, Any], facts: ModelFacts | None = None) -> dict[str, Any]:
    answered = review(ask(with_fields(MINIMAL_ON_KUBERNETES, fields)), lambda model: facts)
    assert (answered["apiVersion"], answered["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    response: dict[str, Any] = answered["response"]
    assert response["uid"] == "u-1"
    return response


@pytest.mark.parametrize(("fields", "field", "words"), BAD_MANIFESTS + BAD_FOR_THE_WEBHOOK, ids=lambda v: str(v)[:60])
def test_bad_ones_are_refused_with_their_fields(fields: dict[str, Any], field: str, words: str) -> None:
    response = answer(fields)
    assert not response["allowed"]
    assert response["status"]["code"] == 422
    causes = response["status"]["details"]["causes"]
    assert field in [cause["field"] for cause in causes]
    assert all(cause["message"] in response["status"]["message"] for cause in causes)


def test_facts_are_asked_for_once() -> None:
    """Each time may take as long as a hub does."""
    asked: list[str] = []
    review(ask(with_fields(MINIMAL_ON_KUBERNETES, {})), lambda model: asked.append(model.uri))
    assert asked == ["hf://org/model"]


def test_good_ones_are_allowed_in_silence() -> None:
    assert answer({}) == {"uid": "u-1", "allowed": True}
    whole = {"spec.model.config": QWEN3_8B, "spec.workers": {"device": "cuda", "resources": {"gpuMemory": "80G"}}}
    assert answer(whole) == {"uid": "u-1", "allowed": True}


def test_facts_that_are_at_hand_count() -> None:
    fields = {"spec.workers": {"device": "cuda", "resources": {"gpuProduct": "Tesla-T4"}}}
    (warning,) = answer(fields)["warnings"]
    assert warning.startswith("spec.model.config: what smol needs of its GPUs was not checked")
    response = answer(fields, LLAMA_8B)
    assert "weights of 16.1 GB on each GPU (16.1 GB / 1) do not fit 15.5 GB (0.9 of" in response["status"]["message"]
    wrong = fields | {"spec.model.config": {**QWEN3_8B, "numHiddenLayers": 33}}
    response = answer(wrong, LLAMA_8B)
    assert "spec.model.config.numHiddenLayers: 33, but the model has 32; give that" in response["status"]["message"]


@pytest.mark.parametrize(
    ("fields", "facts", "warning"),
    [
        ({"spec.model.quantization": "fp8"}, None, "spec.model.quantization: workers of this version refuse it"),
        ({"spec.workers": {"device": "cuda"}}, LLAMA_8B, "spec.workers.resources.gpuMemory: whether weights and KV"),
        (
            {"spec.workers": {"device": "cuda"}, "spec.model.config": {**QWEN3_8B, "weights": None}},
            None,
            "spec.model.config.weights: whether the weights fit was not checked",
        ),
        (
            {"spec.kvCache": {"cpu": "1Gi", "placement": "Node"}},
            None,
            "spec.kvCache.placement: Node takes a folder of each node; only namespaces with the privileged",
        ),
        (
            {"spec.kvCache": {"cpu": "1Gi", "ssd": "1Gi", "placement": "Node", "ssdVolume": {"hostPath": "/kv"}}},
            None,
            "spec.kvCache.ssdVolume.hostPath: only namespaces with the privileged",
        ),
    ],
)
def test_what_is_not_sure_is_a_warning(fields: dict[str, Any], facts: ModelFacts | None, warning: str) -> None:
    if "spec.model.config" in fields:
        fields = {**fields, "spec.model.config": {k: v for k, v in QWEN3_8B.items() if k != "weights"}}
    (found,) = answer(fields, facts)["warnings"]
    assert found.startswith(warning)


def test_warnings_are_few_and_short() -> None:
    response = review(ask(yaml.safe_load(ROLES_ON_KUBERNETES)))["response"]
    assert response["allowed"]
    assert 0 < len(response["warnings"]) <= 8
    assert all(len(warning) <= 256 for warning in response["warnings"])


def test_what_the_cluster_lacks_is_told_and_not_refused() -> None:
    manifest = yaml.safe_load(ROLES_ON_KUBERNETES)
    response = review(
        ask(manifest), find_infeasible=lambda service: find_infeasible(service, Platform(apis=frozenset()))
    )
    warnings = response["response"]["warnings"]
    assert warnings[0].startswith(
        "spec.decode.parallelism: 16 GPUs at 8 a pod make a worker of 2 pods, which takes Lead"
    )
    fields = [warning.partition(":")[0] for warning in warnings]
    assert len(set(fields)) == len(fields), "one line a field"
    assert {"spec.autoscaling.engine", "spec.adapters", "spec.prefill"} <= set(fields)


def test_what_is_not_about_the_spec_is_allowed() -> None:
    bad = with_fields(MINIMAL_ON_KUBERNETES, {"spec.kvCache": {"cpu": "1Mi"}})
    labelled = {**bad, "metadata": {"name": "smol", "labels": {"a": "b"}}}
    assert review(ask(labelled, bad))["response"]["allowed"]
    assert not review(ask(with_fields(MINIMAL_ON_KUBERNETES, {"spec.kvCache": {"cpu": "2Mi"}}), bad))["response"][
        "allowed"
    ]
    for request in (
        {"operation": "DELETE", "object": None},
        {"subResource": "status"},
        {"resource": {"group": "apps", "version": "v1", "resource": "deployments"}},
    ):
        assert review(ask(bad, **request))["response"]["allowed"]


def test_generated_names_are_checked_but_for_the_name() -> None:
    manifest = with_fields(MINIMAL_ON_KUBERNETES, {"metadata.name": None, "metadata.generateName": "smol-"})
    assert review(ask(manifest))["response"]["allowed"]


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {},
        {"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview", "request": {"uid": "a"}},
        {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"},
        {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"uid": 1}},
    ],
)
def test_what_is_no_review(body: Any) -> None:
    with pytest.raises(BadReview):
        review(body)


@settings(deadline=None, max_examples=100)
@given(JSON, st.sampled_from(["object", "spec", "workers", "podTemplate", "adapters", "metadata", "resource"]))
def test_any_json_is_answered(value: Any, place: str) -> None:
    manifest = yaml.safe_load(MINIMAL_ON_KUBERNETES)
    if place in ("workers", "podTemplate", "adapters"):
        manifest["spec"][place] = value
    elif place in ("spec", "metadata"):
        manifest[place] = value
    body = ask(value if place == "object" else manifest, **({"resource": value} if place == "resource" else {}))

    def find_facts(model: Model) -> ModelFacts | None:
        return LLAMA_8B

    assert isinstance(review(body, find_facts)["response"]["allowed"], bool)
