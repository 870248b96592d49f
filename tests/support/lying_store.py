"""A KV store of a few blocks in a thread, honest until it is told what to say in place of the truth."""

from __future__ import annotations

import array
import contextlib
import fcntl
import mmap
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.checksum import crc32c
from shoal.kv_client.frames import HEADER, Method, pack
from shoal.kv_client.roots import NUM_BUCKETS

PAGE_BYTES = mmap.PAGESIZE
NUM_SLOTS = 1024
_F_ADD_SEALS, _SEAL_SHRINK = 1033, 2

Lie = Callable[[Method, Message], Message | bytes]
"""What to answer in place of an answer: another message, or any bytes at all."""


def sealed_memory(num_bytes: int, *, seals: int = _SEAL_SHRINK) -> int:
    """Descriptor of shared memory, as a store has it."""
    fd = os.memfd_create("lying", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, num_bytes)
    fcntl.fcntl(fd, _F_ADD_SEALS, seals)
    return fd


class LyingStore:
    """Has one chunk and blocks of one size. Made by `lying_store`."""

    def __init__(self, path: Path, block_bytes: int) -> None:
        self.path = path
        self.lie: Lie = lambda method, truth: truth
        self.descriptor: Callable[[int], int] = os.dup
        """What goes out in place of a descriptor; closed once it has."""
        self.adds_descriptor = False
        """Whether one goes out with answers that have none."""
        self._block_bytes = block_bytes
        self._slot_bytes = -(-block_bytes // PAGE_BYTES) * PAGE_BYTES
        self._slots: dict[bytes, tuple[int, int]] = {}
        self.shape = pb.MapResponse(
            num_bytes=NUM_SLOTS * (self._slot_bytes + 8),
            generations_offset=NUM_SLOTS * self._slot_bytes,
            num_slots=NUM_SLOTS,
            slot_bytes=self._slot_bytes,
        )
        self._chunk = sealed_memory(self.shape.num_bytes)
        self._roots = sealed_memory(NUM_BUCKETS)
        os.pwrite(self._chunk, (2).to_bytes(8, "little") * NUM_SLOTS, self.shape.generations_offset)
        os.pwrite(self._roots, b"\1" * NUM_BUCKETS, 0)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def move_generations(self, num_bytes: int) -> None:
        """Leaves so much between the slots and their generations. Before the chunk is mapped."""
        self.shape.generations_offset += num_bytes
        self.shape.num_bytes += num_bytes
        os.ftruncate(self._chunk, self.shape.num_bytes)
        os.pwrite(self._chunk, (2).to_bytes(8, "little") * NUM_SLOTS, self.shape.generations_offset)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join(timeout=5)
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(timeout=5)
        for connection in self._connections:
            connection.close()
        os.close(self._chunk)
        os.close(self._roots)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        staging = -1
        with contextlib.suppress(OSError):  # the client has left
            while len(header := connection.recv(HEADER.size, socket.MSG_WAITALL)) == HEADER.size:
                num_bytes, method, _ = HEADER.unpack(header)
                body = connection.recv(num_bytes, socket.MSG_WAITALL) if num_bytes else b""
                fds: list[int] = []
                if method == Method.OPEN:
                    request = pb.OpenRequest.FromString(body)
                    if request.num_staging_blocks:
                        staging = sealed_memory(request.num_staging_blocks * self._slot_bytes)
                        fds.append(staging)
                    if request.wants_roots:
                        fds.append(self._roots)
                elif method == Method.MAP:
                    fds.append(self._chunk)
                elif self.adds_descriptor:
                    fds.append(self._roots)
                said = self.lie(Method(method), self._answer(Method(method), body, staging))
                frame = said if isinstance(said, bytes) else pack(method, said.SerializeToString())
                self._send(connection, frame, fds)
        if staging >= 0:
            os.close(staging)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    def _send(self, connection: socket.socket, frame: bytes, fds: list[int]) -> None:
        sent = [self.descriptor(fd) for fd in fds]
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", sent))] if sent else []
        try:
            connection.sendmsg([frame], ancillary)
        finally:
            for fd in sent:
                os.close(fd)

    def _leading(self, packed: bytes) -> list[tuple[int, int]]:
        found = []
        for key in _unpack(packed):
            if key not in self._slots:
                break
            found.append(self._slots[key])
        return found

    def _answer(self, method: Method, body: bytes, staging: int) -> Message:
        match method:
            case Method.OPEN:
                wants_roots = pb.OpenRequest.FromString(body).wants_roots
                return pb.OpenResponse(
                    session=b"s" * 16,
                    epoch=1,
                    max_batch_size=1024,
                    staging_stride=self._slot_bytes,
                    num_root_buckets=NUM_BUCKETS if wants_roots else 0,
                )
            case Method.MAP:
                shape = pb.MapResponse()
                shape.CopyFrom(self.shape)
                return shape
            case Method.LOOKUP:
                num = len(self._leading(pb.LookupRequest.FromString(body).keys))
                return pb.LookupResponse(num_visible=num, num_in_memory=num, num_with_peers=num)
            case Method.ACQUIRE:
                found = self._leading(pb.AcquireRequest.FromString(body).keys)
                return pb.AcquireResponse(
                    chunks=[1] * len(found),
                    slots=[slot for slot, _ in found],
                    generations=[2] * len(found),
                    checksums=[checksum for _, checksum in found],
                    num_visible=len(found),
                )
            case Method.RESERVE:
                statuses: list[Any] = []
                for key in _unpack(pb.ReserveRequest.FromString(body).keys):
                    has_room = statuses.count(pb.BLOCK_STATUS_RESERVED) < 4
                    unknown = pb.BLOCK_STATUS_RESERVED if has_room else pb.BLOCK_STATUS_NO_SPACE
                    statuses.append(pb.BLOCK_STATUS_PRESENT if key in self._slots else unknown)
                blocks = range(statuses.count(pb.BLOCK_STATUS_RESERVED))
                return pb.ReserveResponse(statuses=statuses, staging_blocks=blocks)
            case Method.COMMIT:
                return self._commit(pb.CommitRequest.FromString(body), staging)
            case Method.PREFETCH:
                return pb.PrefetchResponse(num_in_memory=len(self._leading(pb.PrefetchRequest.FromString(body).keys)))
            case Method.EVICT:
                return pb.EvictResponse()
            case _:
                return pb.ReleaseResponse()

    def _commit(self, request: pb.CommitRequest, staging: int) -> Message:
        statuses = []
        for block, (key, checksum) in enumerate(zip(_unpack(request.keys), request.checksums, strict=True)):
            payload = os.pread(staging, self._block_bytes, block * self._slot_bytes)
            if crc32c(payload) != checksum or len(self._slots) == NUM_SLOTS:
                statuses.append(pb.BLOCK_STATUS_CORRUPT)
                continue
            slot = len(self._slots)
            os.pwrite(self._chunk, payload, slot * self._slot_bytes)
            self._slots[key] = (slot, checksum)
            statuses.append(pb.BLOCK_STATUS_PRESENT)
        return pb.CommitResponse(statuses=statuses)


def _unpack(packed: bytes) -> list[bytes]:
    return [packed[start : start + 16] for start in range(0, len(packed), 16)]


@contextmanager
def lying_store(path: Path, block_bytes: int) -> Iterator[LyingStore]:
    """A store that listens at a path, ended with the context."""
    store = LyingStore(path, block_bytes)
    try:
        yield store
    finally:
        store.close()
