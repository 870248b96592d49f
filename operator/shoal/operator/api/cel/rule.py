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

    @property
    def is_about_spec(self) -> bool:
        """Whether it can stand at `spec`: there it is left out of account while the spec stays as it is, so that the
        status of an object that was stored under other rules can be written."""
        return "self.metadata" not in self.expression + self.message

    def as_schema(self) -> dict[str, Any]:
        """As in `x-kubernetes-validations`: of `spec` if it can stand there, otherwise of the whole."""
        # The fallback is for an expression that fails, which none should.
        schema = {
            "rule": self.expression,
            "messageExpression": self.message,
            "message": f"{self.field} is not possible",
        }
        field = self.field
        if self.is_about_spec:
            schema |= {name: schema[name].replace("self.spec.", "self.") for name in ("rule", "messageExpression")}
            field = field.removeprefix("spec.")
        return schema | ({"fieldPath": f".{field}"} if field else {})


def given(path: str) -> str:
    """Whether `spec.a.b` is there; what encloses it may be left out too."""
    parts = path.split(".")
    return " && ".join(f"has(self.{'.'.join(parts[:count])})" for count in range(2, len(parts) + 1))
