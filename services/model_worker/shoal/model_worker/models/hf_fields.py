"""Typed reads of a config.json's fields. A null counts as absent. All raise ModelConfigError naming the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal.model_worker.models.config import ModelConfigError

_REQUIRED: Any = object()


def integer(config: Mapping[str, Any], field: str, default: Any = _REQUIRED) -> Any:
    """An int, or the default."""
    return _typed(config, field, default, int, "an integer")


def number(config: Mapping[str, Any], field: str, default: Any = _REQUIRED) -> float:
    """An int or float, as a float."""
    return float(_typed(config, field, default, (int, float), "a number"))


def optional_number(config: Mapping[str, Any], field: str) -> float | None:
    """`number`, or None if there is none."""
    return None if config.get(field) is None else number(config, field)


def flag(config: Mapping[str, Any], field: str, default: bool = False) -> bool:
    """A bool."""
    value = config.get(field)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ModelConfigError(f"{field} must be true or false, not {value!r}")
    return value


def integers(config: Mapping[str, Any], field: str) -> list[int] | None:
    """A list of integers, or None if there is none."""
    value = config.get(field)
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise ModelConfigError(f"{field} must be a list of integers, not {value!r}")
    return value


def numbers(config: Mapping[str, Any], field: str) -> tuple[float, ...]:
    """A required list of numbers."""
    value = config.get(field)
    if value is None:
        raise ModelConfigError(f"{field} is missing")
    if not isinstance(value, list) or not all(type(item) in (int, float) for item in value):
        raise ModelConfigError(f"{field} must be a list of numbers, not {value!r}")
    return tuple(float(item) for item in value)


def _typed(config: Mapping[str, Any], field: str, default: Any, kinds: Any, noun: str) -> Any:
    value = config.get(field)
    if value is None:
        if default is _REQUIRED:
            raise ModelConfigError(f"{field} is missing")
        return default
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise ModelConfigError(f"{field} must be {noun}, not {value!r}")
    return value
