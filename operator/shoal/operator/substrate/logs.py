"""Keeps the logs of a long run small, and reads them.

Processes write straight to their files, so that nobody stands between a process and its last words. All files are open
for appending, Envoy's access log too: one that grew too large is copied aside and cut to nothing under its writer, who
goes on at the start of the file (the copytruncate of logrotate). A line that is written in the microseconds between the
end of the copy and the cut is lost; in exchange there is no pipe that could fill up and stop a process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

_TAIL_BYTES = 8 << 10
_TAIL_LINES = 20
_COPY_BYTES = 1 << 20


def open_log(log_path: Path) -> BinaryIO:
    """For a process's output: appends, wherever the end of the file is at the time."""
    return log_path.open("ab")


def previous_log(log_path: Path) -> Path:
    """Where the lines before those in `log_path` are, if there were too many for one file."""
    return log_path.with_name(f"{log_path.name}.1")


async def keep_logs_bounded(log_paths: Sequence[Path], max_bytes: int, interval_s: float) -> None:
    """Runs until cancelled. Each log and its predecessor stay at `max_bytes`, plus what is written in `interval_s`.

    It copies in the event loop: ten MiB take milliseconds, and the supervisor is not on the way of any token.
    """
    while True:
        for path in log_paths:
            bound_log(path, max_bytes)
        await asyncio.sleep(interval_s)


def bound_log(log_path: Path, max_bytes: int) -> bool:
    """Moves the content of a log of more than `max_bytes` to its predecessor, the last `max_bytes` of it at least.

    Returns whether it did. When the predecessor cannot be written (a full disk), the lines are dropped: the log is cut
    in any case. A log that cannot be opened is left alone.
    """
    with contextlib.suppress(OSError), log_path.open("r+b") as log:
        size_bytes = os.fstat(log.fileno()).st_size
        if size_bytes <= max_bytes:
            return False
        previous = previous_log(log_path)
        try:
            log.seek(size_bytes - max_bytes)
            _copy(log, previous, at_most_bytes=2 * max_bytes)
        except OSError:
            previous.unlink(missing_ok=True)
        log.truncate(0)
        return True
    return False


def _copy(log: BinaryIO, target: Path, *, at_most_bytes: int) -> None:
    """To the end of the log, which its writer may be moving; but not forever."""
    left_bytes = at_most_bytes
    with target.open("wb", buffering=0) as file:
        while part := log.read(min(_COPY_BYTES, left_bytes)):
            file.write(part)
            left_bytes -= len(part)


def read_tail(log_path: Path) -> str:
    """The last lines of a log, and of its predecessor when it was cut a moment ago."""
    end = _read_end(log_path)
    if len(end) < _TAIL_BYTES:
        end = _read_end(previous_log(log_path)) + end
    return "\n".join(end[-_TAIL_BYTES:].decode(errors="replace").splitlines()[-_TAIL_LINES:])


def _read_end(path: Path) -> bytes:
    try:
        with path.open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - _TAIL_BYTES))
            return log.read(_TAIL_BYTES)
    except OSError:
        return b""
