"""One connection to the store: frames, descriptors, and the memory that came with them."""

from __future__ import annotations

import array
import contextlib
import mmap
import os
import socket
import time
from collections.abc import Iterator
from typing import Final, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.kv_client.frames import HEADER, MAX_BODY_BYTES, OK, Method, pack
from shoal.kv_client.options import KvClientOptions
from shoal.kv_client.roots import NUM_BUCKETS

_M = TypeVar("_M", bound=Message)
_READ_BYTES: Final = 1 << 16
_MAX_DESCRIPTORS: Final = 4
_MADV_POPULATE_READ: Final = 22  # linux/mman.h, since Linux 5.14


class LinkBroken(Exception):
    """The store is away, too slow, or does not speak this protocol. The link is of no use any more."""


class Refused(Exception):
    """The store said no; the link is fine."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class MappedMemory:
    """Shared memory of the store, mapped here as long as this object lives, or somebody views it."""

    def __init__(self, mapping: mmap.mmap, row_bytes: int) -> None:
        """row_bytes: from one block to the next."""
        self.row_bytes = row_bytes
        self.mapping = mapping
        self.memory = memoryview(mapping)
        self.num_bytes = len(mapping)
        self.address = address_of(self.memory)


class MappedChunk(MappedMemory):
    """A chunk of the arena, mapped for reading. Stays readable when the store is gone."""

    def __init__(self, fd: int, shape: pb.MapResponse) -> None:
        """Takes the descriptor. Raises LinkBroken when the sizes do not fit each other, OSError."""
        try:
            num_bytes = os.fstat(fd).st_size
            end = shape.generations_offset + 8 * shape.num_slots
            if num_bytes != shape.num_bytes or end > num_bytes or shape.slot_bytes * shape.num_slots > num_bytes:
                raise LinkBroken("the store described a chunk that is not as large as its file")
            super().__init__(mmap.mmap(fd, num_bytes, mmap.MAP_SHARED, mmap.PROT_READ), shape.slot_bytes)
        finally:
            os.close(fd)
        with contextlib.suppress(OSError):
            self.mapping.madvise(mmap.MADV_HUGEPAGE)
        with contextlib.suppress(OSError):  # page faults now, 30 us a block, and not in the first request
            self.mapping.madvise(_MADV_POPULATE_READ)
        self.generations = self.memory[shape.generations_offset : end].cast("Q")
        self.num_slots = shape.num_slots


class Link:
    """An open session. Not safe for several threads at once; every wait has a deadline."""

    def __init__(self, options: KvClientOptions) -> None:
        """Connects and opens the session. Raises LinkBroken, Refused."""
        self.timeout_s = options.timeout_s
        self._deadline_s = time.monotonic() + options.timeout_s
        self._received = bytearray()
        self._descriptors: list[int] = []
        self._num_unanswered = 0
        self._chunks: dict[int, MappedChunk] = {}
        self.block_bytes = options.block_bytes
        self.staging: MappedMemory | None = None
        self.roots: memoryview | None = None
        """How many chains begin with a key of each bucket, where the store says so."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _breaking():
                self._socket.settimeout(options.timeout_s)
                self._socket.connect(options.socket_path)
            self._open(options)
        except BaseException:
            self.close()
            raise

    def call(self, method: Method, request: Message, kind: type[_M], timeout_s: float | None = None) -> _M:
        """One request and its answer. Raises LinkBroken, Refused."""
        self._deadline_s = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        self._send(method, request)
        while self._num_unanswered:
            self._receive()
            self._num_unanswered -= 1
        answered, status, body = self._receive()
        if answered != method:
            raise LinkBroken(f"an answer to method {answered} came for {method}")
        if status != OK:
            raise Refused(status, body.decode(errors="replace"))
        try:
            return kind.FromString(body)
        except DecodeError as error:
            raise LinkBroken("an answer cannot be read") from error

    def post(self, method: Method, request: Message) -> None:
        """A request whose answer nobody needs; it is read before the next one. Raises LinkBroken."""
        self._deadline_s = time.monotonic() + self.timeout_s
        self._send(method, request)
        self._num_unanswered += 1

    def chunk(self, number: int) -> MappedChunk:
        """The chunk, mapped on first use. Raises LinkBroken, Refused."""
        known = self._chunks.get(number)
        if known is None:
            shape = self.call(Method.MAP, pb.MapRequest(chunk=number), pb.MapResponse)
            with _breaking():
                known = self._chunks[number] = MappedChunk(self._take_descriptor(), shape)
        return known

    def unmap(self, numbers: list[int]) -> None:
        """Forgets chunks; their memory goes with the last view of it."""
        for number in numbers:
            self._chunks.pop(number, None)

    def close(self) -> None:
        """Ends the session. Memory that somebody still views stays mapped until they are done."""
        self._socket.close()
        for fd in self._descriptors:
            os.close(fd)
        self._descriptors.clear()
        self._chunks.clear()

    def _open(self, options: KvClientOptions) -> None:
        scope = pb.Scope(tenant=options.tenant, fingerprint=options.fingerprint)
        request = pb.OpenRequest(
            scope=scope,
            block_bytes=options.block_bytes,
            num_staging_blocks=options.num_staging_blocks,
            token=options.token,
            wants_roots=options.wants_roots,
        )
        self.session = self.call(Method.OPEN, request, pb.OpenResponse)
        self.num_staging_blocks = options.num_staging_blocks
        if options.num_staging_blocks:
            num_bytes = options.num_staging_blocks * self.session.staging_stride
            fd = self._take_descriptor()
            with _breaking():
                try:
                    if self.session.staging_stride < options.block_bytes or os.fstat(fd).st_size < num_bytes:
                        raise LinkBroken("the store gave less staging memory than it said")
                    mapping = mmap.mmap(fd, num_bytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
                    self.staging = MappedMemory(mapping, self.session.staging_stride)
                finally:
                    os.close(fd)

        if self.session.num_root_buckets:
            self.roots = self._map_roots(self._take_descriptor())

    def _map_roots(self, fd: int) -> memoryview:
        with _breaking():
            try:
                if self.session.num_root_buckets != NUM_BUCKETS or os.fstat(fd).st_size < NUM_BUCKETS:
                    raise LinkBroken("the store counts first blocks in another way")
                return memoryview(mmap.mmap(fd, NUM_BUCKETS, mmap.MAP_SHARED, mmap.PROT_READ))
            finally:
                os.close(fd)

    def _take_descriptor(self) -> int:
        if not self._descriptors:
            raise LinkBroken("a descriptor is missing")
        return self._descriptors.pop(0)

    def _send(self, method: Method, request: Message) -> None:
        with _breaking():
            self._socket.settimeout(self._left_s())
            self._socket.sendall(pack(method, request.SerializeToString()))

    def _receive(self) -> tuple[int, int, bytes]:
        self._fill(HEADER.size)
        num_bytes, method, status = HEADER.unpack_from(self._received)
        if num_bytes > MAX_BODY_BYTES:
            raise LinkBroken("an answer is too large")
        end = HEADER.size + num_bytes
        self._fill(end)
        body = bytes(self._received[HEADER.size : end])
        del self._received[:end]
        return method, status, body

    def _fill(self, num_bytes: int) -> None:
        while len(self._received) < num_bytes:
            with _breaking():
                self._socket.settimeout(self._left_s())
                data, ancillary, flags, _ = self._socket.recvmsg(
                    _READ_BYTES, socket.CMSG_SPACE(4 * _MAX_DESCRIPTORS), socket.MSG_CMSG_CLOEXEC
                )
            for level, kind, payload in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds = array.array("i")
                    fds.frombytes(payload[: len(payload) // 4 * 4])
                    self._descriptors.extend(fds)
            if flags & socket.MSG_CTRUNC or len(self._descriptors) > _MAX_DESCRIPTORS:
                raise LinkBroken("the store sent more descriptors than a message has")
            if not data:
                raise LinkBroken("the store closed the connection")
            self._received += data

    def _left_s(self) -> float:
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise LinkBroken(f"no answer within {self.timeout_s} s")
        return left_s


@contextlib.contextmanager
def _breaking() -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise LinkBroken("no answer in time") from error
    except (OSError, ValueError) as error:
        raise LinkBroken(f"cannot reach the store: {error}") from error


def address_of(memory: memoryview) -> int:
    """Where a contiguous buffer begins."""
    return int(np.frombuffer(memory, np.uint8).ctypes.data)
