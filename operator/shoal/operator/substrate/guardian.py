"""Cleans up after a mesh, also when its supervisor was killed. Run as a script, with nothing but the standard library.

    python -I -S guardian.py RUN_DIR MARKER   (standard input: a pipe from the supervisor)

The supervisor writes `+PGID` for each process group it starts and `-PGID` for each one that is gone. When the pipe
ends, which the kernel sees to however the supervisor died, the guardian kills those groups, then everything else that
carries MARKER in its environment (a grandchild in a session of its own), and removes RUN_DIR. It has a session of its
own and ignores the terminal's signals.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

_SWEEP_TIMEOUT_S = 10.0
_PROC = Path("/proc")


def main() -> None:
    """Reads until the pipe ends, then cleans up."""
    run_dir, marker = sys.argv[1], sys.argv[2]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        pgid = int(line[1:])
        if line[0] == "+":
            groups.add(pgid)
        else:
            groups.discard(pgid)
    for pgid in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pgid, signal.SIGKILL)
    sweep(marker.encode())
    shutil.rmtree(run_dir, ignore_errors=True)


def sweep(marker: bytes) -> None:
    """Kills all processes with `marker` in their environment until none is left."""
    deadline = time.monotonic() + _SWEEP_TIMEOUT_S
    while (found := find_marked(marker)) and time.monotonic() < deadline:
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def find_marked(marker: bytes) -> list[int]:
    """Processes of this user that carry `marker`. Zombies have none; without /proc nothing is found."""
    found = []
    for entry in _PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(entry.name) != os.getpid() and marker in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


if __name__ == "__main__":
    main()
