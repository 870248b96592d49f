"""The manifest: YAML to a frozen, checked `InferenceService`, or a `ManifestError` that lists every problem.

    service = load_manifest(Path("isvc.yaml"))

Called by `shoal validate -f` and `shoal up -f`. `spec.py` holds the fields, `reading.py` turns text into plain data,
`checking.py` plain data into the spec, `rules.py` refuses what each field allows but the whole does not, and
`defaults.py` fills in what depends on the device.
"""

from shoal.operator.api.defaults import WorkerSizes, worker_sizes
from shoal.operator.api.loading import LoadedManifest, load_manifest, load_manifests, parse_manifest
from shoal.operator.api.model_rules import ModelFacts
from shoal.operator.api.problems import ManifestError, Problem
from shoal.operator.api.quantity import format_bytes, parse_quantity
from shoal.operator.api.roles import WorkerRole, worker_roles
from shoal.operator.api.rules import Machine, find_contradictions
from shoal.operator.api.spec import InferenceService, Model

__all__ = [
    "InferenceService",
    "LoadedManifest",
    "Machine",
    "ManifestError",
    "Model",
    "ModelFacts",
    "Problem",
    "WorkerRole",
    "WorkerSizes",
    "find_contradictions",
    "format_bytes",
    "load_manifest",
    "load_manifests",
    "parse_manifest",
    "parse_quantity",
    "worker_roles",
    "worker_sizes",
]
