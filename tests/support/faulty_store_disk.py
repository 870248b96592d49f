"""A registry's disk that fails, or dies, at a chosen call."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from shoal.lora_registry.store import Disk

Moment = Literal["before", "midst", "after"]


class Died(BaseException):
    """The process is gone: nothing that it would do afterwards happens."""


class FaultyDisk(Disk):
    """Call number `at` (from 1) fails with EIO, or dies, before, amidst or after what it does."""

    def __init__(self, at: int, moment: Moment, *, dies: bool) -> None:
        self._at = at
        self._moment = moment
        self._dies = dies
        self.num_calls = 0
        self.is_dead = False

    def make_folder(self, path: Path) -> None:
        self._do(lambda: super(FaultyDisk, self).make_folder(path))

    def write(self, path: Path, chunks: Iterable[bytes]) -> None:
        content = list(chunks)
        half = [part[: len(part) // 2] for part in content[:1]]
        whole = super().write
        self._do(lambda: whole(path, content), lambda: whole(path, half))

    def rename(self, source: Path, target: Path) -> None:
        self._do(lambda: super(FaultyDisk, self).rename(source, target))

    def sync(self, folder: Path) -> None:
        self._do(lambda: super(FaultyDisk, self).sync(folder))

    def remove(self, path: Path) -> None:
        def some() -> None:
            if path.is_dir():
                for each in sorted(path.iterdir())[:1]:
                    each.unlink()

        self._do(lambda: super(FaultyDisk, self).remove(path), some)

    def _do(self, call: Callable[[], None], part: Callable[[], None] = lambda: None) -> None:
        if self.is_dead:
            raise Died
        self.num_calls += 1
        if self.num_calls != self._at:
            call()
            return
        if self._moment == "midst":
            part()
        if self._moment == "after":
            call()
        self.is_dead = self._dies
        raise Died if self._dies else OSError(errno.EIO, "the disk failed")
