"""kill -9 at every call that changes the disk: what was acknowledged is there, all of it right, in bounded space."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import disk_crashes

MOMENTS = ("before", "midst", "after")
_TESTS = Path(__file__).parents[3]


class Crasher:
    """The process that forks the runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "log"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.disk_crashes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_TESTS,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(_TESTS), *sys.path]), "PYTHONSAFEPATH": ""},
        )

    def crash(self, workload: str, kill_at: int, moment: str, first: int = 0) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        command = {
            "folder": str(self.folder),
            "workload": workload,
            "kill_at": kill_at,
            "moment": moment,
            "seed": kill_at,
            "first": first,
        }
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        assert "finished_verifying" in answer, f"the restart did not end: {answer}"
        assert "wrong" not in answer
        assert "refused" not in answer, "recovery shows only what verifies"
        assert answer["disk_bytes"] <= disk_crashes.capacity_of(workload)
        return answer

    def close(self) -> None:
        self._process.communicate(timeout=30)


@pytest.fixture
def crasher(tmp_path: Path) -> Iterator[Crasher]:
    crasher = Crasher(tmp_path)
    yield crasher
    crasher.close()


@pytest.mark.parametrize("moment", MOMENTS)
def test_nothing_acknowledged_is_lost_wherever_the_process_dies(crasher: Crasher, moment: str) -> None:
    num_runs = 0
    for kill_at in itertools.count(1):
        answer = crasher.crash("write", kill_at, moment)
        assert set(answer.get("acknowledged", [])) <= set(answer.get("found", []))
        shutil.rmtree(crasher.folder)
        if "finished" in answer:
            break
        num_runs += 1
    assert num_runs >= 40, "there must be that many calls to die at"


@pytest.mark.parametrize("moment", MOMENTS)
def test_reclaiming_survives_any_death(crasher: Crasher, moment: str) -> None:
    """Old blocks go, so that only the latest must be there."""
    for kill_at in range(40, 340, 20):
        answer = crasher.crash("reclaim", kill_at, moment)
        assert set(answer["acknowledged"][-4:]) <= set(answer["found"])
        shutil.rmtree(crasher.folder)
        if "finished" in answer:
            break


def test_crash_after_crash_in_one_folder(crasher: Crasher) -> None:
    """Leftovers of 30 deaths are found, kept if they are blocks, and used again if not."""
    order = random.Random(5)
    acknowledged: set[int] = set()
    for first in range(0, 120, 4):
        answer = crasher.crash("write", order.randrange(1, 40), order.choice(MOMENTS), first)
        acknowledged.update(answer.get("acknowledged", []))
        assert acknowledged <= set(answer.get("found", []))
