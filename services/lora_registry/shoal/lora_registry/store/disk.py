"""Every call that changes the disk, so that tests can fail or die at each of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path


class Disk:
    """The real one. Each method is durable when it returns, but for entries of folders: those are after `sync`."""

    def make_folder(self, path: Path) -> None:
        """For this user alone. Does nothing when it is there."""
        path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(self, path: Path, chunks: Iterable[bytes]) -> None:
        """A file that was not there."""
        with path.open("xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())

    def rename(self, source: Path, target: Path) -> None:
        """At once: others see the one or the other. A file takes the place of a file."""
        source.rename(target)

    def sync(self, folder: Path) -> None:
        """Makes entries of a folder durable."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove(self, path: Path) -> None:
        """A file or a folder with all that is in it; nothing when there is none."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
