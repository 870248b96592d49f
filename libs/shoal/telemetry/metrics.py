"""Prometheus `/metrics` on a port of its own, so that scraping never waits for the service's event loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from wsgiref.simple_server import WSGIServer

from prometheus_client import start_http_server


def serve_metrics(host: str, port: int) -> tuple[int, Callable[[], None]]:
    """Serves the default registry on `host:port` (0: a free one) from a daemon thread.

    Returns the port and a function that stops it. Raises OSError naming the address when it cannot be bound.
    """
    try:
        server, thread = start_http_server(port, host)
    except OSError as error:
        raise OSError(f"cannot serve metrics on {host}:{port}: {error.strerror or error}") from error
    return server.server_port, lambda: _stop(server, thread)


def _stop(server: WSGIServer, thread: threading.Thread) -> None:
    server.shutdown()
    server.server_close()
    thread.join(timeout=5)
