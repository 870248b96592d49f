"""A network namespace of its own, where processes have addresses as pods have them: EndpointSlices take no loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.control_plane.process_kubelet import POD_NETWORK

_FOLDER = Path(__file__).resolve().parent


def run_inside(module: str, *arguments: str, timeout_s: float) -> list[Any]:
    """Runs a module in a new namespace: the JSON of each line that it prints. Raises CalledProcessError."""
    enter = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
    paths = [str(_FOLDER.parent), str(_FOLDER.parents[1] / "tests")]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [*enter, "--", sys.executable, "-P", "-m", module, *arguments],
        stdout=subprocess.PIPE,
        env=environ,
        timeout=timeout_s,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.decode().splitlines() if line.startswith("{")]


def enter_network() -> None:
    """Called inside: gives the loopback all addresses of pods."""
    for command in ("ip link set lo up", f"ip route add local {POD_NETWORK} dev lo"):
        subprocess.run(command.split(), check=True)
