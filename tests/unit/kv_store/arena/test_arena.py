"""The arena takes what it was given, and not a byte more."""

from __future__ import annotations

import os
import random

import pytest

from shoal.kv_store.arena import Arena, HugePages, arena
from shoal.kv_store.arena.chunk import Chunk

MIB = 1 << 20


def fill(space: Arena, tenant: str, block_bytes: int) -> list[int]:
    pool, slots = space.pool(tenant, block_bytes), []
    while (slot := space.allocate(pool)) is not None:
        slots.append(slot)
    return slots


def num_file_bytes(space: Arena) -> int:
    return sum(os.fstat(chunk.memory.fd).st_size for chunk in space._chunks.values())


@pytest.mark.parametrize(
    ("capacity_bytes", "chunk_bytes", "block_bytes", "num_blocks"),
    [
        (8 * MIB, MIB, 8192, 8 * 128 - 4),
        (8 * MIB, MIB, 4096, 8 * 256 - 8),
        (8 * MIB, 8 * MIB, 2 * MIB, 3),
        (64 * MIB, 16 * MIB, 2 * MIB, 31),
        (MIB, MIB, 4096, 255),
    ],
)
def test_generations_are_in_the_capacity(
    capacity_bytes: int, chunk_bytes: int, block_bytes: int, num_blocks: int
) -> None:
    space = Arena(capacity_bytes, chunk_bytes, "off")
    assert len(set(fill(space, "a", block_bytes))) == num_blocks
    assert num_file_bytes(space) == space.num_taken_bytes <= capacity_bytes
    space.close()


def test_pages_from_the_pool_are_counted_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_pool(number: int, num_slots: int, slot_bytes: int, huge_pages: HugePages) -> Chunk:
        chunk = Chunk(number, num_slots, slot_bytes, "off")
        chunk.memory.num_bytes = -(-chunk.memory.num_bytes // (2 * MIB)) * 2 * MIB
        return chunk

    monkeypatch.setattr(arena, "Chunk", without_pool)
    space = Arena(64 * MIB, 16 * MIB, "reserved")
    assert len(fill(space, "a", 2 * MIB)) == 8 + 8 + 8 + 4
    assert space.num_taken_bytes == 3 * 18 * MIB + 10 * MIB
    space.close()


def test_a_block_that_can_never_fit_is_refused() -> None:
    space = Arena(2 * MIB, 2 * MIB, "off")
    with pytest.raises(ValueError, match="pages included"):
        space.pool("a", 2 * MIB)


def test_memory_that_goes_round_is_counted_right() -> None:
    """Chunks of all sizes come and go, and are held by clients for a while; the files never exceed the capacity."""
    order, space = random.Random(3), Arena(4 * MIB, MIB // 2, "off")
    mapped: list[tuple[int, int]] = []
    for _ in range(300):
        pool = space.pool(order.choice("abc"), order.choice([4096, 8192, 65536, MIB // 2]))
        slots = [slot for _ in range(order.randrange(1, 70)) if (slot := space.allocate(pool)) is not None]
        assert space.num_taken_bytes <= 4 * MIB
        for slot in slots:
            space.free(pool, slot)
        for chunk in space.chunks_by_use(pool):
            if order.random() < 0.7:
                num_mappers, num_bytes = order.randrange(3), chunk.memory.num_bytes
                space.retire(pool, chunk, num_mappers)
                mapped += [(chunk.number, num_bytes)] * num_mappers
        while mapped and order.random() < 0.8:
            space.unmapped(mapped.pop(order.randrange(len(mapped)))[0])
        held = dict(mapped)
        assert space.num_taken_bytes == num_file_bytes(space) + sum(held.values())
    space.unmapped(12345)
    space.close()
    assert not num_file_bytes(space)
