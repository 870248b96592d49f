"""Looks again at blocks in memory, on the copy threads, while the store serves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from enum import Enum

from shoal.checksum import crc32c
from shoal.kv_store.index import NO_SLOT
from shoal.kv_store.scopes import Scope
from shoal.kv_store.store import Store


class Finding(Enum):
    """What looking at a block in memory came to."""

    VERIFIED = "verified"
    WRONG = "wrong"
    """The bytes were not those that were committed; the block is gone, with all that followed it."""
    UNREAD = "unread"
    """It was moved or left memory meanwhile."""


async def check_block(store: Store, readers: Executor, row: int, scope: Scope) -> Finding:
    """Sums a block that is in memory. Without a lease, as clients read: what has the same generation before and after
    was not touched in between. A wrong one goes, whoever holds it.
    """
    arena, slot = store.arena, store.index.slot[row]
    chunk, generation = arena.chunk(slot), arena.generation(slot)
    view = arena.view(slot, scope.block_bytes)  # keeps the memory mapped, whatever becomes of the chunk
    checksum = await asyncio.get_running_loop().run_in_executor(readers, crc32c, view)
    del view
    kept = arena.chunk_numbered(chunk.number) is chunk and arena.generation(slot) == generation
    if not kept or store.index.slot[row] != slot:
        return Finding.UNREAD
    if checksum == store.index.checksum[row]:
        return Finding.VERIFIED
    store.removal.remove_wrong(row)
    return Finding.WRONG


async def check_suspects(
    store: Store, readers: Executor, scope: Scope, keys: Sequence[bytes], is_over: Callable[[], bool] = lambda: False
) -> int:
    """Looks at blocks that a reader could not verify, one at a time, so that others' copies have their turn; how many
    were wrong. `is_over` ends it early.
    """
    index, num_wrong = store.index, 0
    for key in keys:
        if is_over():
            break
        row = index.find(key)
        if row and index.scope[row] == scope.number and index.slot[row] != NO_SLOT:
            num_wrong += await check_block(store, readers, row, scope) is Finding.WRONG
    return num_wrong
