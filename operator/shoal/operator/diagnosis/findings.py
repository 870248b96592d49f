"""One thing that is wrong, or may be, or is fine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["problem", "warning", "unknown", "ok"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, and what was found."""

    check: str
    """One word or two: what was looked at."""
    verdict: Verdict
    message: str
    remedy: str = ""
    """What to do, for anything but `ok`."""
    likelihood: int = 0
    """0 to 100: how likely it is the cause of what people notice. Causes come before their effects."""
    service: str = ""
    """The InferenceService; empty: the cluster."""


def problem(check: str, likelihood: int, message: str, remedy: str) -> Finding:
    """Something does not work."""
    return Finding(check, "problem", message, remedy, likelihood)


def warning(check: str, likelihood: int, message: str, remedy: str) -> Finding:
    """It works, and may not tomorrow or not as well as it could."""
    return Finding(check, "warning", message, remedy, likelihood)


def unknown(check: str, message: str, remedy: str) -> Finding:
    """It could not be looked at."""
    return Finding(check, "unknown", message, remedy)


def ok(check: str, message: str) -> Finding:
    """It is as it should be."""
    return Finding(check, "ok", message)
