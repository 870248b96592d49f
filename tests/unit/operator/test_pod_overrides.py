"""Pod templates of the author, merged into planned ones."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from shoal.operator.api import parse_manifest
from shoal.operator.planner.kubernetes import Manifest, Owner, Platform, plan
from shoal.operator.planner.kubernetes.overrides import merge
from support.manifests import MINIMAL_ON_KUBERNETES, with_fields


def templates(overrides: dict[str, Any], **fields: Any) -> dict[str, Manifest]:
    paths = {path.replace("__", "."): value for path, value in fields.items()}
    manifest = with_fields(MINIMAL_ON_KUBERNETES, {**paths, "spec.podTemplate": overrides})
    service = parse_manifest(yaml.safe_dump(manifest), "m.yaml")
    objects = plan(service, Platform(), Owner(namespace="default"))
    return {
        found["metadata"]["name"]: found["spec"]["template"] for found in objects if "template" in found.get("spec", {})
    }


def test_each_component_has_its_own() -> None:
    plain = templates({})
    given_ = templates({"gateway": {"metadata": {"labels": {"team": "a"}}, "spec": {"priorityClassName": "high"}}})
    assert given_["smol-gateway"]["spec"]["priorityClassName"] == "high"
    assert given_["smol-gateway"]["metadata"]["labels"] == {**plain["smol-gateway"]["metadata"]["labels"], "team": "a"}
    assert [given_[name] for name in ("smol-worker", "smol-tokenizer")] == [
        plain[name] for name in ("smol-worker", "smol-tokenizer")
    ]


def test_containers_are_merged_by_name_and_environment_too() -> None:
    worker = {"name": "worker", "env": [{"name": "OMP_NUM_THREADS", "value": "9"}, {"name": "A", "value": "b"}]}
    pod = templates({"worker": {"spec": {"containers": [worker, {"name": "mine", "image": "mine"}]}}})["smol-worker"]
    engine, mine = pod["spec"]["containers"]
    assert mine == {"name": "mine", "image": "mine"}
    assert engine["args"], "what was planned stays"
    values = {each["name"]: each["value"] for each in engine["env"]}
    assert (values["OMP_NUM_THREADS"], values["A"], values["PYTHONSAFEPATH"]) == ("9", "b", "1")


def test_tolerations_are_added_to_those_that_lead_to_gpus() -> None:
    mine = {"key": "dedicated", "operator": "Exists"}
    pod = templates({"worker": {"spec": {"tolerations": [mine]}}}, spec__workers__device="cuda")["smol-worker"]
    assert [each["key"] for each in pod["spec"]["tolerations"]] == ["nvidia.com/gpu", "dedicated"]


def test_a_volume_has_the_source_that_was_given_last() -> None:
    volume = {"name": "models", "hostPath": {"path": "/models"}}
    pod = templates({"worker": {"spec": {"volumes": [volume]}}})["smol-worker"]
    (found,) = (each for each in pod["spec"]["volumes"] if each["name"] == "models")
    assert found == volume


@pytest.mark.parametrize(
    ("planned", "given_", "merged"),
    [
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}, {"a": {"b": 3, "c": 2}}),
        ({"a": 1}, {"a": None}, {}),
        ({"a": {"b": 1}}, {"a": 2}, {"a": 2}),
        ({"a": 2}, {"a": {"b": None, "c": 1}}, {"a": {"c": 1}}),
        ({"args": ["a", "b"]}, {"args": ["c"]}, {"args": ["c"]}),
        ({"env": [{"name": "a", "value": "1"}]}, {"env": [{"name": "a", "$patch": "delete"}]}, {"env": []}),
        (
            {"env": [{"name": "a", "value": "1"}]},
            {"env": [{"name": "a", "$patch": "replace", "valueFrom": {}}]},
            {"env": [{"name": "a", "valueFrom": {}}]},
        ),
        (
            {"volumeMounts": [{"mountPath": "/a", "name": "x"}]},
            {"volumeMounts": [{"mountPath": "/a", "readOnly": True}, {"mountPath": "/b", "name": "y"}]},
            {"volumeMounts": [{"mountPath": "/a", "name": "x", "readOnly": True}, {"mountPath": "/b", "name": "y"}]},
        ),
        ({"env": [{"name": "a"}]}, {"env": ["no mapping"]}, {"env": ["no mapping"]}),
    ],
    ids=str,
)
def test_merging(planned: dict[str, Any], given_: dict[str, Any], merged: dict[str, Any]) -> None:
    before = copy.deepcopy((planned, given_))
    assert merge(planned, given_) == merged
    assert (planned, given_) == before


_NAMES = st.sampled_from(["a", "env", "containers", "name"])
_VALUES = st.recursive(
    st.one_of(st.none(), st.integers(), st.text(max_size=3)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3),
    max_leaves=12,
)
_MAPPINGS = st.dictionaries(_NAMES, _VALUES, max_size=3)


@given(planned=_MAPPINGS, first=_MAPPINGS)
def test_whatever_is_given_can_be_merged_and_twice_is_as_once(planned: dict[str, Any], first: dict[str, Any]) -> None:
    once = merge(planned, first)
    assert merge(once, first) == once
    assert merge(planned, {}) == planned
