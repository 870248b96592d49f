"""CustomResourceDefinitions of others, out of the Go modules that they come with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from support.control_plane.binaries import MODULES, cache_dir, making, run_go

Definition = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Source:
    """A file of a module."""

    module: str
    version: str
    path: str


_LWS: Final = ("sigs.k8s.io/lws", MODULES["sigs.k8s.io/lws"])
_PROMETHEUS: Final = ("github.com/prometheus-operator/prometheus-operator", "v0.85.0")
_PROMETHEUS_FOLDER: Final = "example/prometheus-operator-crd"
SOURCES: Final[Mapping[str, Source]] = {
    "leaderworkersets": Source(*_LWS, "config/crd/bases/leaderworkerset.x-k8s.io_leaderworkersets.yaml"),
    # Not used, but LeaderWorkerSet's controller ends without it.
    "disaggregatedsets": Source(*_LWS, "config/crd/bases/disaggregatedset.x-k8s.io_disaggregatedsets.yaml"),
    "servicemonitors": Source(*_PROMETHEUS, f"{_PROMETHEUS_FOLDER}/monitoring.coreos.com_servicemonitors.yaml"),
    "prometheusrules": Source(*_PROMETHEUS, f"{_PROMETHEUS_FOLDER}/monitoring.coreos.com_prometheusrules.yaml"),
    "scaledobjects": Source("github.com/kedacore/keda/v2", "v2.21.0", "config/crd/bases/keda.sh_scaledobjects.yaml"),
}
"""Plural -> where it is defined."""


def find_definitions() -> dict[str, Definition]:
    """Plural -> definition, for each of SOURCES, without descriptions, which make them five times as large.

    Raises BinariesMissing where there is no Go to fetch the modules, or when that fails.
    """
    digest = hashlib.sha256(repr(sorted(SOURCES.items())).encode()).hexdigest()[:12]
    folder = cache_dir() / f"definitions-{digest}"
    if not folder.is_dir():
        with making(folder) as work:
            if work is not None:
                _fetch(work)
    return {plural: json.loads((folder / f"{plural}.json").read_text()) for plural in SOURCES}


def _fetch(folder: Path) -> None:
    for plural, source in SOURCES.items():
        listed = json.loads(run_go(["mod", "download", "-json", f"{source.module}@{source.version}"], folder))
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        definition = yaml.load((Path(listed["Dir"]) / source.path).read_text(), loader)
        (folder / f"{plural}.json").write_text(json.dumps(_without_descriptions(definition)))


def _without_descriptions(node: Any) -> Any:
    if isinstance(node, list):
        return [_without_descriptions(item) for item in node]
    if not isinstance(node, dict):
        return node
    # A property of that name has a schema, where a description has a text.
    return {
        key: _without_descriptions(value)
        for key, value in node.items()
        if not (key == "description" and isinstance(value, str))
    }
