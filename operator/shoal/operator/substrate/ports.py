"""Free ports on the loopback interface, kept until the mesh ends."""

from __future__ import annotations

import random
import socket
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil

from shoal.operator.substrate.failures import MeshError, PortInUse

HOST = "127.0.0.1"
_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 15_000
_MAX_TRIES = 200


class PortReservations:
    """Ports by name. Use as a context manager; leaving it gives them back.

    On Linux each port stays bound, by a socket that does not listen, for as long as the mesh lives: others cannot bind
    it, not even while a process restarts, but our processes can, because they set SO_REUSEADDR (gRPC, uvicorn,
    http.server and Envoy all do) and this socket has it set after its own exclusive bind.
    """

    def __init__(self) -> None:
        self.by_name: dict[str, int] = {}
        self._sockets: list[socket.socket] = []
        self._candidates = _candidates()

    def __enter__(self) -> PortReservations:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives all ports back."""
        for held in self._sockets:
            held.close()
        self._sockets.clear()

    def reserve(self, name: str, port: int = 0) -> int:
        """Reserves `port`, or a free one for 0. Raises PortInUse naming the holder, or MeshError when not allowed."""
        if port:
            self._hold(name, port)
            return port
        for candidate in self._candidates:
            try:
                self._hold(name, candidate)
            except PortInUse:
                continue
            return self.by_name[name]
        raise MeshError(f"found no free port among {_MAX_TRIES} tries from {_LOWEST} on")

    def _hold(self, name: str, port: int) -> None:
        held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            held.bind((HOST, port))
        except PermissionError as error:
            held.close()
            raise MeshError(f"port {port} needs privileges; set a spec.gateway.port above 1023, or 0") from error
        except OSError as error:
            held.close()
            raise PortInUse(port, find_holder(port)) from error
        self.by_name[name] = int(held.getsockname()[1])
        if sys.platform == "linux":
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._sockets.append(held)
        else:  # elsewhere a bound socket keeps our own processes out too
            held.close()


def find_holder(port: int) -> str | None:
    """Who listens on `port`, such as `python3 (pid 4242)`, if this user may know."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.Error:
        return None
    for connection in connections:
        if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
            if connection.pid is None:
                return None
            try:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
            except psutil.Error:
                return f"pid {connection.pid}"
    return None


def _candidates() -> Iterable[int]:
    """Ports below the range from which the kernel gives outgoing connections theirs, in random order."""
    try:
        end = int(_EPHEMERAL_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        end = 32_768
    if end <= _LOWEST + _MAX_TRIES:
        return iter([0] * _MAX_TRIES)
    return iter(random.sample(range(_LOWEST, end), _MAX_TRIES))
