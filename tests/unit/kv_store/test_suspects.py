"""Blocks that a client could not verify are looked at beside the store's thread, and only so many."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.checksum import crc32c
from shoal.kv_store import checking, control
from shoal.kv_store.checking import check_suspects
from support.eventually import eventually
from support.kv_store_core import Core, open_core, payloads
from support.kv_store_running import key

NUMBERS = range(1, 25)
PACKED = b"".join(map(key, NUMBERS))


@pytest.fixture
async def core() -> AsyncIterator[Core]:
    async with asyncio.timeout(20), open_core(num_blocks=128) as core:
        yield core


def flip(core: Core, number: int) -> None:
    index = core.store.index
    core.store.arena.view(index.slot[index.find(key(number))], 8)[3] ^= 1


async def test_the_store_answers_while_suspects_are_looked_at(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    await core.put(*NUMBERS)
    flip(core, 20)
    goes_on, num_sums = threading.Event(), [0]
    real = crc32c

    def slow(view: memoryview) -> int:
        num_sums[0] += 1
        goes_on.wait(10)
        return real(view)

    monkeypatch.setattr(checking, "crc32c", slow)
    request = pb.ReleaseRequest(suspect_keys=PACKED)
    releasing = asyncio.create_task(core.control.release(request, core.session))
    await eventually(lambda: num_sums[0] == 1, "it has begun")
    assert core.lookup(*NUMBERS) == (24, 24), "others are answered meanwhile"
    assert num_sums[0] == 1, "one at a time, so that copies have their turn"
    goes_on.set()
    assert (await releasing).num_removed == 1
    assert core.lookup(*NUMBERS) == (19, 19)
    assert core.read(*NUMBERS) == payloads(NUMBERS[:19])


async def test_one_call_names_only_so_many(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MAX_SUSPECTS", 3)
    await core.put(*NUMBERS)
    flip(core, 4)
    assert (await core.control.release(pb.ReleaseRequest(suspect_keys=PACKED), core.session)).num_removed == 0
    assert (await core.control.release(pb.ReleaseRequest(suspect_keys=key(4)), core.session)).num_removed == 1


async def test_a_client_that_leaves_ends_it(core: Core) -> None:
    await core.put(*NUMBERS)
    flip(core, 1)
    with ThreadPoolExecutor(1) as readers:
        scope = core.session.scope
        assert await check_suspects(core.store, readers, scope, [key(1)], lambda: True) == 0
        assert await check_suspects(core.store, readers, scope, [key(1)]) == 1


async def test_a_block_that_moves_or_goes_meanwhile_is_left_alone(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    await core.put(1, 2)
    goes_on, begun = threading.Event(), threading.Event()

    def wrong(view: memoryview) -> int:
        begun.set()
        goes_on.wait(10)
        return 12345

    monkeypatch.setattr(checking, "crc32c", wrong)
    releasing = asyncio.create_task(core.control.release(pb.ReleaseRequest(suspect_keys=key(2)), core.session))
    await asyncio.to_thread(begun.wait, 10)
    core.store.removal.evict(core.session.scope, [key(2)])
    await core.put(2, parent=key(1))  # the same slot, another generation
    goes_on.set()
    assert (await releasing).num_removed == 0
    assert core.read(1, 2) == payloads((1, 2))
    assert core.lookup(1, 2) == (2, 2)
