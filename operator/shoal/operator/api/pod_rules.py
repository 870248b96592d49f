"""What is inside of `spec.podTemplate.*.spec`: names of fields, types, quantities, containers. Pure.

The API server sees these mappings only once they are in pods, where what is wrong is told to nobody but the operator.
`pod_fields.json` is made by tools/generate_pod_fields.py.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from shoal.operator.api.problems import Problem
from shoal.operator.api.quantity import suggest_quantity
from shoal.operator.api.spec import InferenceServiceSpec, PodOverrides, PodTemplates

MERGE_KEYS: Final[Mapping[str, str]] = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "volumes": "name",
    "imagePullSecrets": "name",
    "resourceClaims": "name",
    "schedulingGates": "name",
    "env": "name",
    "ports": "containerPort",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
}
"""List -> what its entries are told apart by when they are merged into planned ones."""
MERGE_DIRECTIVE: Final = "$patch"
"""Of an entry of such a list: `delete` or `replace`."""
POD_TEMPLATES: Final[Mapping[str, str]] = {
    "worker": "worker",
    "gateway": "gateway",
    "tokenizer": "tokenizer",
    "kv_store": "kvStore",
    "lora_registry": "loraRegistry",
}
"""Attribute -> field."""
_CONTAINERS: Final = ("containers", "initContainers")
_MUST_BE_NAMED: Final = (*_CONTAINERS, "volumes")
_QUANTITY: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?")
_SCALARS: Final[Mapping[str, tuple[type, str]]] = {
    "str": (str, "text: put it in quotes"),
    "bool": (bool, "true or false"),
    "int": (int, "an integer"),
}
_TABLE: Final = json.loads((Path(__file__).parent / "pod_fields.json").read_text())
_KINDS: Final[Mapping[str, Mapping[str, str]]] = _TABLE["kinds"]


def given_templates(spec: InferenceServiceSpec) -> Iterator[tuple[str, PodOverrides]]:
    """Each with its path."""
    templates = spec.pod_template or PodTemplates()
    for name, field in POD_TEMPLATES.items():
        overrides: PodOverrides | None = getattr(templates, name)
        if overrides is not None:
            yield f"spec.podTemplate.{field}", overrides


def find_pod_contradictions(spec: InferenceServiceSpec) -> list[Problem]:
    """What no cluster takes. Null is allowed anywhere: it takes a planned field away."""
    problems: list[Problem] = []
    for path, overrides in given_templates(spec):
        before = len(problems)
        _check_fields(f"{path}.spec", overrides.spec, "V1PodSpec", problems)
        if len(problems) == before:
            unplanned = _unplanned(spec, path, overrides)
            problems += [Problem(at, text) for at, text, can_be_made in unplanned if not can_be_made]
    return problems


def advise_on_pods(spec: InferenceServiceSpec) -> list[Problem]:
    """Containers that may be meant as planned ones. For a spec without contradictions."""
    return [
        Problem(at, text)
        for path, overrides in given_templates(spec)
        for at, text, can_be_made in _unplanned(spec, path, overrides)
        if can_be_made
    ]


def planned_containers(spec: InferenceServiceSpec) -> dict[str, dict[str, tuple[str, ...]]]:
    """Field of `spec.podTemplate` -> list of a PodSpec -> names that the planner gives."""
    in_worker = ("kv-store",) if spec.kv_cache.cpu is not None and spec.kv_cache.placement == "Pod" else ()
    return {
        "worker": {"containers": ("worker",), "initContainers": in_worker},
        "gateway": {"containers": ("gateway",), "initContainers": ("envoy", "follower")},
        "tokenizer": {"containers": ("tokenizer",), "initContainers": ()},
        "kvStore": {"containers": ("kv-store",), "initContainers": ("own-folders",)},
        "loraRegistry": {"containers": ("lora-registry",), "initContainers": ()},
    }


def _unplanned(spec: InferenceServiceSpec, path: str, overrides: PodOverrides) -> Iterator[tuple[str, str, bool]]:
    """Path and message for each container beside the planned ones, and whether it can be made: if it has an image."""
    planned = planned_containers(spec)[path.rpartition(".")[2]]
    known = "; ".join(f"{field}: {', '.join(names)}" for field, names in planned.items() if names)
    for field in _CONTAINERS:
        for index, entry in enumerate(overrides.spec.get(field) or ()):
            name = entry["name"]
            if name in planned[field] or entry.get(MERGE_DIRECTIVE) == "delete":
                continue
            at = f"{path}.spec.{field}[{index}].name"
            message = f"{name[:80]!r} is none of the planned ones ({known})"
            if entry.get("image"):
                yield at, f"{message} and becomes a container of its own, beside them", True
            else:
                yield at, f"{message}, and a container of its own needs an image; give one of these, or an image", False


def _check_fields(path: str, value: Mapping[str, Any], kind: str, problems: list[Problem]) -> None:
    fields = _KINDS[kind]
    for name, inner in value.items():
        at = f"{path}.{name}"
        if name not in fields:
            problems.append(Problem(at, _unknown(name, kind)))
        else:
            _check_value(at, name, inner, fields[name], problems)


def _check_value(path: str, name: str, value: Any, kind: str, problems: list[Problem]) -> None:
    if value is None or kind in ("object", "datetime"):
        return
    if kind.startswith("list["):
        _check_list(path, name, value, kind[5:-1], problems)
    elif kind.startswith("dict("):
        if not isinstance(value, Mapping):
            problems.append(Problem(path, f"{_show(value)} is not a mapping; give it as in a Kubernetes PodSpec"))
            return
        for key, inner in value.items():
            _check_value(f"{path}.{key}", key, inner, kind.removeprefix("dict(str, ")[:-1], problems)
    elif kind in _KINDS:
        if isinstance(value, Mapping):
            _check_fields(path, value, kind, problems)
        else:
            message = f"{_show(value)} is not a mapping of the fields of a Kubernetes {_noun(kind)}"
            problems.append(Problem(path, message))
    elif kind == "quantity":
        problems += _check_quantity(path, value)
    else:
        wanted, text = _SCALARS[kind]
        if not isinstance(value, wanted) or isinstance(value, bool) != (wanted is bool):
            problems.append(Problem(path, f"{_show(value)} is not allowed; give {text}"))


def _check_list(path: str, name: str, value: Any, kind: str, problems: list[Problem]) -> None:
    of_mappings = kind in _KINDS
    if not isinstance(value, list) or (of_mappings and not all(isinstance(entry, Mapping) for entry in value)):
        what = "a list of mappings" if of_mappings else "a list"
        problems.append(Problem(path, f"is not {what}; give it as in a Kubernetes PodSpec"))
        return
    if name in _MUST_BE_NAMED and not all(isinstance(entry.get("name"), str) for entry in value):
        problems.append(Problem(path, "has an entry without a name, by which it is merged; name it"))
        return
    for index, entry in enumerate(value):
        at = f"{path}[{index}]"
        if of_mappings and name in MERGE_KEYS and MERGE_DIRECTIVE in entry:
            if entry[MERGE_DIRECTIVE] not in ("delete", "replace"):
                shown = _show(entry[MERGE_DIRECTIVE])
                problems.append(Problem(f"{at}.{MERGE_DIRECTIVE}", f"{shown} is not allowed; give delete or replace"))
            entry = {field: inner for field, inner in entry.items() if field != MERGE_DIRECTIVE}
        _check_value(at, name, entry, kind, problems)


def _check_quantity(path: str, value: Any) -> list[Problem]:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return []
    if isinstance(value, str) and _QUANTITY.fullmatch(value):
        return []
    message = f"{_show(value)} is no quantity; give one such as 500m, 2 or 512Mi"
    return [Problem(path, message + (suggest_quantity(value) if isinstance(value, str) else ""))]


def _unknown(name: str, kind: str) -> str:
    """Names are compared without case; a field of a field is found as well."""
    fields = _KINDS[kind]
    by_folded = {field.lower(): field for field in fields}
    close = difflib.get_close_matches(name[:80].lower().replace("_", "").replace("-", ""), by_folded, n=1, cutoff=0.8)
    inside = [f"{field}.{name}" for field, inner in fields.items() if name in _KINDS.get(inner, {})]
    told = f"; did you mean {by_folded[close[0]]!r}?" if close else f"; did you mean {inside[0]!r}?" if inside else ""
    return f"unknown field of a Kubernetes {_noun(kind)} (as of {_TABLE['release']}){told}"


def _noun(kind: str) -> str:
    return kind.removeprefix("Core").removeprefix("V1")


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
