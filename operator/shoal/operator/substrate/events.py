"""What the substrate tells whoever watches it, such as the CLI's one line a component."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """Where a component stands."""

    WAITING = "waiting"
    """For what it depends on."""
    PREPARING = "preparing"
    """Something is being fetched; `progress` says how much of it is there."""
    STARTING = "starting"
    """Reported again whenever the process says how far it is (`detail` is the stage, `progress` how much of it), and
    every now and then when it says nothing."""
    READY = "ready"
    UNHEALTHY = "unhealthy"
    """Runs, but fails its health checks."""
    BACKOFF = "backoff"
    """Ended; starts again in a while."""
    CRASH_LOOP = "crash-loop"
    """As BACKOFF, after several failures in a row; `detail` has the last lines of the log."""
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    """Given up."""


@dataclass(frozen=True, slots=True)
class Event:
    """A component changed its state, or got further in it."""

    component: str
    """A process of the plan (`worker-0`), `model`, or `mesh` for the whole."""
    state: State
    detail: str = ""
    progress: float | None = None
    """From 0 to 1, when known."""


OnEvent = Callable[[Event], None]
"""Called from the event loop; must not block."""
