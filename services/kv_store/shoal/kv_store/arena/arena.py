"""The arena: a fixed number of bytes, shared out in chunks among pools of one tenant and slot size each."""

from __future__ import annotations

from typing import NamedTuple

import structlog

from shoal.kv_store.arena.chunk import Chunk, chunk_file_bytes, most_slots
from shoal.kv_store.arena.memory import PAGE_BYTES, HugePages, round_up

_SLOT_BITS = 24
_MIN_SHARE = 8  # a chunk of less than an eighth is not worth a descriptor in every client
_log = structlog.get_logger("shoal.kv_store")


class SlotId(NamedTuple):
    """A place for one block."""

    chunk: int
    slot: int

    def packed(self) -> int:
        """As one number of 64 bits."""
        return self.chunk << _SLOT_BITS | self.slot

    @staticmethod
    def unpacked(number: int) -> SlotId:
        """From `packed`."""
        return SlotId(number >> _SLOT_BITS, number & (1 << _SLOT_BITS) - 1)


class Pool:
    """The slots of one tenant and size."""

    def __init__(self, tenant: str, slot_bytes: int) -> None:
        self.tenant = tenant
        self.slot_bytes = slot_bytes
        self.free: list[int] = []
        """Packed slots."""
        self.chunks: set[int] = set()
        self.num_used = 0


