"""Who calls. A tenant's name decides which cached KV blocks its requests may share."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shoal.blocks import tenant_salt
from shoal.config import ConfigError
from shoal.rpc.errors import Unauthenticated

_LINE: Final = re.compile(r"([A-Za-z0-9._-]{1,64}):([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Tenant:
    """An authenticated caller."""

    name: str
    cache_salt: bytes
    """Equal salts share cached blocks."""


ANONYMOUS: Final = Tenant("", b"")


class Authenticator:
    """Maps `Authorization: Bearer KEY` to a tenant. Keys are known by their SHA-256 only and never logged."""

    def __init__(self, tenants_by_digest: dict[bytes, Tenant] | None = None) -> None:
        """None: no keys are set up, and everybody is the same anonymous tenant."""
        self._tenants = None if tenants_by_digest is None else list(tenants_by_digest.items())

    def authenticate(self, authorization: str | None) -> Tenant:
        """`authorization` is the header's value. Raises Unauthenticated.

        Every known digest is compared, in constant time, so that timing tells nothing about them.
        """
        if self._tenants is None:
            return ANONYMOUS
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthenticated("an API key is needed: send the header 'Authorization: Bearer YOUR_KEY'")
        digest = hashlib.sha256(key.strip().encode()).digest()
        found: Tenant | None = None
        for known, tenant in self._tenants:
            if hmac.compare_digest(known, digest):
                found = tenant
        if found is None:
            raise Unauthenticated("this API key is not known")
        return found


def load_authenticator(path: str) -> Authenticator:
    """Reads an API keys file, once; "" means no authentication. Raises ConfigError naming the line, not its key."""
    if not path:
        return Authenticator()
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"api_keys_file {path}: {error}") from error
    tenants: dict[bytes, Tenant] = {}
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            raise ConfigError(
                f"api_keys_file {path}, line {number}: expected tenant:sha256, a name of at most 64 characters from "
                "A-Z a-z 0-9 . _ - and 64 lower-case hexadecimal digits"
            )
        name, digest = match.groups()
        tenants[bytes.fromhex(digest)] = Tenant(name, tenant_salt(name))
    if not tenants:
        raise ConfigError(f"api_keys_file {path}: holds no key, so nobody could call; leave it unset for open access")
    return Authenticator(tenants)
