"""helm, with a folder of its own for what it keeps."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

CHART: Final = Path(__file__).parents[3] / "charts" / "shoal"
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
