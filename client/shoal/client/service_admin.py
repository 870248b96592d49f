"""A connection to one service of a mesh, for people and tools: what its administrators' clients have in common."""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self

import grpc

from shoal.client.endpoint import parse_endpoint

_OPTIONS: Final = [("grpc.enable_http_proxy", 0)]


class ServiceAdmin:
    """Owns a channel. Used in a `with` block, or ended by `close`."""

    def __init__(self, channel: grpc.Channel, timeout_s: float) -> None:
        """timeout_s: deadline of each call."""
        self._channel, self._timeout_s = channel, timeout_s

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()


def open_channel(endpoint: str) -> grpc.Channel:
    """To `host:port`, or with TLS where the endpoint says so. Raises InvalidArgument. Does not connect."""
    parsed = parse_endpoint(endpoint)
    if parsed.tls:
        return grpc.secure_channel(parsed.target, grpc.ssl_channel_credentials(), _OPTIONS)
    return grpc.insecure_channel(parsed.target, _OPTIONS)


def open_socket(path: str) -> grpc.Channel:
    """To a Unix socket. Does not connect."""
    return grpc.insecure_channel(f"unix:{path}", _OPTIONS)
