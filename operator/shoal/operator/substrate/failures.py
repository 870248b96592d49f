"""Why a mesh did not come up."""

from __future__ import annotations


class MeshError(Exception):
    """The mesh cannot run; the message is for people and says what to do."""


class PortInUse(MeshError):
    """Somebody else has the port that the manifest asks for."""

    def __init__(self, port: int, holder: str | None) -> None:
        self.port = port
        self.holder = holder
        by = f"by {holder}" if holder else "by another process"
        super().__init__(f"port {port} is in use {by}; end it, or set another spec.gateway.port (0 picks a free one)")


class ProcessFailed(MeshError):
    """A process never became ready."""

    def __init__(self, name: str, reason: str, log_tail: str, log_path: str) -> None:
        self.name = name
        self.reason = reason
        self.log_tail = log_tail
        last = f"; its last lines:\n{log_tail}" if log_tail else f"; it wrote nothing to {log_path}"
        super().__init__(f"{name} did not start: {reason}{last}")


class MeshInterrupted(MeshError):
    """Asked to stop before the mesh was up."""
