"""Takes no more blocks and writes those in memory to the disk, before a node goes away for example."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Final

import numpy as np

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.kv_store.disk_tier import DiskTier
from shoal.kv_store.index import NO_SLOT
from shoal.kv_store.scopes import Scope
from shoal.kv_store.store import Store

DEFAULT_TIMEOUT_S: Final = 60.0
REPORT_S: Final = 0.5
_STEP_S: Final = 0.02


async def drain_store(store: Store, timeout_s: float) -> AsyncIterator[pb.DrainResponse]:
    """Progress about twice a second, and at the end; the store takes no blocks from here on.

    Waits for what clients have reserved, and offers every block in memory to the disk until it is there, the disk is
    out of service or the time is over. Ends with a checkpoint, so that a power cut loses nothing of it.
    """
    store.draining = True
    deadline_s = time.monotonic() + (timeout_s or DEFAULT_TIMEOUT_S)
    reported_s = 0.0
    while True:
        waiting = _unwritten(store)
        scopes = {scope.number for scope in store.scopes.of_tenant("") if _has_room_on_disk(store, scope)}
        writable = [row for row in waiting if store.index.scope[row] in scopes]
        now_s = time.monotonic()
        response = pb.DrainResponse(num_unwritten=len(waiting), num_reserved=len(store.writing))
        disk = store.disk
        is_busy = bool(writable or response.num_reserved or (disk is not None and disk.num_waiting))
        if not is_busy or disk is None or disk.problem or now_s >= deadline_s:
            response.problem = _problem(store, len(waiting), bool(writable))
            break
        if not disk.num_waiting:
            for row in _in_order(store, writable):
                disk.write(row, store.scopes.numbered(store.index.scope[row]))
        if now_s - reported_s >= REPORT_S:
            reported_s = now_s
            yield response
        await asyncio.sleep(_STEP_S)
    if store.disk is not None and not await _checkpoint(store.disk, deadline_s - time.monotonic()):
        response.problem = response.problem or "the disk took no checkpoint: a power cut may lose the latest blocks"
    response.done = True
    yield response


async def _checkpoint(disk: DiskTier, timeout_s: float) -> bool:
    """One that takes longer goes on, and may still succeed."""
    if timeout_s <= 0:
        return False
    checkpoint = asyncio.ensure_future(asyncio.to_thread(disk.checkpoint))
    done, _ = await asyncio.wait([checkpoint], timeout=timeout_s)
    return bool(done) and checkpoint.result()


def _unwritten(store: Store) -> list[int]:
    """Blocks in memory that are not on disk."""
    index = store.index
    in_memory = np.frombuffer(index.slot, np.uint64) != NO_SLOT
    rows: list[int] = np.flatnonzero(in_memory & (np.frombuffer(index.on_disk, np.uint8) == 0)).tolist()
    return rows


def _has_room_on_disk(store: Store, scope: Scope) -> bool:
    return store.disk is not None and store.disk.is_within_quota(scope)


def _in_order(store: Store, rows: list[int]) -> Iterator[int]:
    """Parents before children: nothing is written before its parent is at least on its way."""
    index, left = store.index, set(rows)
    for row in rows:
        if row in left and index.parent[row] not in left:
            for each in index.subtree(row):
                if each in left:
                    left.discard(each)
                    yield each


def _problem(store: Store, num_left: int, is_late: bool) -> str:
    if not num_left:
        return ""
    if store.disk is None:
        reason = "there is no disk tier"
    else:
        reason = store.disk.problem or ("the time is over" if is_late else "their tenants' room on disk is used up")
    return f"{num_left} blocks are in memory only: {reason}"
