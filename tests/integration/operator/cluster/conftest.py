"""A real control plane for all tests of this folder, and a namespace of its own for each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shoal.operator.api.crd import custom_resource_definition
from shoal.operator.substrate.ports import PortReservations
from support.control_plane.cluster import ControlPlane, running_control_plane
from support.control_plane.definitions import find_definitions
from support.control_plane.lws import start_lws
from support.control_plane.operator_account import denials
from support.control_plane.required import require_binaries


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """One for the whole run, which serves InferenceServices, and what others define that plans may hold. Fails at the
    end when an operator was not allowed what it asked for, in any test."""
    programs = require_binaries()
    definitions = [custom_resource_definition(), *find_definitions().values()]
    with running_control_plane(programs, definitions=definitions) as plane:
        yield plane
        assert denials(plane) == [], "rights that reconcile/rights.py lacks"


@pytest.fixture(scope="session")
def leader_worker_sets(control_plane: ControlPlane) -> Iterator[None]:
    """While this is there, LeaderWorkerSets are checked, defaulted and turned into pods."""
    with PortReservations() as ports:
        start_lws(control_plane, ports)
        yield


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """Where only pods with the least rights may run."""
    with control_plane.fresh_namespace() as name:
        yield name
