"""Tenants: how they prove who they are, what they may ask for, and how much room they get."""

from __future__ import annotations

import hmac
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from shoal.rpc.errors import PermissionDenied, Unauthenticated

OPERATOR: Final = "*"
"""The name in a tenants file for whoever may see everything."""
_FIELDS: Final = frozenset({"token_sha256", "memory_bytes", "disk_bytes"})


class TenantsProblem(Exception):
    """A tenants file that cannot be used."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks without a session."""

    tenant: str
    """The only tenant whose blocks they may see; empty for all."""

    def restrict(self, tenant: str) -> str:
        """The tenant that a request is about: the one it names, else the caller's. Raises PermissionDenied."""
        if self.tenant and tenant and tenant != self.tenant:
            raise PermissionDenied("tenant: not the one of the token")
        return tenant or self.tenant

    def require_operator(self) -> None:
        """Raises PermissionDenied for a tenant."""
        if self.tenant:
            raise PermissionDenied("this concerns every tenant: give the operator's token")


@dataclass(frozen=True, slots=True)
class Tenant:
    """What a tenants file says of one."""

    token_digest: str
    memory_bytes: int | None = None
    """Most memory of its blocks; None for what all tenants get."""
    disk_bytes: int | None = None
    """Most disk of its blocks; None for what all tenants get."""


@dataclass(frozen=True, slots=True)
class Tenants:
    """Everybody in a tenants file. Without a file whoever reaches the store may be anybody."""

    known: Mapping[str, Tenant] | None = None
    memory_bytes: int = 1 << 62
    """Most memory of a tenant of whom nothing else is said."""
    disk_bytes: int = 1 << 62
    """Most disk of a tenant of whom nothing else is said."""
    _by_digest: dict[str, str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._by_digest.update({tenant.token_digest: name for name, tenant in (self.known or {}).items()})

    def check(self, tenant: str, token: str) -> None:
        """Raises PermissionDenied when the token is not the tenant's own."""
        if self.known is None:
            return
        known = self.known.get(tenant)
        if tenant == OPERATOR or known is None or not hmac.compare_digest(_digest(token), known.token_digest):
            raise PermissionDenied("token: not the one of scope.tenant")

    def identify(self, token: str | None) -> Caller:
        """Whose token that is. Raises Unauthenticated."""
        if self.known is None:
            return Caller("")
        if token is None:
            raise Unauthenticated("this store asks for a token: authorization: Bearer TOKEN in the metadata")
        name = self._by_digest.get(_digest(token))  # of the digest, whose timing tells nothing about a token
        if name is None:
            raise Unauthenticated("the token is nobody's")
        return Caller("" if name == OPERATOR else name)

    def memory_quota(self, tenant: str) -> int:
        """Most bytes of memory of a tenant's blocks."""
        known = (self.known or {}).get(tenant)
        return self.memory_bytes if known is None or known.memory_bytes is None else known.memory_bytes

    def disk_quota(self, tenant: str) -> int:
        """Most bytes of disk of a tenant's blocks."""
        known = (self.known or {}).get(tenant)
        return self.disk_bytes if known is None or known.disk_bytes is None else known.disk_bytes


def read_tenants(path: str, memory_bytes: int, disk_bytes: int) -> Tenants:
    """The tenants of a TOML file, a table each; without a path, nobody in particular. Raises TenantsProblem."""
    if not path:
        return Tenants(None, memory_bytes, disk_bytes)
    try:
        tables = tomllib.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise TenantsProblem(f"tenants_file: {error}") from error
    known = {name: _read_tenant(name, table) for name, table in tables.items()}
    if len({tenant.token_digest for tenant in known.values()}) < len(known):
        raise TenantsProblem("tenants_file: two tenants have the same token")
    return Tenants(known, memory_bytes, disk_bytes)


def _read_tenant(name: str, table: Any) -> Tenant:
    if not isinstance(table, dict) or not table.keys() <= _FIELDS:
        raise TenantsProblem(f"tenants_file: [{name}] has {', '.join(sorted(_FIELDS))}, and nothing else")
    digest = table.get("token_sha256")
    if not isinstance(digest, str) or len(digest) != 64 or set(digest.lower()) - set("0123456789abcdef"):
        raise TenantsProblem(f"tenants_file: {name}.token_sha256 is the sha256 of a token, 64 hexadecimal digits")
    sizes = {size: table.get(size) for size in ("memory_bytes", "disk_bytes")}
    for size, num_bytes in sizes.items():
        if num_bytes is not None and (not isinstance(num_bytes, int) or num_bytes < 0):
            raise TenantsProblem(f"tenants_file: {name}.{size} is a number of bytes, 0 or more")
    return Tenant(digest.lower(), **sizes)


def _digest(token: str) -> str:
    return sha256(token.encode()).hexdigest()
