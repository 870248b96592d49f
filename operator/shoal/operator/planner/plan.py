"""What a plan is made from and what it is: frozen data, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from shoal.operator.api import Machine
from shoal.operator.envoy import Endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What the planner must know and cannot derive from the spec."""

    machine: Machine
    run_dir: str
    """Absolute; files of the plan are relative to it."""
    log_dir: str
    """Absolute; exists."""
    model_path: str
    """The model's file or folder on this machine."""
    python: str
    envoy: str
    ports: Mapping[str, int]
    """A port for each name in `required_ports`."""


class ReadinessKind(StrEnum):
    """How to find out whether a process can serve."""

    GRPC_HEALTH = "grpc-health"
    """`grpc.health.v1.Health/Check` of the whole server answers SERVING."""
    HTTP = "http"
    """GET answers 200."""
    ENVOY_ADMIN = "envoy-admin"
    """GET /ready on the admin interface's unix socket answers 200."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """When a process counts as ready."""

    kind: ReadinessKind
    target: str
    """`host:port`, or the path of a unix socket."""
    path: str = "/"
    """What to GET, for the HTTP kinds."""
    deadline_s: float = 60.0
    """How long a process may take from its start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessPlan:
    """One process to keep running."""

    name: str
    """`worker-0`; unique in the plan."""
    component: str
    """`worker`."""
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the supervisor's own environment, which loses its SHOAL_* variables first."""
    ports: Mapping[str, int] = field(default_factory=dict)
    readiness: Readiness
    depends_on: tuple[str, ...] = ()
    """Processes that must be ready before this one starts, and that stop after it."""
    serves: Mapping[str, Endpoint] = field(default_factory=dict)
    """Envoy cluster -> the endpoint to put there while this process is ready."""
    log_files: tuple[str, ...] = ()
    """Absolute paths of logs that it appends to by itself, besides its output."""
    drain_timeout_s: float = 10.0
    """How long it may take to end after SIGTERM before it is killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalPlan:
    """Everything to run one InferenceService on one machine."""

    name: str
    processes: tuple[ProcessPlan, ...]
    """Each after those it depends on."""
    files: Mapping[str, str]
    """Path relative to the run directory -> content, to write before anything starts."""
    edge: Endpoint
    """Where clients connect."""
    notes: tuple[str, ...] = ()
    """What works but may surprise, for people."""
