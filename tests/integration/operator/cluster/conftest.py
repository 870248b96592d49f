"""A real control plane for all tests of this folder, and a namespace of its own for each."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator

import pytest

from shoal.operator.api.crd import custom_resource_definition
from support.control_plane.binaries import BinariesMissing, find_binaries
from support.control_plane.cluster import ControlPlane, running_control_plane


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """One for the whole run, which serves InferenceServices."""
    try:
        programs = find_binaries()
    except BinariesMissing as error:
        pytest.skip(str(error))
    with running_control_plane(programs, definitions=[custom_resource_definition()]) as plane:
        yield plane


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """Where only pods with the least rights may run."""
    name = f"test-{secrets.token_hex(4)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    control_plane.request("POST", "/api/v1/namespaces", json.dumps(body).encode())
    yield name
    control_plane.request("DELETE", f"/api/v1/namespaces/{name}")
