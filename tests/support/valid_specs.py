"""Specs without contradictions, made out of any."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import yaml

from shoal.operator.api import InferenceService, find_contradictions
from shoal.operator.api.kubernetes_rules import find_kubernetes_contradictions
from shoal.operator.api.spec import InferenceServiceSpec
from support.manifests import MINIMAL_ON_KUBERNETES

_MAX_STEPS = 200
_LAST_RESORT = ("autoscaling", "ratio", "prefill", "decode")


def manifest_of(spec: InferenceServiceSpec) -> dict[str, Any]:
    """As a person would have written it: without fields that are not given."""
    return {**yaml.safe_load(MINIMAL_ON_KUBERNETES), "spec": _given(msgspec.to_builtins(spec))}


def without_contradictions(spec: InferenceServiceSpec) -> InferenceService:
    """Takes away what the rules for Kubernetes refuse, until they refuse nothing."""
    manifest = manifest_of(spec)
    for _ in range(_MAX_STEPS):
        service = msgspec.convert(manifest, InferenceService)
        problems = find_contradictions(service) + find_kubernetes_contradictions(service)
        if not problems:
            return service
        _take_away(manifest, problems[0].path)
    raise AssertionError(f"{problems[0]} cannot be taken away")


def _take_away(manifest: dict[str, Any], path: str) -> None:
    """The field, or what encloses it if it is not there or must be."""
    if path == "spec.model.uri":
        manifest["spec"]["model"]["uri"] = "hf://org/model"
        return
    parts = re.sub(r"\[.*", "", path).split(".")
    for count in range(len(parts), 1, -1):
        *sections, field = parts[:count]
        section: Any = manifest
        for name in sections:
            section = section.get(name, {})
        if field not in section or parts[:count] == ["spec", "model"]:
            continue
        kept = section.pop(field)
        if _can_be_read(manifest):
            return
        section[field] = kept
    if manifest["spec"]["model"].pop("config", None) is None:
        manifest["spec"].pop(next(name for name in _LAST_RESORT if name in manifest["spec"]))


def _can_be_read(manifest: dict[str, Any]) -> bool:
    try:
        msgspec.convert(manifest, InferenceService)
    except msgspec.ValidationError:
        return False
    return True


def _given(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _given(item) for key, item in value.items() if item is not None}
    return [_given(item) for item in value] if isinstance(value, (list, tuple)) else value
