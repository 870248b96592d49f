"""A chunk: slots of one size, of one tenant, with a generation each."""

from __future__ import annotations

from array import array

from shoal.kv_store.arena.memory import HUGE_PAGE_BYTES, PAGE_BYTES, HugePages, SharedMemory, round_up

GENERATION_BYTES = 8


class Chunk:
    """Slots one after the other from offset 0, then a 64-bit little-endian generation for each.

    A generation is even while its slot holds a published block, odd otherwise, and never takes a value twice. Who reads
    a slot compares it before and after with the one that came with the lease: what is equal both times was not touched
    in between. A slot is withdrawn before it can be written: x86-64 shows stores in order, elsewhere the locks of the
    thread pool, between the two, order them.
    """

    def __init__(self, number: int, num_slots: int, slot_bytes: int, huge_pages: HugePages) -> None:
        """Takes `chunk_file_bytes`. Raises MemoryError. `number` is never used again for another chunk."""
        self.number = number
        self.slot_bytes = slot_bytes
        self.num_slots = num_slots
        self.generations_offset = self.num_slots * slot_bytes
        num_bytes = chunk_file_bytes(num_slots, slot_bytes, huge_pages)
        self.memory = SharedMemory(f"chunk-{number}", num_bytes, huge_pages=huge_pages, readers_only=True)
        end = self.generations_offset + GENERATION_BYTES * self.num_slots
        self._generations = memoryview(self.memory.mapping)[self.generations_offset : end].cast("Q")
        for slot in range(self.num_slots):
            self._generations[slot] = 1
        self.num_used = 0
        self.rows = array("I", bytes(4 * self.num_slots))
        """Row of the index in each slot; 0 for none. Kept by the memory tier."""

    def address(self, slot: int) -> int:
        """Of the slot, in this process."""
        return self.memory.address + slot * self.slot_bytes

    def generation(self, slot: int) -> int:
        """The slot's generation."""
        return self._generations[slot]

    def publish(self, slot: int) -> int:
        """Lets readers have the slot; its generation."""
        generation = self._generations[slot] + 1
        if generation % 2:
            raise AssertionError("published twice")
        self._generations[slot] = generation
        return generation

    def withdraw(self, slot: int) -> None:
        """Makes late readers fail. Nothing happens to a slot that is not published."""
        generation = self._generations[slot]
        self._generations[slot] = generation + 1 - generation % 2

    def close(self) -> None:
        """Gives the memory back."""
        self._generations.release()
        self.memory.close()


def chunk_file_bytes(num_slots: int, slot_bytes: int, huge_pages: HugePages) -> int:
    """All that a chunk takes: slots, their generations, and what fills the last page."""
    step = HUGE_PAGE_BYTES if huge_pages == "reserved" else PAGE_BYTES
    return round_up(num_slots * slot_bytes + GENERATION_BYTES * num_slots, step)


def most_slots(num_bytes: int, slot_bytes: int, huge_pages: HugePages) -> int:
    """Of a chunk that takes no more than `num_bytes`."""
    step = HUGE_PAGE_BYTES if huge_pages == "reserved" else PAGE_BYTES
    return max(0, num_bytes // step * step // (slot_bytes + GENERATION_BYTES))
