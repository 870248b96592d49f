"""The run directory: everything a mesh writes, readable by its owner alone."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

# sun_path holds 108 bytes with its final zero; the longest socket name here is "/admin.sock".
_MAX_LENGTH = 107 - len("/admin.sock")


def create_run_dir() -> Path:
    """A fresh folder with mode 0700, under $XDG_RUNTIME_DIR if that is usable, else under the temporary folder."""
    places = [os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp"]  # noqa: S108  # mkdtemp makes it safe
    for place in places:
        if place and len(place) + len("/shoal-12345678") <= _MAX_LENGTH and os.access(place, os.W_OK | os.X_OK):
            return Path(tempfile.mkdtemp(prefix="shoal-", dir=place)).resolve()
    raise OSError(f"none of {', '.join(filter(None, places))} is a writable folder with a short enough name")


def write_files(run_dir: Path, files: Mapping[str, str]) -> None:
    """Writes a plan's files; folders are made as needed."""
    for name, text in files.items():
        path = run_dir / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text(text)


def replace_file(run_dir: Path, name: str, text: str) -> None:
    """Replaces a file at once: a reader, or Envoy's folder watch, sees the old content or the new, never half."""
    scratch = run_dir / f".{name.replace('/', '-')}.next"  # outside the watched folder, on the same file system
    scratch.write_text(text)
    scratch.replace(run_dir / name)
