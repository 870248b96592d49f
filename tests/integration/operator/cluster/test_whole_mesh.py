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

import pytest

from support.control_plane.required import require_binaries
from support.model import smollm2_path

EXAMPLE = Path(__file__).parents[4] / "examples" / "smollm2-135m.yaml"
_TIMEOUT_S = 480.0
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(_TIMEOUT_S + 60)]


def enter_namespace() -> list[str]:
    """The command that makes one, as root or as a user who may."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("needs unshare and ip (util-linux, iproute2)")
    command = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
    if subprocess.run([*command, "true"], capture_output=True, timeout=30).returncode:
        pytest.skip("network namespaces may not be made here")
    return command


async def test_a_manifest_becomes_a_chat(tmp_path: Path) -> None:
    require_binaries()
    manifest = tmp_path / "isvc.yaml"
    # Two workers share the cores of this machine with everything else.
    manifest.write_text(EXAMPLE.read_text().replace("# threads: 2", "threads: 1"))
    command = [*enter_namespace(), sys.executable, "-P", "-m", "support.control_plane.whole_mesh"]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    process = await asyncio.create_subprocess_exec(
        *command, str(smollm2_path()), str(manifest), stdout=PIPE, stderr=PIPE, env=environ
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), _TIMEOUT_S)
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    assert process.returncode == 0, errors.decode()[-8000:]
    answer, scaled = map(json.loads, output.decode().strip().splitlines()[-2:])
    print(answer, scaled)
    assert answer["routes"] == "True"
    assert len(answer["text"]) > 10
    assert scaled["failed"] == []
    assert scaled["answered"] > 0
