"""How far a starting process is, by its own account: the lines of its log with the event `loading`.

    {"event": "loading", "stage": "weights", "percent": 40, ...}

Any process may write such lines; the operator needs to know nothing else about it. Other lines are passed over.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

_MAX_READ_BYTES = 64 << 10
"""Only the latest line counts, so a flood of others need not be read."""


@dataclass(frozen=True, slots=True)
class Loading:
    """What a process is busy with before it can serve."""

    stage: str
    fraction: float | None
    """In [0, 1], of the stage."""


class _Line(msgspec.Struct):
    event: str
    stage: str
    percent: float | None = None


_decoder = msgspec.json.Decoder(_Line)


class LoadingLog:
    """Reads what is added to a log from the time this object is made."""

    def __init__(self, log_path: Path) -> None:
        self._path = log_path
        self._offset = log_path.stat().st_size if log_path.exists() else 0

    def read(self) -> Loading | None:
        """The latest word since the last call. None when there was none; never raises for what the log contains."""
        try:
            added = self._read_added()
        except OSError:
            return None
        found = (_parse(line) for line in reversed(added.splitlines()) if b'"loading"' in line)
        return next((loading for loading in found if loading is not None), None)

    def _read_added(self) -> bytes:
        """Whole lines only: half a line is left for the next call."""
        with self._path.open("rb") as log:
            size_bytes = os.fstat(log.fileno()).st_size
            if size_bytes < self._offset:  # cut because it grew too large
                self._offset = 0
            self._offset = max(self._offset, size_bytes - _MAX_READ_BYTES)
            log.seek(self._offset)
            added = log.read(_MAX_READ_BYTES)
        added = added[: added.rfind(b"\n") + 1]
        self._offset += len(added)
        return added


def _parse(line: bytes) -> Loading | None:
    try:
        said = _decoder.decode(line)
    except msgspec.DecodeError:
        return None
    if said.event != "loading":
        return None
    fraction = None if said.percent is None else min(max(said.percent / 100, 0.0), 1.0)
    return Loading(said.stage, fraction)
