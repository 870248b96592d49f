"""Turns a plan into running things. `local` does so with processes on this machine.

async with LocalMesh(service, on_event=show) as mesh:
    print(mesh.url)
    await mesh.wait()
"""

from shoal.operator.substrate.events import Event, State
from shoal.operator.substrate.failures import MeshError, MeshInterrupted, PortInUse, ProcessFailed
from shoal.operator.substrate.local import LocalMesh
from shoal.operator.substrate.options import SupervisorOptions

__all__ = [
    "Event",
    "LocalMesh",
    "MeshError",
    "MeshInterrupted",
    "PortInUse",
    "ProcessFailed",
    "State",
    "SupervisorOptions",
]
