"""The API server finds the chart's webhook by its Service, trusts its certificate, and passes on what it says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.control_plane.required import require_binaries

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(200)]


def test_a_model_that_does_not_fit_is_refused_by_kubectl_apply() -> None:
    require_binaries()
    if os.geteuid() or shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("needs root, unshare and ip (util-linux, iproute2), to be reached at addresses of Services")
    if subprocess.run(["unshare", "--net", "true"], capture_output=True, timeout=30).returncode:
        pytest.skip("network namespaces may not be made here")
    command = ["unshare", "--net", sys.executable, "-P", "-m", "support.control_plane.chart_webhook"]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
    assert "failed calling webhook" in said["without an operator"]
    assert "created (server dry run)" in said["good"]
    # In words that CEL has none of.
    assert "spec.workers.resources: weights of 16.4 GB on each GPU" in said["bad"]
    assert "do not fit" in said["bad"]
