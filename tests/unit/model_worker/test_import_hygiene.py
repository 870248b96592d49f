from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("shoal.model_worker.front", "torch"),
        ("shoal.model_worker.scheduler", "torch"),
        ("shoal.model_worker.scheduler", "grpc"),
        ("shoal.model_worker.engine_setup", "torch"),
        ("shoal.model_worker.engine_process", "grpc"),
    ],
)
def test_processes_load_only_what_they_need(module: str, forbidden: str) -> None:
    code = f"import sys, {module}; sys.exit({forbidden!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False, timeout=60).returncode == 0
