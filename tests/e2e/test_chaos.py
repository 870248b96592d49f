"""A short chaos run: parts of a mesh are killed, stopped, drained and cut off under streams, and nobody notices."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.model import smollm2_path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "chaos.py"


@pytest.mark.slow
def test_nobody_notices_half_a_minute_of_chaos(tmp_path: Path) -> None:
    command = [sys.executable, "-P", str(SCRIPT), "--minutes=0.4", "--pause-s=1.5", "--streams=14"]
    command += [f"--model={smollm2_path()}", f"--log-dir={tmp_path}"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert run.returncode == 0, run.stderr
    rows = {line[:40].strip(): float(line[40:].split()[0]) for line in run.stdout.splitlines()}
    assert rows["streams wrong or lost"] == 0
    assert sum(number for name, number in rows.items() if name.startswith("strikes")) >= 5
