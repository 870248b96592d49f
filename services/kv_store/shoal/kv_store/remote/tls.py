"""Certificates of stores: one authority, and a certificate each, for both directions and both planes."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. The certificate names the host that peers call; the authority signs those of all peers."""

    cert: str
    key: str
    ca: str

    def server_credentials(self) -> grpc.ServerCredentials:
        """For gRPC, asking peers for their certificates. Raises OSError."""
        return grpc.ssl_server_credentials([(_read(self.key), _read(self.cert))], _read(self.ca), True)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For gRPC. Raises OSError."""
        return grpc.ssl_channel_credentials(_read(self.ca), _read(self.key), _read(self.cert))

    def server_context(self) -> ssl.SSLContext:
        """For the data port, asking peers for their certificates. Raises OSError, ssl.SSLError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED
        return self._filled(context)

    def client_context(self) -> ssl.SSLContext:
        """For the data port. Raises OSError, ssl.SSLError."""
        return self._filled(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))

    def _filled(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.cert, self.key)
        context.load_verify_locations(self.ca)
        return context


def _read(path: str) -> bytes:
    return Path(path).read_bytes()
