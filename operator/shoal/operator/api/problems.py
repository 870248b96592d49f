"""What is wrong with a manifest, said so that its author can fix it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to fix."""

    path: str
    """The field, such as `spec.workers.replicas`; empty for the whole document."""
    message: str
    """What was given and what is allowed."""
    line: int | None = None
    """Where it stands in the file, from 1."""

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line is not None else ""
        return f"{where}{self.path}: {self.message}" if self.path else f"{where}{self.message}"


class ManifestError(Exception):
    """The manifest cannot be used. `problems` holds at least one entry, in the order of the file."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__("\n  ".join([f"{source}: {count}", *map(str, self.problems)]))
