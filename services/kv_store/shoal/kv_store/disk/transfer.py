"""Records to and from the disk: what the threads of the pool do for one block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shoal.checksum import copy_crc32c, crc32c
from shoal.kv_store.disk.errors import Corrupt, Gone
from shoal.kv_store.disk.files import read_all, write_all
from shoal.kv_store.disk.index import Entry
from shoal.kv_store.disk.layout import (
    ALIGNMENT,
    CODEC_NONE,
    RecordHeader,
    RecordMetadata,
    aligned,
    pack_record,
    parse_record,
    record_bytes,
)
from shoal.kv_store.disk.pool import Buffer, IoContext, Lane
from shoal.kv_store.disk.segments import Segment
from shoal.kv_store.disk.volume import Codec, Held, Volume


@dataclass(frozen=True, slots=True)
class Record:
    """A block to write. The payload's memory must stay as it is until the write's future is done."""

    metadata: RecordMetadata
    payload: memoryview | bytes
    payload_crc: int | None = None
    """CRC32C made when the block was committed; a payload that no longer has it is refused as Corrupt."""


@dataclass(frozen=True, slots=True)
class _Stored:
    """A payload in a thread's buffer, ready to be written behind its header."""

    codec: int
    stored_bytes: int
    stored_crc: int
    payload_crc: int


