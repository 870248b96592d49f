"""helm, with a folder of its own for what it keeps."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from support.control_plane.cluster import ControlPlane

CHART: Final = Path(__file__).parents[3] / "charts" / "shoal"
OPERATOR: Final = "shoal-operator"
"""What a release called shoal calls it."""
_TIMEOUT_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Helm:
    """One cluster's."""

    program: Path
    kubeconfig: Path
    home: Path

    def __call__(self, *arguments: str) -> str:
        """What it prints. Raises CalledProcessError with its errors."""
        environ = {"HOME": str(self.home), "PATH": "/usr/bin:/bin", "KUBECONFIG": str(self.kubeconfig)}
        command = [str(self.program), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, env=environ)
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
        return done.stdout

    def template(self, release: str, namespace: str, *flags: str) -> list[dict[str, Any]]:
        """The chart's objects."""
        rendered = self("template", release, str(CHART), f"--namespace={namespace}", *flags)
        return [found for found in yaml.safe_load_all(rendered) if found]


def find(objects: Sequence[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    """The only one of that kind, and name if it is given."""
    [found] = [each for each in objects if each["kind"] == kind and name in ("", each["metadata"]["name"])]
    return found


def operator_flags(plane: ControlPlane, namespace: str, folder: Path) -> list[str]:
    """Those of the release's pods, with their account; but addresses are this machine's."""
    deployment = plane.request("GET", f"/apis/apps/v1/namespaces/{namespace}/deployments/{OPERATOR}")
    spec = deployment["spec"]["template"]["spec"]
    [container] = spec["containers"]
    kubeconfig = plane.kubeconfig_of(namespace, spec["serviceAccountName"], folder / "kubeconfig")
    here = ["--host=127.0.0.1", "--port=0", "--metrics-port=0", "--webhook-port=0", f"--kubeconfig={kubeconfig}"]
    return [*container["args"], *here, "--identity=here"]