class Arena:
    """Gives slots out and takes them back. Knows nothing of blocks. Belongs to one thread."""

    def __init__(self, capacity_bytes: int, chunk_bytes: int, huge_pages: HugePages = "transparent") -> None:
        self.capacity_bytes = capacity_bytes
        self.chunk_bytes = chunk_bytes
        self._huge_pages: HugePages = huge_pages
        self.problem = ""
        """Why memory that the capacity allows cannot be had; empty once it can."""
        self._chunks: dict[int, Chunk] = {}
        self._next_number = 1
        self._retired: dict[int, tuple[int, int]] = {}
        """Clients that still map a chunk, and its bytes."""
        self._taken_bytes = 0
        self._pools: dict[tuple[str, int], Pool] = {}
        self._pools_of: dict[str, list[Pool]] = {}

    @property
    def num_taken_bytes(self) -> int:
        """Of chunks, generations included, and of retired ones that clients may still map. Never above the capacity."""
        return self._taken_bytes

    @property
    def num_used_bytes(self) -> int:
        """Of slots that are given out."""
        return sum(pool.num_used * pool.slot_bytes for pool in self._pools.values())

    @property
    def pools(self) -> list[Pool]:
        """Every pool."""
        return list(self._pools.values())

    def pools_of(self, tenant: str) -> list[Pool]:
        """A tenant's pools."""
        return self._pools_of.get(tenant, [])

    def pool(self, tenant: str, block_bytes: int) -> Pool:
        """The pool for a tenant's blocks of a size. Raises ValueError when a chunk cannot hold one."""
        slot_bytes = round_up(block_bytes, PAGE_BYTES)
        if not 0 < slot_bytes <= self.chunk_bytes:
            raise ValueError(f"a block of {block_bytes} bytes; a chunk of the arena holds up to {self.chunk_bytes}")
        if chunk_file_bytes(1, slot_bytes, self._huge_pages) > self.capacity_bytes:
            raise ValueError(f"a block of {block_bytes} bytes; the arena has {self.capacity_bytes}, pages included")
        pool = self._pools.get((tenant, slot_bytes))
        if pool is None:
            pool = self._pools[tenant, slot_bytes] = Pool(tenant, slot_bytes)
            self._pools_of.setdefault(tenant, []).append(pool)
        return pool

    def used_bytes(self, tenant: str) -> int:
        """Bytes of slots given out to a tenant."""
        return sum(pool.num_used * pool.slot_bytes for pool in self._pools_of.get(tenant, ()))

    def allocate(self, pool: Pool) -> int | None:
        """A packed slot that is free, or of a fresh chunk; None when there is none and no room for a chunk."""
        if not pool.free and not self._grow(pool):
            return None
        number = pool.free.pop()
        pool.num_used += 1
        self._chunks[number >> _SLOT_BITS].num_used += 1
        return number

    def free(self, pool: Pool, number: int) -> None:
        """Takes a slot back; late readers of it fail from here on."""
        chunk = self.chunk(number)
        slot = number & (1 << _SLOT_BITS) - 1
        chunk.withdraw(slot)
        chunk.rows[slot] = 0
        chunk.num_used -= 1
        pool.num_used -= 1
        pool.free.append(number)

    def chunk(self, number: int) -> Chunk:
        """Of a packed slot."""
        return self._chunks[number >> _SLOT_BITS]

    def chunk_numbered(self, number: int) -> Chunk | None:
        """The chunk, unless it is retired."""
        return self._chunks.get(number)

    def publish(self, number: int) -> int:
        """See Chunk.publish."""
        return self.chunk(number).publish(number & (1 << _SLOT_BITS) - 1)

    def generation(self, number: int) -> int:
        """Of a packed slot."""
        return self.chunk(number).generation(number & (1 << _SLOT_BITS) - 1)

    def address(self, number: int) -> int:
        """Of a packed slot, in this process."""
        return self.chunk(number).address(number & (1 << _SLOT_BITS) - 1)

    def set_row(self, number: int, row: int) -> None:
        """Says which row of the index a packed slot belongs to."""
        self.chunk(number).rows[number & (1 << _SLOT_BITS) - 1] = row

    def view(self, number: int, num_bytes: int) -> memoryview:
        """The first bytes of a packed slot, writable; keeps the chunk's memory as long as it lives."""
        chunk = self.chunk(number)
        start = (number & (1 << _SLOT_BITS) - 1) * chunk.slot_bytes
        return memoryview(chunk.memory.mapping)[start : start + num_bytes]

    def chunks_by_use(self, pool: Pool) -> list[Chunk]:
        """The pool's chunks, the emptiest first."""
        return sorted((self._chunks[number] for number in pool.chunks), key=lambda chunk: chunk.num_used)

    def withhold(self, pool: Pool, chunk: Chunk) -> None:
        """Takes a chunk's free slots out of the pool, so that it can be cleared; `offer` brings them back."""
        pool.free[:] = [slot for slot in pool.free if slot >> _SLOT_BITS != chunk.number]

    def offer(self, pool: Pool, chunk: Chunk, used: set[int]) -> None:
        """Ends `withhold`: every slot of the chunk that is not in `used` is free."""
        self.withhold(pool, chunk)
        base = chunk.number << _SLOT_BITS
        pool.free.extend(base + slot for slot in range(chunk.num_slots) if slot not in used)

    def retire(self, pool: Pool, chunk: Chunk, num_mappers: int) -> None:
        """Ends a chunk without a slot in use. Its bytes count until `num_mappers` clients have unmapped it."""
        self.withhold(pool, chunk)
        pool.chunks.remove(chunk.number)
        del self._chunks[chunk.number]
        chunk.close()
        if num_mappers:
            self._retired[chunk.number] = num_mappers, chunk.memory.num_bytes
        else:
            self._taken_bytes -= chunk.memory.num_bytes

    def unmapped(self, number: int) -> None:
        """A client no longer maps a retired chunk. Nothing happens for others."""
        num_mappers, num_bytes = self._retired.get(number, (0, 0))
        if num_mappers > 1:
            self._retired[number] = num_mappers - 1, num_bytes
        elif self._retired.pop(number, None) is not None:
            self._taken_bytes -= num_bytes

    def close(self) -> None:
        """Gives all memory back."""
        for chunk in self._chunks.values():
            chunk.close()
        self._chunks.clear()
        self._taken_bytes = 0
        self._pools.clear()

    def _grow(self, pool: Pool) -> bool:
        num_slots = self._slots_of_next(pool.slot_bytes)
        if not num_slots:
            return False
        try:
            chunk = Chunk(self._next_number, num_slots, pool.slot_bytes, self._huge_pages)
        except MemoryError as error:
            if not self.problem:
                _log.warning("the system gives no more memory for blocks", error=str(error))
            self.problem = f"memory: {error}"
            return False
        self.problem = ""
        self._next_number += 1
        self._chunks[chunk.number] = chunk
        self._taken_bytes += chunk.memory.num_bytes
        pool.chunks.add(chunk.number)
        base = chunk.number << _SLOT_BITS
        pool.free.extend(range(base + chunk.num_slots - 1, base - 1, -1))
        return True

    def _slots_of_next(self, slot_bytes: int) -> int:
        """Of the chunk that there is room for. The last is shorter: the generations of all are in the capacity."""
        most = self.chunk_bytes // slot_bytes
        num_slots = min(most, most_slots(self.capacity_bytes - self._taken_bytes, slot_bytes, self._huge_pages))
        return num_slots if num_slots >= max(1, most // _MIN_SHARE) else 0
