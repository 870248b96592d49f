"""Where one client writes payloads before they are published."""

from __future__ import annotations

from shoal.kv_store.arena.memory import PAGE_BYTES, HugePages, SharedMemory, round_up


class Staging:
    """Memory that one client writes and the store only reads: what lies there counts once it is copied and checked."""

    def __init__(self, block_bytes: int, num_blocks: int, huge_pages: HugePages) -> None:
        """Raises MemoryError."""
        self.stride = round_up(block_bytes, PAGE_BYTES)
        self.num_blocks = num_blocks
        pages: HugePages = "off" if huge_pages == "reserved" else huge_pages
        self.memory = SharedMemory("staging", self.stride * num_blocks, huge_pages=pages, readers_only=False)
        self._free = list(range(num_blocks - 1, -1, -1))

    def take(self) -> int | None:
        """A free staging block."""
        return self._free.pop() if self._free else None

    def give_back(self, block: int) -> None:
        """Ends its use."""
        self._free.append(block)

    def address(self, block: int) -> int:
        """Of a staging block, in this process."""
        return self.memory.address + block * self.stride

    def close(self) -> None:
        """Gives the memory back; the client's mapping keeps its own."""
        self.memory.close()
