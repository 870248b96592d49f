"""Which block lies where on disk, in about 75 bytes a block.

Rows of 64 bytes in one byte string, and hash tables of row numbers: 256 shards that grow one by one, so that growing
never stops the store for more than one shard's rows (4,000 of a million). Keys are digests, but whoever chooses tokens
can choose digests with equal low bits; positions therefore come from a product with a random secret.

Rows of a segment are chained, the latest first. A row outlives its block: `kill` takes it out of the tables, but it
stays in its chain until the segment is emptied. So there are never more rows than records on disk.

Not thread-safe: the log calls under its lock.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from shoal.kv_store.disk.layout import ALIGNMENT, RecordMetadata, record_bytes
from shoal.kv_store.disk.names import MAX_NAMES, NameTable

ROW_BYTES: Final = 64
NO_ROW: Final = 0xFFFFFFFF
_ROW: Final = struct.Struct("<16s16sIIIHHIIIBxxx")
_NEXT_OFFSET: Final = 52
_CHILDREN_OFFSET: Final = 56
_STATE_OFFSET: Final = 60
_U32: Final = struct.Struct("<I")
_LIVE: Final = 1
_NUM_SHARDS: Final = 256
_MIN_SHARD_SLOTS: Final = 16
_TOMBSTONE: Final = 0xFFFFFFFF
_MASK64: Final = (1 << 64) - 1


class Entry(NamedTuple):
    """A row, unpacked."""

    metadata: RecordMetadata
    slot: int
    """The segment file's number."""
    offset_bytes: int
    stored_bytes: int
    num_children: int
    """Live blocks in this index that name this one as their parent and came after it."""

    @property
    def record_bytes(self) -> int:
        """What the record takes in its segment."""
        return record_bytes(self.stored_bytes)


