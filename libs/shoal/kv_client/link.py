"""One connection to the store: frames, descriptors, and the memory that came with them."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import time
from collections.abc import Iterator
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.kv_client.failures import LinkBroken as LinkBroken
from shoal.kv_client.failures import Refused as Refused
from shoal.kv_client.frames import HEADER, MAX_BODY_BYTES, OK, Method, pack
from shoal.kv_client.mapping import MappedChunk as MappedChunk
from shoal.kv_client.mapping import MappedMemory as MappedMemory
from shoal.kv_client.mapping import address_of as address_of
from shoal.kv_client.mapping import map_bytes, map_rows
from shoal.kv_client.options import KvClientOptions
from shoal.kv_client.roots import NUM_BUCKETS

_M = TypeVar("_M", bound=Message)
_READ_BYTES: Final = 1 << 16
_MAX_DESCRIPTORS: Final = 4
_MAX_BATCH: Final = MAX_BODY_BYTES // 32
"""Keys of a call, which take half a body, whatever the store says."""


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
                known = self._chunks[number] = MappedChunk(self._take_descriptor(), shape, self.block_bytes)
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
        if not self.session.max_batch_size:
            raise LinkBroken("the store takes no keys at all")
        self.max_batch_size = min(self.session.max_batch_size, _MAX_BATCH)
        self.num_staging_blocks = options.num_staging_blocks
        with _breaking():
            if options.num_staging_blocks:
                stride, fd = self.session.staging_stride, self._take_descriptor()
                self.staging = map_rows(fd, options.num_staging_blocks, stride, options.block_bytes)
            if self.session.num_root_buckets:
                if self.session.num_root_buckets != NUM_BUCKETS:
                    raise LinkBroken("the store counts first blocks in another way")
                self.roots = map_bytes(self._take_descriptor(), NUM_BUCKETS)

    def _take_descriptor(self) -> int:
        if not self._descriptors:
            raise LinkBroken("a descriptor is missing")
        return self._descriptors.pop(0)

    def _send(self, method: Method, request: Message) -> None:
        if self._descriptors:
            raise LinkBroken("the store sent a descriptor that nobody asked for")
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
