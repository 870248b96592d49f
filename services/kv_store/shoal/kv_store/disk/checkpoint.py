"""The index as one file, so that a restart reads 75 bytes a block instead of every record.

Written beside the last one, synced, renamed over it. Whatever does not verify as a whole is as good as absent: records
say everything again, and recovery reads them.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import google_crc32c

from shoal.kv_store.disk.index import ROW_BYTES, Index
from shoal.kv_store.disk.layout import MAX_FINGERPRINT_BYTES, MAX_TENANT_BYTES
from shoal.kv_store.disk.names import NameTable

NAME: Final = "checkpoint"
TEMPORARY_NAME: Final = "checkpoint.tmp"
CHUNK_BYTES: Final = 1 << 20
_MAGIC: Final = b"SKVC"
_VERSION: Final = 1
_HEADER: Final = struct.Struct("<4sHxxQQIIIIIIIQ")
_MARK: Final = struct.Struct("<I16sQQB3xIQI")
_NAME_HEADER: Final = struct.Struct("<BQ")
_CRC: Final = struct.Struct("<I")
_NUM_SHARDS: Final = 256


@dataclass(frozen=True, slots=True)
class SegmentMark:
    """One use of a segment at the time of the checkpoint."""

    slot: int
    nonce: bytes
    sequence: int
    synced_bytes: int
    """Rows below need no look at the records; from here on the segment is scanned."""
    is_complete: bool
    """Nothing was added after `synced_bytes`: no scan."""
    head_row: int
    live_bytes: int
    num_live: int


def max_checkpoint_bytes(max_rows: int, max_segments: int, max_names: int) -> int:
    """The largest file there can be."""
    names = max_names * (2 * _NAME_HEADER.size + MAX_FINGERPRINT_BYTES + MAX_TENANT_BYTES)
    tables = 4 * max(4 * max_rows, 16 * _NUM_SHARDS) + 8 * _NUM_SHARDS
    return _HEADER.size + names + tables + max_rows * ROW_BYTES + max_segments * _MARK.size + 4096


def encode(index: Index, marks: Iterable[SegmentMark], segment_bytes: int) -> bytearray:
    """A snapshot of the index. Called under the log's lock; a copy of 75 bytes a block."""
    marks = list(marks)
    fingerprints, tenants = index.fingerprints.items(), index.tenants.items()
    data = bytearray(_HEADER.size)
    for mark in marks:
        data += _MARK.pack(
            mark.slot,
            mark.nonce,
            mark.sequence,
            mark.synced_bytes,
            mark.is_complete,
            mark.head_row,
            mark.live_bytes,
            mark.num_live,
        )
    for name, uses in [*fingerprints, *tenants]:
        data += _NAME_HEADER.pack(len(name), uses) + name
    data += array("I", (len(table) for table in index.tables)).tobytes() + index.num_used.tobytes()
    for table in index.tables:
        data += memoryview(table).cast("B")
    data += index.rows
    _HEADER.pack_into(
        data,
        0,
        _MAGIC,
        _VERSION,
        segment_bytes,
        index.secret,
        index.num_rows,
        index.num_live,
        index.free_row,
        index.num_free,
        len(fingerprints),
        len(tenants),
        len(marks),
        len(data) + _CRC.size,
    )
    return data


def seal(data: bytearray) -> None:
    """Adds the checksum. Not under the lock: it reads everything."""
    data += _CRC.pack(google_crc32c.value(bytes(data)))


class _Reader:
    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._position = 0

    def take(self, num_bytes: int) -> memoryview:
        """The next bytes. Raises ValueError beyond the end."""
        part = self._data[self._position : self._position + num_bytes]
        if num_bytes < 0 or len(part) != num_bytes:
            raise ValueError("the checkpoint ends too early")
        self._position += num_bytes
        return part

    def take_names(self, count: int, max_names: int) -> NameTable:
        """The next names."""
        names = []
        for _ in range(count):
            num_bytes, uses = _NAME_HEADER.unpack(self.take(_NAME_HEADER.size))
            names.append((bytes(self.take(num_bytes)), uses))
        return NameTable(max_names, names)


def decode(data: memoryview, segment_bytes: int, max_names: int) -> tuple[Index, list[SegmentMark]]:
    """What `encode` and `seal` wrote. Raises ValueError when a bit differs, or for other segments than these."""
    if len(data) < _HEADER.size + _CRC.size or bytes(data[:4]) != _MAGIC:
        raise ValueError("not a checkpoint")
    (_, version, of_segment_bytes, secret, num_rows, num_live, free_row, num_free, num_fingerprints, num_tenants,
     num_marks, num_bytes) = _HEADER.unpack_from(data)  # fmt: skip
    if version != _VERSION or num_bytes != len(data) or of_segment_bytes != segment_bytes:
        raise ValueError("the checkpoint has another version, size or segment size")
    if _CRC.unpack(data[-_CRC.size :])[0] != google_crc32c.value(bytes(data[: -_CRC.size])):
        raise ValueError("the checkpoint's checksum is wrong")
    reader = _Reader(data[_HEADER.size : -_CRC.size])
    marks = []
    for _ in range(num_marks):
        slot, nonce, sequence, synced, complete, head, live, count = _MARK.unpack(reader.take(_MARK.size))
        marks.append(SegmentMark(slot, nonce, sequence, synced, bool(complete), head, live, count))
    index = Index(max_names)
    index.secret, index.num_live, index.free_row, index.num_free = secret, num_live, free_row, num_free
    index.fingerprints = reader.take_names(num_fingerprints, max_names)
    index.tenants = reader.take_names(num_tenants, max_names)
    lengths = array("I", reader.take(4 * _NUM_SHARDS).tobytes())
    index.num_used = array("I", reader.take(4 * _NUM_SHARDS).tobytes())
    index.tables = [array("I", reader.take(4 * length).tobytes()) for length in lengths]
    index.rows = bytearray(reader.take(num_rows * ROW_BYTES))
    return index, marks
