"""How much may wait, for how long, and what each tenant is entitled to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from shoal.config import ConfigError

MIN_WEIGHT: Final = 0.01
MAX_WEIGHT: Final = 1000.0


@dataclass(frozen=True, slots=True)
class TenantPolicy:
    """One tenant's part."""

    weight: float = 1.0
    """Its share while several tenants wait, in relation to the others' weights."""
    max_requests: int = 1 << 20
    """Requests that may wait."""
    max_tokens: int = 1 << 40
    """Prompt tokens that may wait."""


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Of one gateway, for one model."""

    max_requests: int = 4096
    max_tokens: int = 16 << 20
    """Prompt tokens. Each is some 8 bytes of this process while it waits."""
    max_age_s: float = 60.0
    priority_step_s: float = 5.0
    """One step of priority is worth so many seconds of waiting: 0 ignores priorities."""
    default_tenant: TenantPolicy = TenantPolicy()
    tenants: Mapping[str, TenantPolicy] = field(default_factory=dict)
    """Those that differ."""

    def of(self, tenant: str) -> TenantPolicy:
        """What `tenant` is entitled to."""
        return self.tenants.get(tenant, self.default_tenant)


def tenant_policies(default: TenantPolicy, weights: str, max_requests: str, max_tokens: str) -> dict[str, TenantPolicy]:
    """From three settings of the form `name=value,name=value`. Raises ConfigError naming the setting and the part."""
    policies: dict[str, TenantPolicy] = {}
    for setting, text, name, convert, low, high in (
        ("tenant_weights", weights, "weight", float, MIN_WEIGHT, MAX_WEIGHT),
        ("tenant_max_queued_requests", max_requests, "max_requests", int, 1, 1 << 20),
        ("tenant_max_queued_tokens", max_tokens, "max_tokens", int, 1, 1 << 40),
    ):
        for tenant, value in _parse(setting, text, convert, low, high).items():
            changed: Any = {name: value}
            policies[tenant] = replace(policies.get(tenant, default), **changed)
    return policies


def _parse(setting: str, text: str, convert: Callable[[str], float], low: float, high: float) -> dict[str, float]:
    values: dict[str, float] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        tenant, equals, given = part.rpartition("=")
        try:
            value = convert(given)
        except ValueError:
            equals, value = "", 0
        if not equals or not tenant or not low <= value <= high:
            kind = "a whole number" if convert is int else "a number"
            raise ConfigError(f"{setting}: {part!r} is not name=value with {kind} from {low:g} to {high:g}")
        if tenant in values:
            raise ConfigError(f"{setting}: {tenant!r} is given twice")
        values[tenant] = value
    return values
