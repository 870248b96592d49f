"""Scopes: a tenant's blocks of one fingerprint, which have one size, one pool and one policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from shoal.kv_store.arena import Arena, Pool
from shoal.kv_store.policy import Policy
from shoal.rpc.errors import InvalidArgument, ResourceExhausted

PolicyFactory = Callable[[int, int], Policy]
"""Makes the policy of a pool: (bytes that there is room for, bytes of a block)."""
MAX_SCOPES: Final = 65_000
"""A scope is a number of 16 bits in the index."""
MAX_TENANT_BYTES: Final = 128
MAX_FINGERPRINT_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Scope:
    """What may be exchanged for each other: blocks of equal scope and key."""

    number: int
    tenant: str
    fingerprint: bytes
    block_bytes: int
    pool: Pool
    policy: Policy


class Scopes:
    """Every scope that a session was opened for."""

    def __init__(self, arena: Arena, make_policy: PolicyFactory) -> None:
        self._arena = arena
        self._make_policy = make_policy
        self._by_name: dict[tuple[str, bytes], Scope] = {}
        self._by_number: list[Scope | None] = [None]
        self._policies: dict[Pool, Policy] = {}

    def find(self, tenant: str, fingerprint: bytes) -> Scope | None:
        """The scope, if any session was ever opened for it."""
        return self._by_name.get((tenant, fingerprint))

    def of_tenant(self, tenant: str) -> list[Scope]:
        """A tenant's scopes; all of them for an empty name."""
        return [scope for scope in self._by_name.values() if not tenant or scope.tenant == tenant]

    def policy(self, pool: Pool) -> Policy:
        """Of a pool that some scope has."""
        return self._policies[pool]

    def numbered(self, number: int) -> Scope:
        """Of a row of the index."""
        scope = self._by_number[number]
        if scope is None:
            raise LookupError(f"no scope {number}")
        return scope

    def open(self, tenant: str, fingerprint: bytes, block_bytes: int) -> Scope:
        """The scope, made if need be. Raises InvalidArgument, ResourceExhausted."""
        if not 1 <= len(tenant.encode()) <= MAX_TENANT_BYTES:
            raise InvalidArgument("scope.tenant", f"{len(tenant.encode())} bytes; give 1 to {MAX_TENANT_BYTES}")
        if not 1 <= len(fingerprint) <= MAX_FINGERPRINT_BYTES:
            raise InvalidArgument("scope.fingerprint", f"{len(fingerprint)} bytes; give 1 to {MAX_FINGERPRINT_BYTES}")
        known = self.find(tenant, fingerprint)
        if known is not None:
            if known.block_bytes != block_bytes:
                problem = f"{block_bytes} given, but blocks of this fingerprint have {known.block_bytes}"
                raise InvalidArgument("block_bytes", problem)
            return known
        if len(self._by_number) > MAX_SCOPES:
            raise ResourceExhausted(f"there are {MAX_SCOPES} tenants and fingerprints already", retry_after_s=60)
        try:
            pool = self._arena.pool(tenant, block_bytes)
        except ValueError as error:
            raise InvalidArgument("block_bytes", str(error)) from None
        policy = self._policies.get(pool)
        if policy is None:
            policy = self._policies[pool] = self._make_policy(self._arena.capacity_bytes, pool.slot_bytes)
        scope = Scope(len(self._by_number), tenant, fingerprint, block_bytes, pool, policy)
        self._by_name[tenant, fingerprint] = scope
        self._by_number.append(scope)
        return scope
