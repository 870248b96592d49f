"""Reads the build files of images, as far as ours go."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
IMAGES: Final = ROOT / "images"
_INSTALL = re.compile(r"images/install (\S+) (/\S+)")


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """One image's."""

    name: str
    instructions: tuple[tuple[str, str], ...]
    """(keyword, the rest of it on one line), in order."""

    def all(self, keyword: str) -> list[str]:
        """What is said with that keyword."""
        return [rest for word, rest in self.instructions if word == keyword]

    @property
    def extra(self) -> str:
        """Which extra is installed."""
        return self._install()[0]

    @property
    def entrypoint(self) -> list[str]:
        """The command of a container that is given none."""
        [text] = self.all("ENTRYPOINT")
        command: list[str] = json.loads(text)
        return command

    def last_stage(self) -> list[tuple[str, str]]:
        """What makes the image itself."""
        start = max(index for index, (word, _) in enumerate(self.instructions) if word == "FROM")
        return list(self.instructions[start:])

    def _install(self) -> tuple[str, str]:
        [found] = [match for rest in self.all("RUN") for match in _INSTALL.findall(rest)]
        extra, folder = found
        return extra, folder


def read_dockerfiles() -> dict[str, Dockerfile]:
    """Name of the image -> its file."""
    return {path.name.removesuffix(".Dockerfile"): _read(path) for path in sorted(IMAGES.glob("*.Dockerfile"))}


def _read(path: Path) -> Dockerfile:
    text = path.read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    instructions = tuple((word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines))
    return Dockerfile(path.name.removesuffix(".Dockerfile"), instructions)