class Index:
    """Rows and the tables that find them. Attributes without underscore are the persistent state."""

    def __init__(self, max_names: int = MAX_NAMES) -> None:
        self.secret = int.from_bytes(os.urandom(8), "little") | 1
        self.rows = bytearray()
        self.tables = [array("I", bytes(4 * _MIN_SHARD_SLOTS)) for _ in range(_NUM_SHARDS)]
        self.num_used = array("I", bytes(4 * _NUM_SHARDS))  # slots of each shard that are not zero
        self.num_live = 0
        self.free_row = NO_ROW
        self.num_free = 0
        self.fingerprints = NameTable(max_names)
        self.tenants = NameTable(max_names)

    @property
    def num_rows(self) -> int:
        """Rows that exist, dead and free ones included."""
        return len(self.rows) // ROW_BYTES

    @property
    def num_used_rows(self) -> int:
        """Rows of records on disk, live or dead."""
        return self.num_rows - self.num_free

    @property
    def num_bytes(self) -> int:
        """Memory of rows and tables."""
        return len(self.rows) + sum(4 * len(table) for table in self.tables)

    def find(self, key: bytes) -> int:
        """The row of a live block, or NO_ROW."""
        mixed = (int.from_bytes(key[:8], "little") * self.secret) & _MASK64
        table = self.tables[mixed >> 56]
        mask, rows = len(table) - 1, self.rows
        position = (mixed >> 24) & mask
        while value := table[position]:
            if value != _TOMBSTONE:
                offset = (value - 1) * ROW_BYTES
                if rows[offset : offset + 16] == key:
                    return value - 1
            position = (position + 1) & mask
        return NO_ROW

    def insert(self, entry: Entry, next_row: int) -> int:
        """Adds a block, before `next_row` in its segment's chain; its row. An older block of the key must be dead.

        Raises OverflowError when there are too many different tenants or fingerprints.
        """
        metadata = entry.metadata
        if not self.has_room_for_names(metadata):
            raise OverflowError("there are too many different tenants or fingerprints")
        fingerprint = self.fingerprints.use(metadata.fingerprint)
        tenant = self.tenants.use(metadata.tenant.encode())
        row = self.free_row
        if row == NO_ROW:
            row = self.num_rows
            self.rows += bytes(ROW_BYTES)
        else:
            self.free_row = self.next_in_segment(row)
            self.num_free -= 1
        _ROW.pack_into(
            self.rows,
            row * ROW_BYTES,
            metadata.key,
            metadata.parent,
            entry.offset_bytes // ALIGNMENT,
            metadata.payload_bytes,
            entry.stored_bytes,
            fingerprint,
            entry.slot,
            tenant,
            next_row,
            0,
            _LIVE,
        )
        self._place(metadata.key, row)
        self.num_live += 1
        self._count_child(metadata.parent, 1)
        return row

    def has_room_for_names(self, metadata: RecordMetadata) -> bool:
        """Whether tenant and fingerprint can be numbered."""
        fingerprint, tenant = metadata.fingerprint, metadata.tenant.encode()
        return self.fingerprints.has_room_for(fingerprint) and self.tenants.has_room_for(tenant)

    def kill(self, row: int) -> None:
        """The row's block is no longer found. The row stays in its chain."""
        key = self.key(row)
        table, position = self._start(key)
        while table[position] != row + 1:
            position = (position + 1) & (len(table) - 1)
        table[position] = _TOMBSTONE
        self.rows[row * ROW_BYTES + _STATE_OFFSET] = 0
        self.num_live -= 1
        _, parent, _, _, _, fingerprint, _, tenant, _, _, _ = _ROW.unpack_from(self.rows, row * ROW_BYTES)
        self.fingerprints.release(fingerprint)
        self.tenants.release(tenant)
        self._count_child(parent, -1)

    def free_chain(self, head_row: int) -> None:
        """Gives all rows of a segment back, killing those that live."""
        for row in list(self.chain(head_row)):
            if self.is_live(row):
                self.kill(row)
            _U32.pack_into(self.rows, row * ROW_BYTES + _NEXT_OFFSET, self.free_row)
            self.free_row = row
            self.num_free += 1

    def chain(self, row: int) -> Iterator[int]:
        """Rows of a segment, the latest first, dead ones included."""
        while row != NO_ROW:
            following = self.next_in_segment(row)
            yield row
            row = following

    def rows_in(self, head_row: int) -> array[int]:
        """Rows of a segment in the order they were written, dead ones included; for many at once."""
        rows, unpack = self.rows, _U32.unpack_from
        found = array("I")
        row = head_row
        while row != NO_ROW:
            found.append(row)
            (row,) = unpack(rows, row * ROW_BYTES + _NEXT_OFFSET)
        found.reverse()
        return found

    def blocks_of(self, numbers: Iterable[int]) -> list[tuple[RecordMetadata, int]]:
        """Those of the rows that live, and their offsets in bytes; for many at once."""
        rows, unpack, fingerprints, tenants = self.rows, _ROW.unpack_from, self.fingerprints, self.tenants
        names: dict[int, str] = {}
        new = tuple.__new__  # half the time of the class's own, and there may be a million
        found: list[tuple[RecordMetadata, int]] = []
        for row in numbers:
            key, parent, offset_blocks, payload_bytes, _, fingerprint, _, tenant, _, _, state = unpack(
                rows, row * ROW_BYTES
            )
            if state:
                name = names.get(tenant)
                if name is None:
                    name = names[tenant] = tenants[tenant].decode()
                metadata = new(RecordMetadata, (key, parent, fingerprints[fingerprint], name, payload_bytes))
                found.append((metadata, offset_blocks * ALIGNMENT))
        return found

    def num_leading(self, keys: Sequence[bytes]) -> int:
        """How many of `keys`, from the first on, are those of live blocks."""
        find = self.find
        for count, key in enumerate(keys):
            if find(key) == NO_ROW:
                return count
        return len(keys)

    def next_in_segment(self, row: int) -> int:
        """The row before this one in its segment, or NO_ROW."""
        return int(_U32.unpack_from(self.rows, row * ROW_BYTES + _NEXT_OFFSET)[0])

    def is_live(self, row: int) -> bool:
        """Whether `kill` has not been called."""
        return bool(self.rows[row * ROW_BYTES + _STATE_OFFSET])

    def key(self, row: int) -> bytes:
        """The block's key."""
        return bytes(self.rows[row * ROW_BYTES : row * ROW_BYTES + 16])

    def entry(self, row: int) -> Entry:
        """The row, unpacked."""
        (key, parent, offset_blocks, payload_bytes, stored_bytes, fingerprint, slot, tenant, _, num_children, _) = (
            _ROW.unpack_from(self.rows, row * ROW_BYTES)
        )
        metadata = RecordMetadata(
            key, parent, self.fingerprints[fingerprint], self.tenants[tenant].decode(), payload_bytes
        )
        return Entry(metadata, slot, offset_blocks * ALIGNMENT, stored_bytes, num_children)

    def _start(self, key: bytes) -> tuple[array[int], int]:
        mixed = (int.from_bytes(key[:8], "little") * self.secret) & _MASK64
        table = self.tables[mixed >> 56]
        return table, (mixed >> 24) & (len(table) - 1)

    def _place(self, key: bytes, row: int) -> None:
        shard = ((int.from_bytes(key[:8], "little") * self.secret) & _MASK64) >> 56
        if 3 * self.num_used[shard] >= 2 * len(self.tables[shard]):
            self._rebuild(shard)
        table, position = self._start(key)
        while table[position]:
            position = (position + 1) & (len(table) - 1)
        table[position] = row + 1
        self.num_used[shard] += 1

    def _rebuild(self, shard: int) -> None:
        """Drops the tombstones of a shard, and gives it room for twice its rows."""
        values = [value for value in self.tables[shard] if value and value != _TOMBSTONE]
        num_slots = _MIN_SHARD_SLOTS
        while 2 * len(values) >= num_slots:
            num_slots *= 2
        table = self.tables[shard] = array("I", bytes(4 * num_slots))
        mask, rows, secret = num_slots - 1, self.rows, self.secret
        for value in values:
            offset = (value - 1) * ROW_BYTES
            low = int.from_bytes(rows[offset : offset + 8], "little")
            position = (((low * secret) & _MASK64) >> 24) & mask
            while table[position]:
                position = (position + 1) & mask
            table[position] = value
        self.num_used[shard] = len(values)

    def _count_child(self, parent: bytes, change: int) -> None:
        row = self.find(parent)
        if row != NO_ROW:
            offset = row * ROW_BYTES + _CHILDREN_OFFSET
            count = int(_U32.unpack_from(self.rows, offset)[0]) + change
            _U32.pack_into(self.rows, offset, max(0, count))
