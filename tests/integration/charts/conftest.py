"""A control plane without InferenceServices, since the chart brings them, and helm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.control_plane.cluster import ControlPlane, running_control_plane
from support.control_plane.definitions import find_definitions
from support.control_plane.helm import Helm
from support.control_plane.required import require_binaries


@pytest.fixture(scope="session")
def cluster() -> Iterator[ControlPlane]:
    """One for all tests of the chart: what it installs is the whole cluster's."""
    programs = require_binaries()
    with running_control_plane(programs, definitions=list(find_definitions().values())) as plane:
        yield plane


@pytest.fixture
def helm(cluster: ControlPlane, tmp_path: Path) -> Helm:
    """Of that cluster."""
    return Helm(cluster.programs["helm"], cluster.kubeconfig, tmp_path)
