"""Discovery by TLS, with a certificate that may change while it is served."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import structlog

from shoal.operator.xds.server import DiscoveryServer

_log = structlog.get_logger("shoal.operator")


class _Identity:
    """Certificate and key in two files, which whoever renews them replaces."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self._served = self._read()

    @property
    def configuration(self) -> Any:
        """As it is served."""
        certificate, key = self._served
        return grpc.ssl_server_certificate_configuration([(key, certificate)])

    def renew(self) -> Any:
        """The configuration if the files are other than what is served, else None. Asked at each connection."""
        try:
            found = self._read()
        except OSError as error:  # in the middle of being replaced
            _log.warning("the certificate cannot be read", error=str(error))
            return None
        if found == self._served:
            return None
        self._served = found
        return self.configuration

    def _read(self) -> tuple[bytes, bytes]:
        certificate, key = self._files
        return certificate.read_bytes(), key.read_bytes()


@asynccontextmanager
async def serving_securely(
    discovery: DiscoveryServer, host: str, port: int, certificate: Path, key: Path, *, drain_timeout_s: float
) -> AsyncIterator[int]:
    """Serves to whoever trusts the certificate, until the block ends; yields the port. Raises OSError."""
    identity = _Identity(certificate, key)
    credentials = grpc.dynamic_ssl_server_credentials(identity.configuration, identity.renew)
    server = grpc.aio.server()
    discovery.add_to(server)
    try:
        bound = server.add_secure_port(f"{host}:{port}", credentials)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {host}:{port}: is the port in use, and is it a certificate?") from error
    await server.start()
    try:
        yield bound
    finally:
        await server.stop(drain_timeout_s)
