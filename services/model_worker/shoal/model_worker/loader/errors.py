"""What can go wrong with a checkpoint."""

from __future__ import annotations

from pathlib import Path


class ModelLoadError(Exception):
    """A checkpoint that cannot be used: which file, what is wrong (with offsets or names), and what would do."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem
