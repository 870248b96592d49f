"""Endpoint strings: `host:port`, `http://host:port` or `https://host[:port]`."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from shoal.rpc.errors import InvalidArgument

_DEFAULT_PORTS = {"http": 80, "https": 443}
_EXPECTED = "give host:port, http://host:port or https://host:port"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a gateway listens."""

    host: str
    port: int
    tls: bool

    @property
    def target(self) -> str:
        """What gRPC dials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine. Then no proxy of the environment may carry the calls."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def url(self) -> str:
        """The base URL of the OpenAI-compatible HTTP API (append `/v1/...`)."""
        return f"{'https' if self.tls else 'http'}://{self.target}"


def parse_endpoint(text: str) -> Endpoint:
    """Reads an endpoint; without a scheme it is plaintext. Raises InvalidArgument saying what is wrong."""
    scheme, separator, _ = text.partition("://")
    if separator and scheme not in _DEFAULT_PORTS:
        raise InvalidArgument("endpoint", f"scheme {scheme!r} in {text!r} is not known; {_EXPECTED}")
    try:
        parts = urlsplit(text if separator else f"http://{text}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidArgument("endpoint", f"{text!r}: {error}; {_EXPECTED}") from error
    if not host or parts.path.strip("/") or parts.query or parts.fragment or parts.username:
        raise InvalidArgument("endpoint", f"{text!r} is not an address of a gateway; {_EXPECTED}")
    if port is None:
        if not separator:
            raise InvalidArgument("endpoint", f"{text!r} has no port; {_EXPECTED}")
        port = _DEFAULT_PORTS[parts.scheme]
    return Endpoint(host, port, tls=parts.scheme == "https")
