"""Loads of KV blocks that stop where a test wants to do something, in another process: FAULT is `before FOLDER` or
`amid FOLDER`. The file `paused` says that a load has stopped, the file `go` lets it go on."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from shoal.kv_client import KvClient, Lease
from shoal.model_worker.kv_offload.memory import Loaded
from shoal.model_worker.runner.cpu_kv_memory import CpuKvMemory

_MAX_PAUSE_S = 20.0


def _pause(folder: Path) -> None:
    (folder / "paused").touch()
    end_s = time.monotonic() + _MAX_PAUSE_S
    while not (folder / "go").exists() and time.monotonic() < end_s:
        time.sleep(0.002)  # between processes there is nothing else to wait for here


def pause_before(folder: Path) -> None:
    """Before the store is asked for leases."""
    view = KvClient.view

    def paused(self: KvClient, keys: Sequence[bytes], **rest: Any) -> Lease:
        _pause(folder)
        return view(self, keys, **rest)

    KvClient.view = paused  # type: ignore[method-assign]


def pause_amid(folder: Path) -> None:
    """When a third of the blocks of a load is there."""
    load = CpuKvMemory.load

    def paused(
        self: CpuKvMemory, lease: Lease, block_ids: Sequence[int], mark: object
    ) -> Generator[Loaded, None, None]:
        steps = load(self, lease, block_ids, mark)
        yield from itertools.islice(steps, len(block_ids) // 3)
        _pause(folder)
        yield from steps

    CpuKvMemory.load = paused  # type: ignore[method-assign]


PAUSES: dict[str, Callable[[Path], None]] = {"before": pause_before, "amid": pause_amid}
