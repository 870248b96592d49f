"""`kubectl apply` to an answer of a real model: the real API server, operator, scheduler, Envoy, gateway and worker.

Pods run as processes in a network namespace of their own; no image and no kubelet is part of it.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import pytest

from support.control_plane.required import require_binaries
from support.model import smollm2_path

EXAMPLES = Path(__file__).parents[4] / "examples"
_TIMEOUT_S = 480.0
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(_TIMEOUT_S + 60)]


def enter_namespace() -> list[str]:
    """The command that makes one, as root or as a user who may."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("needs unshare and ip (util-linux, iproute2)")
    command = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
    if subprocess.run([*command, "true"], capture_output=True, timeout=30).returncode:
        pytest.skip("network namespaces may not be made here")
    return command


async def run(tmp_path: Path, manifest: str, *changes: dict[str, Any], **environ: str) -> tuple[Any, Any]:
    """What `whole_mesh` prints."""
    require_binaries()
    path = tmp_path / "isvc.yaml"
    path.write_text(manifest)
    command = [*enter_namespace(), sys.executable, "-P", "-m", "support.control_plane.whole_mesh"]
    paths = {"PYTHONPATH": str(Path(__file__).parents[3])}
    process = await asyncio.create_subprocess_exec(
        *command,
        str(smollm2_path()),
        str(path),
        *map(json.dumps, changes),
        stdout=PIPE,
        stderr=PIPE,
        env={**os.environ, **paths, **environ},
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), _TIMEOUT_S)
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    assert process.returncode == 0, errors.decode()[-8000:]
    answer, changed = map(json.loads, output.decode().strip().splitlines()[-2:])
    print(answer, changed)
    return answer, changed


@pytest.mark.slow
async def test_a_manifest_becomes_a_chat(tmp_path: Path) -> None:
    # Two workers share the cores of this machine with everything else.
    manifest = (
        (EXAMPLES / "smollm2-135m.yaml")
        .read_text()
        .replace("# threads: 2", "threads: 1")
        .replace("  kvCache:", "  kvCache:\n    cpu: 64Mi")
    )
    up, down = ({"workers": {"replicas": replicas}} for replicas in (2, 1))
    other_arithmetic = {"model": {"dtype": "float32"}}
    answer, changed = await run(tmp_path, manifest, up, down, other_arithmetic)
    assert answer["routes"] == "True"
    assert len(answer["text"]) > 10
    # Ten times what is promised, since workers may have to compile their operations first.
    assert answer["first_token_s"] < 300
    assert changed["failed"] == []
    assert changed["answered"] > 0
    assert changed["groups"][-1] != ["smollm2-135m-worker"]


async def test_workers_are_scaled_and_replaced_without_losing_a_stream(tmp_path: Path) -> None:
    """Of made-up engines, which are quick to start; all the rest is real."""
    changes: list[dict[str, Any]] = [
        {"workers": {"replicas": 3}},
        {"workers": {"replicas": 1}},
        {"workers": {"resources": {"cpu": 2}}},
        {"model": {"dtype": "float32"}},
    ]
    example = (EXAMPLES / "simulated-h100.yaml").read_text()
    manifest = example.replace("replicas: 4", "replicas: 2").replace("timeScale: 1", "timeScale: 4")
    answer, changed = await run(tmp_path, manifest, *changes)
    assert answer["routes"] == "True"
    assert changed["failed"] == []
    assert changed["answered"] > 0
    *scaled, [replacement] = changed["groups"]
    assert scaled == [["simulated-h100-worker"]] * 3
    assert replacement.startswith("simulated-h100-worker-"), "another group of workers, and the old one is gone"
    caches = changed["caches"]
    assert caches["address"] in caches["stopped"]["message"]
    # What the worker's cache holds is not known, and it serves all the same.
    assert [caches["stopped"][kind] for kind in ("Degraded", "Ready")] == ["True", "True"]
    assert [caches["going_on"][kind] for kind in ("Degraded", "Ready")] == ["False", "True"]
