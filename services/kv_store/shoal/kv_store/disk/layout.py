"""Bytes on disk: segments, and the records in them. All integers are little-endian, all offsets 4 KiB-aligned.

A segment file is one 4 KiB header and then records, each a 4 KiB header and the stored payload, padded to 4 KiB, so
that the payload alone is aligned for O_DIRECT. Segment files are used again and again: each use draws a random nonce,
which all records of that use repeat. What an earlier use left behind does not parse, and a payload cannot pass for a
record (the scan after a crash may look for headers inside torn payloads), because its
writer cannot know the nonce.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

import google_crc32c

ALIGNMENT: Final = 4096
KEY_BYTES: Final = 16
MAX_FINGERPRINT_BYTES: Final = 32
MAX_TENANT_BYTES: Final = 255
VERSION: Final = 1
_RECORD: Final = struct.Struct("<4sHBx16sI16s16sIIIIBB32s255sx")
_SEGMENT: Final = struct.Struct("<4sHxx16sQQ")
_CRC: Final = struct.Struct("<I")
_RECORD_MAGIC: Final = b"SKVR"
_SEGMENT_MAGIC: Final = b"SKVS"
CODEC_NONE: Final = 0


class RecordMetadata(NamedTuple):
    """A block without its bytes."""

    key: bytes
    parent: bytes
    fingerprint: bytes
    """At most 32 bytes: whose layout the payload has."""
    tenant: str
    """At most 255 bytes of UTF-8."""
    payload_bytes: int


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """What stands before a payload."""

    metadata: RecordMetadata
    nonce: bytes
    offset_bytes: int
    """Where in its segment the record begins: a record that a disk put elsewhere is not taken for one."""
    codec: int
    stored_bytes: int
    stored_crc: int
    payload_crc: int

    @property
    def record_bytes(self) -> int:
        """What the record takes in its segment."""
        return record_bytes(self.stored_bytes)


def _checksum(body: bytes) -> int:
    return int(google_crc32c.value(body))


def aligned(num_bytes: int) -> int:
    """`num_bytes` rounded up to whole 4 KiB blocks."""
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def record_bytes(stored_bytes: int) -> int:
    """What a record with so many stored bytes takes in its segment."""
    return ALIGNMENT + aligned(stored_bytes)


def pack_record(header: RecordHeader) -> bytes:
    """The header with its checksum; shorter than 4 KiB, the rest is zero."""
    metadata = header.metadata
    tenant = metadata.tenant.encode()
    body = _RECORD.pack(
        _RECORD_MAGIC,
        VERSION,
        header.codec,
        header.nonce,
        header.offset_bytes // ALIGNMENT,
        metadata.key,
        metadata.parent,
        metadata.payload_bytes,
        header.stored_bytes,
        header.stored_crc,
        header.payload_crc,
        len(metadata.fingerprint),
        len(tenant),
        metadata.fingerprint,
        tenant,
    )
    return body + _CRC.pack(_checksum(body))


def parse_record(block: bytes | memoryview, nonce: bytes, offset_bytes: int) -> RecordHeader | None:
    """The header in `block` if it is one, whole, of this use of the segment and of this place; else None."""
    if block[:4] != _RECORD_MAGIC:
        return None
    body = bytes(block[: _RECORD.size])
    if _CRC.unpack_from(block, _RECORD.size)[0] != _checksum(body):
        return None
    (_, version, codec, own_nonce, offset_blocks, key, parent, payload_bytes, stored_bytes, stored_crc, payload_crc,
     fingerprint_bytes, tenant_bytes, fingerprint, tenant) = _RECORD.unpack(body)  # fmt: skip
    if version != VERSION or own_nonce != nonce or offset_blocks * ALIGNMENT != offset_bytes:
        return None
    metadata = RecordMetadata(
        key, parent, fingerprint[:fingerprint_bytes], tenant[:tenant_bytes].decode(), payload_bytes
    )
    return RecordHeader(metadata, nonce, offset_bytes, codec, stored_bytes, stored_crc, payload_crc)


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """One use of a segment file."""

    nonce: bytes
    sequence: int
    """Grows with each segment opened; never used twice."""
    segment_bytes: int


def pack_segment(header: SegmentHeader) -> bytes:
    """The 4 KiB at the start of a segment file."""
    body = _SEGMENT.pack(_SEGMENT_MAGIC, VERSION, header.nonce, header.sequence, header.segment_bytes)
    return (body + _CRC.pack(_checksum(body))).ljust(ALIGNMENT, b"\0")


def parse_segment(block: bytes | memoryview) -> SegmentHeader | None:
    """The header in `block` if it is one and whole, else None."""
    body = bytes(block[: _SEGMENT.size])
    if body[:4] != _SEGMENT_MAGIC or _CRC.unpack_from(block, _SEGMENT.size)[0] != _checksum(body):
        return None
    _, version, nonce, sequence, segment_bytes = _SEGMENT.unpack(body)
    return SegmentHeader(nonce, sequence, segment_bytes) if version == VERSION else None


def new_nonce() -> bytes:
    """16 random bytes."""
    return os.urandom(16)


def check_metadata(metadata: RecordMetadata) -> None:
    """Raises ValueError naming the field that does not fit a record."""
    if len(metadata.key) != KEY_BYTES or len(metadata.parent) != KEY_BYTES:
        raise ValueError(f"key and parent have {KEY_BYTES} bytes, not {len(metadata.key)} and {len(metadata.parent)}")
    if len(metadata.fingerprint) > MAX_FINGERPRINT_BYTES:
        raise ValueError(f"a fingerprint has at most {MAX_FINGERPRINT_BYTES} bytes, not {len(metadata.fingerprint)}")
    if len(metadata.tenant.encode()) > MAX_TENANT_BYTES:
        raise ValueError(f"a tenant's name has at most {MAX_TENANT_BYTES} bytes of UTF-8")
    if not 0 < metadata.payload_bytes < 2**31:
        raise ValueError(f"a payload has 1 byte to 2 GiB, not {metadata.payload_bytes}")