class Transfer:
    """Writes, reads and moves single records of a volume. Methods run on threads of its pool."""

    def __init__(self, volume: Volume, codec: Codec | None, decoders: Mapping[int, Codec]) -> None:
        self._volume = volume
        self._codec = codec
        self._decoders = decoders

    def write(self, context: IoContext, record: Record) -> Entry:
        """Copies the payload with its checksum, writes it, and makes it findable."""
        stored = self._stage(context, record)
        return self._append(context, record.metadata, stored, moved=None)

    def read(self, context: IoContext, key: bytes, into: memoryview) -> int:
        """Fills `into` and returns the payload's CRC32C. Raises Gone, Corrupt, IoFailed."""
        held = self._hold(key)
        try:
            buffer, header = self._load(context, held, "read")
            stored = buffer.view[ALIGNMENT : ALIGNMENT + header.stored_bytes]
            if header.codec != CODEC_NONE:
                stored = self._decode(held, header, stored)
            context.claim()  # the caller's memory is touched from here on
            if copy_crc32c(into, stored) != header.payload_crc:
                raise self._corrupt(held, "its checksum is wrong")
        finally:
            self._volume.release(held.segment)
        with self._volume.lock:
            self._volume.counters.num_read += 1
            self._volume.counters.bytes_read += held.entry.metadata.payload_bytes
        return header.payload_crc

    def move(self, context: IoContext, key: bytes, slot: int) -> bool:
        """Writes the block of `key` again, if it still lies in segment `slot`, to the open one; whether it did."""
        held = self._hold(key)
        try:
            if held.entry.slot != slot:
                return False
            buffer, header = self._load(context, held, "read")
            if crc32c(buffer.view[ALIGNMENT : ALIGNMENT + header.stored_bytes]) != header.stored_crc:
                raise self._corrupt(held, "its checksum is wrong")
            stored = _Stored(header.codec, header.stored_bytes, header.stored_crc, header.payload_crc)
            self._append(context, header.metadata, stored, moved=held)
        finally:
            self._volume.release(held.segment)
        return True

    def _stage(self, context: IoContext, record: Record) -> _Stored:
        payload = memoryview(record.payload)
        encoded = self._codec.encode(payload) if self._codec is not None else None
        if encoded is None or self._codec is None:
            buffer = context.buffer(record_bytes(len(payload)))
            payload_crc = copy_crc32c(buffer.view[ALIGNMENT : ALIGNMENT + len(payload)], payload)
            stored = _Stored(CODEC_NONE, len(payload), payload_crc, payload_crc)
        else:
            payload_crc = crc32c(payload)
            buffer = context.buffer(record_bytes(len(encoded)))
            stored_crc = copy_crc32c(buffer.view[ALIGNMENT : ALIGNMENT + len(encoded)], encoded)
            stored = _Stored(self._codec.number, len(encoded), stored_crc, payload_crc)
        if record.payload_crc is not None and record.payload_crc != payload_crc:
            raise Corrupt("the payload changed after it was committed; it is not written")
        return stored

    def _append(self, context: IoContext, metadata: RecordMetadata, stored: _Stored, moved: Held | None) -> Entry:
        """Writes what lies in the thread's buffer behind the place of the header."""
        num_bytes = record_bytes(stored.stored_bytes)
        view = context.buffer(num_bytes).view[:num_bytes]
        segment, offset = self._volume.reserve(context, num_bytes, moving=moved is not None)
        try:
            header = RecordHeader(
                metadata,
                segment.nonce,
                offset,
                stored.codec,
                stored.stored_bytes,
                stored.stored_crc,
                stored.payload_crc,
            )
            view[:ALIGNMENT] = pack_record(header).ljust(ALIGNMENT, b"\0")
            end = ALIGNMENT + stored.stored_bytes
            view[end:] = bytes(num_bytes - end)
            self._volume.timed("write", lambda: self._write(segment, view, offset), num_bytes)
            context.claim()
            entry = Entry(metadata, segment.slot, offset, stored.stored_bytes, 0)
            with self._volume.lock:
                self._publish(entry, segment, moved)
        finally:
            self._volume.settle(segment, offset)
        return entry

    def _publish(self, entry: Entry, segment: Segment, moved: Held | None) -> None:
        counters, index = self._volume.counters, self._volume.index
        if moved is None:
            counters.num_written += 1
            counters.bytes_written += entry.record_bytes
            counters.stored_bytes_written += entry.stored_bytes
            counters.payload_bytes_written += entry.metadata.payload_bytes
        elif index.find(entry.metadata.key) != moved.row:
            return  # removed or written again while it was moved
        else:
            counters.num_moved += 1
            counters.bytes_moved += entry.record_bytes
        self._volume.publish(entry, segment)

    def _write(self, segment: Segment, view: memoryview, offset: int) -> None:
        write_all(self._volume.files, segment.fd, view, offset, ALIGNMENT)
        if not self._volume.direct:
            # The page cache would hide the device's speed and its stalls until a checkpoint runs into all at once.
            nonce = segment.nonce
            try:
                self._volume.files.fdatasync(segment.fd)
            except OSError:  # the kernel tells it once: what others wrote beside may be lost, and their sync succeed
                self._volume.suspect(segment, nonce)
                raise

    def _hold(self, key: bytes) -> Held:
        with self._volume.lock:
            held = self._volume.hold(key)
        if held is None:
            raise Gone("the block is not on disk")
        return held

    def _load(self, context: IoContext, held: Held, lane: Lane) -> tuple[Buffer, RecordHeader]:
        """The whole record in the thread's buffer, its header checked against the index."""
        entry, segment = held.entry, held.segment
        num_bytes = entry.record_bytes
        buffer = context.buffer(num_bytes)
        view = buffer.view[: ALIGNMENT + aligned(entry.stored_bytes)]
        try:
            self._volume.timed(
                lane,
                lambda: read_all(self._volume.files, segment.fd, view, entry.offset_bytes, ALIGNMENT),
                num_bytes,
            )
        except EOFError as error:
            raise self._corrupt(held, "its segment is truncated") from error
        header = parse_record(view[:ALIGNMENT], segment.nonce, entry.offset_bytes)
        if header is None:
            raise self._corrupt(held, "there is no such record where it should be")
        if header.metadata != entry.metadata or header.stored_bytes != entry.stored_bytes:
            raise self._corrupt(held, "the record there is another block's")
        return buffer, header

    def _decode(self, held: Held, header: RecordHeader, stored: memoryview) -> memoryview:
        decoder = self._decoders.get(header.codec)
        if decoder is None:
            raise self._corrupt(held, f"it was stored with codec {header.codec}, which is not available")
        if crc32c(stored) != header.stored_crc:
            raise self._corrupt(held, "its checksum is wrong")
        try:
            return memoryview(decoder.decode(stored, held.entry.metadata.payload_bytes))
        except ValueError as error:
            raise self._corrupt(held, f"it does not decode: {error}") from error

    def _corrupt(self, held: Held, what: str) -> Corrupt:
        self._volume.drop_corrupt(held)
        return Corrupt(f"block {held.entry.metadata.key.hex()}: {what}")
