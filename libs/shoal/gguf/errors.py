"""What can be wrong with a GGUF file."""

from __future__ import annotations

from pathlib import Path


class GgufError(Exception):
    """A file that is not GGUF, of a kind that is not supported, or damaged. Each reader's caller translates it."""

    def __init__(self, path: Path, problem: str, offset: int | None = None) -> None:
        super().__init__(path, problem, offset)
        self.path = path
        self.problem = problem
        """Continues the sentence that the path begins: "is truncated: ..."."""
        self.offset = offset
        """The byte of the file where the reader stood; None when it never was in the file."""

    @property
    def located_problem(self) -> str:
        """The problem with its offset, without the path."""
        return self.problem if self.offset is None else f"{self.problem} (at byte {self.offset})"

    def __str__(self) -> str:
        return f"{self.path}: {self.located_problem}"
