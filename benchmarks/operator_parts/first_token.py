"""`kubectl apply` to the first token of a real model through a real Envoy, with the model and all programs cached.

Pods run as processes of this machine, bound by the real scheduler: no image is pulled, no kubelet's pace is in it.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from operator_parts.network import run_inside
from rows import Row
from support.model import smollm2_path

_BAR_S = 30.0
_TIMEOUT_S = 300.0
_EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "smollm2-135m.yaml"
_COMPONENTS = ("worker", "tokenizer", "gateway")


def measure_first_token(number: int) -> list[Row]:
    """The median of several control planes, and when its pods were ready."""
    found = [_run() for _ in range(number)]
    total_s = [answer["first_token_s"] for answer in found]
    middle = found[total_s.index(statistics.median_low(total_s))]
    first_s = middle["first_token_s"]
    rows = [Row("kubectl apply to first token", first_s, "s", _BAR_S, _BAR_S / first_s)]
    rows += [_row(component, middle["timeline"]) for component in _COMPONENTS]
    return [*rows, Row("kubectl apply to Ready", middle["ready_s"], "s", None, None)]


def _run() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "isvc.yaml"
        manifest.write_text(_EXAMPLE.read_text())
        answer, _ = run_inside(
            "support.control_plane.whole_mesh", str(smollm2_path()), str(manifest), timeout_s=_TIMEOUT_S
        )
    return answer


def _row(component: str, timeline: list[tuple[float, str, str]]) -> Row:
    ready_s = next(at_s for at_s, pod, what in timeline if f"-{component}-" in pod and what == "ready")
    return Row(f"kubectl apply to {component} ready", ready_s, "s", None, None)
