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
from shoal.rpc.server import ServerOptions, connection_options

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
    discovery: DiscoveryServer, listening: ServerOptions, certificate: Path, key: Path
) -> AsyncIterator[int]:
    """Serves to whoever trusts the certificate, until the block ends; yields the port. Raises OSError."""
    identity, address = _Identity(certificate, key), f"{listening.host}:{listening.port}"
    credentials = grpc.dynamic_ssl_server_credentials(identity.configuration, identity.renew)
    server = grpc.aio.server(
        options=[("grpc.so_reuseport", 0), *connection_options(listening.keepalive_s)],
    )
    discovery.add_to(server)
    try:
        bound = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: is the port in use, and is it a certificate?") from error
    await server.start()
    try:
        yield bound
    finally:
        await server.stop(listening.drain_timeout_s)
