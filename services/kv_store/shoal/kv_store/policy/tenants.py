"""One tier for several tenants: each has a policy of its own, and whoever is above their quota gives way first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from shoal.kv_store.policy.policy import IsEvictable, Policy


@dataclass(slots=True)
class _Tenant:
    policy: Policy
    sizes: dict[bytes, int]
    num_bytes: int = 0
    worth: float = 0.0
    """Bytes reused, losing half of its weight with every time as many bytes as are held are given up."""


class Tenants:
    """Policies by tenant. A chain belongs to one tenant, because keys are salted by tenant (shoal.blocks).

    While somebody is above their quota, the one furthest above, in proportion, gives up blocks. Otherwise it is the one
    whose bytes were reused least lately: unused guarantees do not lie idle.
    """

    def __init__(self, make: Callable[[], Policy], quotas: Mapping[str, int]) -> None:
        """quotas: bytes; a tenant without one has no guarantee, so it is above its quota with its first block."""
        self._make = make
        self._quotas = dict(quotas)
        self._tenants: dict[str, _Tenant] = {}

    def used_bytes(self, tenant: str) -> int:
        """Held by a tenant."""
        known = self._tenants.get(tenant)
        return 0 if known is None else known.num_bytes

    def touch(self, tenant: str, keys: Iterable[bytes]) -> None:
        """Blocks of a tenant were used."""
        known = self._tenants.get(tenant)
        if known is not None:
            held = [key for key in keys if key in known.sizes]
            known.policy.touch_all(held)
            known.worth += sum(known.sizes[key] for key in held)

    def admit(self, tenant: str, key: bytes, size: int, cost: float) -> bool:
        """See Policy."""
        return self._tenant(tenant).policy.admit(key, size, cost)

    def insert(self, tenant: str, key: bytes, size: int, cost: float, parent: bytes | None) -> None:
        """See Policy."""
        known = self._tenant(tenant)
        if key not in known.sizes:
            known.policy.insert(key, size, cost, parent)
            known.sizes[key] = size
            known.num_bytes += size

    def remove(self, tenant: str, key: bytes) -> None:
        """See Policy."""
        known = self._tenants.get(tenant)
        if known is not None and key in known.sizes:
            known.policy.remove(key)
            known.num_bytes -= known.sizes.pop(key)

    def victim(self, is_evictable: IsEvictable, only: str | None = None) -> tuple[str, bytes] | None:
        """(tenant, block to give up), which is forgotten at once; of one tenant if `only` names it."""
        names = sorted(self._tenants, key=self._precedence) if only is None else [only]
        for name in names:
            known = self._tenants.get(name)
            key = None if known is None else known.policy.victim(is_evictable)
            if known is not None and key is not None:
                size = known.sizes.pop(key)
                known.worth *= 1 - size / (2 * known.num_bytes)
                known.num_bytes -= size
                return name, key
        return None

    def _precedence(self, name: str) -> tuple[int, float]:
        known, quota = self._tenants[name], self._quotas.get(name, 0)
        if known.num_bytes > quota:
            return 0, quota / known.num_bytes
        return 1, known.worth / known.num_bytes if known.num_bytes else 0.0

    def _tenant(self, name: str) -> _Tenant:
        if name not in self._tenants:
            self._tenants[name] = _Tenant(self._make(), {})
        return self._tenants[name]
