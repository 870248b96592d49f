"""What the API server asks of the chart's webhook, by the chart's Service: run in a network namespace of its own.

    unshare --net -- python -m support.control_plane.chart_webhook

Addresses of Services lead to this machine, where the operator listens at the Service's port: what is not here is the
proxy that leads from there to a pod. Prints a line of JSON: what kubectl said.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import tempfile
from pathlib import Path

import yaml

from support.bad_manifests import QWEN3_8B
from support.control_plane.binaries import find_binaries
from support.control_plane.cluster import ControlPlane, running_control_plane
from support.control_plane.helm import CHART, Helm, operator_flags
from support.eventually import eventually
from support.logged_process import LoggedProcess
from support.manifests import MINIMAL_ON_KUBERNETES, with_fields

_SERVICES = "10.96.0.0/16"
_NAMESPACE = "shoal-system"
# Weights of 16.4 GB: nothing that a schema or CEL could see.
_TOO_LARGE = {
    "spec.model.config": QWEN3_8B,
    "spec.workers": {"device": "cuda", "resources": {"gpuMemory": "12G"}},
}


def main() -> None:
    """See the module."""
    for command in ("ip link set lo up", f"ip route add local {_SERVICES} dev lo"):
        subprocess.run(command.split(), check=True)
    with tempfile.TemporaryDirectory() as folder, running_control_plane(find_binaries()) as plane:
        print(json.dumps(asyncio.run(_run(plane, Path(folder)))))


async def _run(plane: ControlPlane, folder: Path) -> dict[str, str]:
    helm = Helm(plane.programs["helm"], plane.kubeconfig, folder)
    flags = [f"--namespace={_NAMESPACE}", "--create-namespace", "--wait", "--timeout=60s"]
    helm("install", "shoal", str(CHART), *flags, "--set=webhook.failurePolicy=Fail")
    said = {"without an operator": _apply(plane, {})}
    here = ["--host=0.0.0.0", "--webhook-port=443"]
    async with await LoggedProcess.launch("shoal.operator.main", *operator_flags(plane, _NAMESPACE, folder), *here):
        await eventually(lambda: "created" in _apply(plane, {}), "the webhook allows a manifest", 60.0)
        said["good"] = _apply(plane, {})
        said["bad"] = _apply(plane, _TOO_LARGE)
    return said


def _apply(plane: ControlPlane, fields: dict[str, object]) -> str:
    """Without doing it. What kubectl says, errors too."""
    manifest = yaml.safe_dump(with_fields(MINIMAL_ON_KUBERNETES, fields))
    try:
        return plane.kubectl("apply", "--dry-run=server", "-f", "-", stdin=manifest)
    except subprocess.CalledProcessError as error:
        return str(error.stderr)


if __name__ == "__main__":
    main()
