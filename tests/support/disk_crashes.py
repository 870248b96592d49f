"""Kills a process that writes a segment log, at a chosen call, and says what a restart finds. Run as a script.

Reads one JSON object a line, `{folder, workload, kill_at, moment, seed}`, and answers each with one: numbers of the
blocks acknowledged, checkpointed and found, those found with wrong bytes, what the folder takes, whether it was killed.
Each run is a fork of this process, which has no threads: some 20 ms instead of the time to start Python.
"""

from __future__ import annotations

import json
import os
import random
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shoal.kv_store.disk import DiskError, Gone, SegmentLog
from support.disk_faults import CAPACITY_BYTES, OPTIONS, SEGMENT_BYTES, KillingFiles, disk_bytes, key, payload, record


def open_log(folder: str, workload: str, files: KillingFiles | None = None) -> SegmentLog:
    """The log of a run; `reclaim` has room for a part of what is written."""
    capacity_bytes = capacity_of(workload)
    return SegmentLog(folder, capacity_bytes, SEGMENT_BYTES, io_timeout_s=20, options=OPTIONS, files=files)


def capacity_of(workload: str) -> int:
    """Bytes the folder may take."""
    return CAPACITY_BYTES // 4 if workload == "reclaim" else CAPACITY_BYTES


def run(command: dict[str, Any], tell: Callable[[str, int], None]) -> None:
    """Writes blocks, with checkpoints between, until it is killed or done."""
    log = open_log(command["folder"], command["workload"], KillingFiles(command["kill_at"], command["moment"]))
    order = random.Random(command["seed"])
    first = command.get("first", 0)
    num_blocks = 96 if command["workload"] == "reclaim" else 12
    acknowledged: list[int] = []
    for number in range(first, first + num_blocks):
        try:
            log.write(record(number, parent=number - 1 if order.random() < 0.5 else None)).result()
        except DiskError:
            continue
        tell("acknowledged", number)
        acknowledged.append(number)
        if number % 4 == 3 and log.checkpoint():
            for done in acknowledged:
                tell("synced", done)
            acknowledged.clear()
    log.close()
    tell("finished", 0)


def verify(command: dict[str, Any], tell: Callable[[str, int], None]) -> None:
    """Opens the log after the crash and reads everything it says it has."""
    log = open_log(command["folder"], command["workload"])
    numbers = {key(number): number for number in range(command.get("first", 0) + 100)}
    for metadata, location in log.replay():
        number = numbers[metadata.key]
        into = bytearray(metadata.payload_bytes)
        try:
            log.read(location, memoryview(into)).result()
        except Gone:  # reclaimed since
            continue
        except DiskError:
            tell("refused", number)
            continue
        tell("found" if bytes(into) == payload(number) else "wrong", number)
    log.close()
    tell("finished_verifying", 0)


def in_child(work: Callable[[dict[str, Any], Callable[[str, int], None]], None], command: dict[str, Any]) -> str:
    """Lines that `work` told, from a forked process, which may die at any moment."""
    receiver, sender = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(receiver)
            work(command, lambda what, number: (os.write(sender, f"{what} {number}\n".encode()), None)[1])
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(sender)
    with os.fdopen(receiver) as lines:
        told = lines.read()
    os.waitpid(pid, 0)
    return told


def main() -> None:
    """Answers commands until the input ends."""
    for line in sys.stdin:
        command = json.loads(line)
        answer: dict[str, list[int]] = {}
        for told in (in_child(run, command) + in_child(verify, command)).splitlines():
            what, _, number = told.partition(" ")
            answer.setdefault(what, []).append(int(number))
        sys.stdout.write(json.dumps(answer | {"disk_bytes": disk_bytes(Path(command["folder"]))}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
