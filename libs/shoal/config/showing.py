"""Prints configuration without giving secrets away."""

from __future__ import annotations

import dataclasses
from typing import Any

_MASK = "***"


def describe(config: Any) -> dict[str, Any]:
    """Every setting of a configuration dataclass by name; secrets that are set show as ***."""
    return {
        field.name: _MASK
        if field.metadata.get("secret") and getattr(config, field.name)
        else getattr(config, field.name)
        for field in dataclasses.fields(config)
    }
