"""Generates `operator/shoal/operator/api/pod_fields.json`: the fields of a Kubernetes PodSpec and of all that is in it,
from the models of kubernetes-asyncio.

Run by hand when Kubernetes has new fields: python tools/generate_pod_fields.py
"""

from __future__ import annotations

import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from kubernetes_asyncio import client

ROOT: Final = Path(__file__).resolve().parent.parent
TABLE: Final = ROOT / "operator" / "shoal" / "operator" / "api" / "pod_fields.json"
_ROOT_KIND: Final = "V1PodSpec"
_QUANTITIES: Final = {
    ("V1EmptyDirVolumeSource", "sizeLimit"): "quantity",
    ("V1PodSpec", "overhead"): "dict(str, quantity)",
    ("V1ResourceFieldSelector", "divisor"): "quantity",
    ("V1ResourceRequirements", "limits"): "dict(str, quantity)",
    ("V1ResourceRequirements", "requests"): "dict(str, quantity)",
    ("V1VolumeResourceRequirements", "limits"): "dict(str, quantity)",
    ("V1VolumeResourceRequirements", "requests"): "dict(str, quantity)",
}
"""Which the models call text."""


def fields_of_pods() -> dict[str, dict[str, str]]:
    """Kind -> field -> type: a kind of this table, `str`, `bool`, `int`, `quantity`; lists, dicts of it."""
    found: dict[str, dict[str, str]] = {}
    to_do = [_ROOT_KIND]
    while to_do:
        kind = to_do.pop()
        if kind in found:
            continue
        model: Any = getattr(client, kind)
        found[kind] = {
            field: _QUANTITIES.get((kind, field), model.openapi_types[name])
            for name, field in model.attribute_map.items()
        }
        to_do += [inner for text in found[kind].values() for inner in re.findall(r"\w*V1\w+", text)]
    return {kind: dict(sorted(found[kind].items())) for kind in sorted(found)}


def main() -> None:
    """Command line entry."""
    release = f"1.{metadata.version('kubernetes-asyncio').partition('.')[0]}"
    lines = [f"  {json.dumps(kind)}: {json.dumps(fields)}" for kind, fields in fields_of_pods().items()]
    text = ",\n".join(lines)
    TABLE.write_text(f'{{\n "release": "{release}",\n "kinds": {{\n{text}\n }}\n}}\n')


if __name__ == "__main__":
    main()
