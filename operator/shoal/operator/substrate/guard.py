"""The supervisor's end of the guardian (`guardian.py`)."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import sys
from pathlib import Path

from shoal.operator.substrate import guardian

MARKER_VARIABLE = "SHOAL_RUN_ID"
_END_TIMEOUT_S = 15.0


class Guard:
    """A running guardian. `close` ends it, and with it every process of the mesh and the run directory."""

    def __init__(self, process: asyncio.subprocess.Process, run_dir: Path, run_id: str) -> None:
        self._process = process
        self._run_dir = run_dir
        self.run_id = run_id
        """Value of MARKER_VARIABLE that every process of the mesh must carry."""

    @classmethod
    async def start(cls, run_dir: Path) -> Guard:
        """Starts a guardian for `run_dir`, which it will remove."""
        run_id = secrets.token_hex(8)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            guardian.__file__,
            str(run_dir),
            f"{MARKER_VARIABLE}={run_id}",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env={},
            start_new_session=True,
        )
        return cls(process, run_dir, run_id)

    def add(self, pgid: int) -> None:
        """Puts a process group under guard."""
        self._write(f"+{pgid}\n")

    def remove(self, pgid: int) -> None:
        """Its number may be somebody else's from now on."""
        self._write(f"-{pgid}\n")

    def _write(self, line: str) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        if self._process.returncode is None:
            stdin.write(line.encode())

    async def close(self) -> None:
        """Returns once nothing is left."""
        stdin = self._process.stdin
        assert stdin is not None
        stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), _END_TIMEOUT_S)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        # For a guardian that somebody killed: the folder at least can go without it.
        shutil.rmtree(self._run_dir, ignore_errors=True)
