"""`spec.podTemplate`: pod templates of the author merged into planned ones, as Kubernetes' strategic merge does it.

Mappings are merged field by field, and null takes a field away. Lists of things with names are merged by these: an
entry with `$patch: delete` goes, one with `$patch: replace` takes the other's place. Other lists are replaced, but for
tolerations, which are added to those planned: without these no worker gets to a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from shoal.operator.api.pod_rules import MERGE_DIRECTIVE, MERGE_KEYS
from shoal.operator.api.spec import InferenceServiceSpec, PodOverrides

_ADDED: Final = ("tolerations",)


def overrides_for(spec: InferenceServiceSpec, component: str) -> PodOverrides | None:
    """Those of a component; workers of all roles have the same."""
    templates = spec.pod_template
    if templates is None:
        return None
    by_component = {
        "gateway": templates.gateway,
        "tokenizer": templates.tokenizer,
        "kv-store": templates.kv_store,
        "lora-registry": templates.lora_registry,
    }
    return by_component.get(component, templates.worker)


def merge_template(planned: Mapping[str, Any], overrides: PodOverrides | None) -> dict[str, Any]:
    """A pod template, with what the author gave for it."""
    if overrides is None:
        return dict(planned)
    metadata = {name: dict(value) for name, value in _metadata(overrides).items() if value}
    return merge(planned, {"metadata": metadata, "spec": overrides.spec})


def merge(planned: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A new mapping; neither argument changes."""
    merged = dict(planned)
    for name, value in given.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, Mapping):
            before = planned.get(name)
            merged[name] = merge(before if isinstance(before, Mapping) else {}, value)
        elif isinstance(value, list):
            merged[name] = _merge_lists(name, planned.get(name), value)
        else:
            merged[name] = value
    return merged


def _metadata(overrides: PodOverrides) -> dict[str, Mapping[str, str]]:
    return {"labels": overrides.metadata.labels, "annotations": overrides.metadata.annotations}


def _merge_lists(name: str, planned: Any, given: list[Any]) -> list[Any]:
    before = planned if isinstance(planned, list) else []
    if name in _ADDED:
        return [*before, *(entry for entry in given if entry not in before)]
    key = MERGE_KEYS.get(name)
    entries = [*before, *given]
    if key is None or not all(
        isinstance(entry, Mapping) and isinstance(entry.get(key), (str, int)) for entry in entries
    ):
        return list(given)
    return _merge_by_key(name, key, before, given)


def _merge_by_key(
    name: str, key: str, before: Sequence[Mapping[str, Any]], given: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """In the planned order; what is not planned follows."""
    merged = {entry[key]: dict(entry) for entry in before}
    for entry in given:
        fields = {field: value for field, value in entry.items() if field != MERGE_DIRECTIVE}
        if entry.get(MERGE_DIRECTIVE) == "delete":
            merged.pop(entry[key], None)
        elif entry.get(MERGE_DIRECTIVE) == "replace" or name == "volumes":
            # A volume has one source: another one takes its place.
            merged[entry[key]] = merge({}, fields)
        else:
            merged[entry[key]] = merge(merged.get(entry[key], {}), fields)
    return list(merged.values())
