"""A disk in memory that forgets what was not synced when its power is cut."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from shoal.kv_store.disk.files import Files

PAGE_BYTES = 512
"""What is written atomically."""


@dataclass(eq=False)
class MemoryFile:
    """Content as programs see it, and what of it is on the platter."""

    data: bytearray = field(default_factory=bytearray)
    synced: bytearray = field(default_factory=bytearray)

    def after_power_cut(self, order: random.Random) -> MemoryFile:
        """Each page that differs is there or is not, whatever was written first."""
        data = bytearray(self.synced.ljust(len(self.data), b"\0"))
        for start in range(0, len(data), PAGE_BYTES):
            page = slice(start, start + PAGE_BYTES)
            if data[page] != self.data[page] and order.random() < 0.5:
                data[page] = self.data[page]
        return MemoryFile(data, bytearray(data))


class MemoryDisk(Files):
    """One folder. Each instance is one life of the machine; `freeze` ends it: later calls fail and change nothing."""

    def __init__(self, names: dict[str, MemoryFile] | None = None) -> None:
        self._lock = threading.Lock()
        self._names = dict(names or {})
        self._synced_names = dict(self._names)
        self._history: list[dict[str, MemoryFile]] = []
        self._open: dict[int, MemoryFile] = {}
        self._next_fd = 1000
        self._frozen = False

    def freeze(self) -> None:
        """The process, or the machine, is dead."""
        with self._lock:
            self._frozen = True

    def after_kill(self) -> Self:
        """The disk that the next process finds: everything that was written."""
        return self._reborn(
            {name: MemoryFile(bytearray(f.data), bytearray(f.synced)) for name, f in self._names.items()}
        )

    def after_power_cut(self, seed: int) -> Self:
        """The disk after a power cut: what was synced, and of the rest some. Names change in their order."""
        order = random.Random(seed)
        states = [self._synced_names, *self._history]
        names = states[order.randrange(len(states))]
        cut: dict[int, MemoryFile] = {}
        for file in names.values():
            cut.setdefault(id(file), file.after_power_cut(order))
        return self._reborn({name: cut[id(file)] for name, file in names.items()})

    def flip(self, seed: int) -> None:
        """Turns one bit of one file."""
        order = random.Random(seed)
        with self._lock:
            files = [file for _, file in sorted(self._names.items()) if any(file.data)]
            if files:
                file = order.choice(files)
                used = [start for start in range(0, len(file.data), 4096) if any(file.data[start : start + 4096])]
                position = min(order.choice(used) + order.randrange(400), len(file.data) - 1)
                file.data[position] ^= 1 << order.randrange(8)

    @property
    def num_bytes(self) -> int:
        """What all files take."""
        return sum(len(file.data) for file in self._names.values())

    @classmethod
    def _reborn(cls, names: dict[str, MemoryFile]) -> Self:
        return cls(names)

    def _enter(self) -> None:
        if self._frozen:
            raise OSError(5, "the machine is dead")

    def _change_names(self, change: dict[str, MemoryFile | None]) -> None:
        names = {**self._names, **change}
        self._names = {name: file for name, file in names.items() if file is not None}
        self._history.append(dict(self._names))

    def make_folder(self, path: Path) -> None:
        self._enter()

    def names(self, folder: Path) -> list[str]:
        self._enter()
        return list(self._names)

    def lock(self, path: Path) -> int:
        return self.open(path, create=True)

    def open(self, path: Path, *, create: bool = False, direct: bool = False) -> int:
        with self._lock:
            self._enter()
            if path.name not in self._names:
                if not create:
                    raise FileNotFoundError(2, "No such file")
                self._change_names({path.name: MemoryFile()})
            self._next_fd += 1
            self._open[self._next_fd] = self._names[path.name]
            return self._next_fd

    def close(self, fd: int) -> None:
        del self._open[fd]

    def size(self, fd: int) -> int:
        self._enter()
        return len(self._open[fd].data)

    def allocate(self, fd: int, num_bytes: int) -> None:
        with self._lock:
            self._enter()
            data = self._open[fd].data
            data.extend(bytes(max(0, num_bytes - len(data))))

    def pwritev(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        with self._lock:
            self._enter()
            written = b"".join(buffers)
            data = self._open[fd].data
            data.extend(bytes(max(0, offset - len(data))))
            data[offset : offset + len(written)] = written
            return len(written)

    def preadv(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        self._enter()
        done = 0
        for buffer in buffers:
            part = self._open[fd].data[offset + done : offset + done + len(buffer)]
            buffer[: len(part)] = part
            done += len(part)
        return done

    def fdatasync(self, fd: int) -> None:
        with self._lock:
            self._enter()
            file = self._open[fd]
            file.synced = bytearray(file.data)

    def rename(self, source: Path, target: Path) -> None:
        with self._lock:
            self._enter()
            self._change_names({target.name: self._names[source.name], source.name: None})

    def unlink(self, path: Path) -> None:
        with self._lock:
            self._enter()
            if path.name not in self._names:
                raise FileNotFoundError(2, os.strerror(2))
            self._change_names({path.name: None})

    def sync_folder(self, path: Path) -> None:
        with self._lock:
            self._enter()
            self._synced_names = dict(self._names)
            self._history.clear()
