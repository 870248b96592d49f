"""One rule of the CustomResourceDefinition's schema, in CEL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Rule:
    """One validation rule of the schema."""

    expression: str
    """True for what is allowed."""
    message: str
    """A CEL expression of text, so that it can quote what was given."""
    field: str = ""
    """What it is about, below the object."""

    def as_schema(self) -> dict[str, Any]:
        """As in `x-kubernetes-validations`."""
        # The fallback is for an expression that fails, which none should.
        schema = {
            "rule": self.expression,
            "messageExpression": self.message,
            "message": f"{self.field} is not possible",
        }
        return schema | ({"fieldPath": f".{self.field}"} if self.field else {})


def given(path: str) -> str:
    """Whether `spec.a.b` is there; what encloses it may be left out too."""
    parts = path.split(".")
    return " && ".join(f"has(self.{'.'.join(parts[:count])})" for count in range(2, len(parts) + 1))
