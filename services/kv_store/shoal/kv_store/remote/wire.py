"""The data connection: a hello up, an answer and payloads down, a receipt up; then the next hello.

A ticket's payloads are one run of bytes, block after block. A hello says from where and up to where it wants them,
which is how a transfer goes on after its connection broke. The receipt ends the ticket: memory that is being sent has
to stay as it is until the other side has it, since `sendfile` gives the network the pages themselves, not copies.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from itertools import pairwise
from typing import Final

MAGIC: Final = b"SHKV"
VERSION: Final = 1
TICKET_BYTES: Final = 32
BINDING_BYTES: Final = 16
HELLO: Final = struct.Struct("<4sHH32s16sQQ")
"""Magic, version, reserved, ticket, binding, first byte, byte after the last."""
ANSWER: Final = struct.Struct("<4sHHQ")
"""Magic, version, status, bytes that follow."""
RECEIPT: Final = struct.Struct("<4sHHQ")
"""Magic, version, status, bytes that arrived."""


class Status(IntEnum):
    """Of an answer, or of a receipt."""

    OK = 0
    NO_SUCH_TICKET = 1
    """Unknown, used, expired, or for something else: which of these is nobody's business."""
    BUSY = 2
    BAD_OFFSET = 3
    MALFORMED = 4
    CORRUPT = 5
    """Of a receipt: a payload did not have its checksum."""


@dataclass(frozen=True, slots=True)
class Hello:
    """What a reader asks for."""

    ticket: bytes
    binding: bytes
    offset: int
    end: int

    def pack(self) -> bytes:
        """As bytes."""
        return HELLO.pack(MAGIC, VERSION, 0, self.ticket, self.binding, self.offset, self.end)

    @staticmethod
    def unpack(data: bytes) -> Hello | None:
        """None for bytes that are no hello of this version."""
        if len(data) != HELLO.size:
            return None
        magic, version, _, ticket, binding, offset, end = HELLO.unpack(data)
        return Hello(ticket, binding, offset, end) if (magic, version) == (MAGIC, VERSION) else None


def unpack_reply(layout: struct.Struct, data: bytes) -> tuple[int, int] | None:
    """(status, bytes) of an answer or a receipt; None for anything else."""
    magic, version, status, num_bytes = layout.unpack(data)
    return (status, num_bytes) if (magic, version) == (MAGIC, VERSION) else None


def share_out(num_blocks: int, num_tickets: int) -> list[range]:
    """Which blocks each of several tickets is for; the first ones have one more if need be."""
    each, more = divmod(num_blocks, num_tickets)
    starts = [each * number + min(number, more) for number in range(num_tickets + 1)]
    return [range(start, end) for start, end in pairwise(starts)]


def binding_of(tenant: str, fingerprint: bytes, keys: Iterable[bytes]) -> bytes:
    """What a ticket is for, in short: a ticket is worth nothing to whoever thinks that it is for something else."""
    digest = sha256()
    for part in (tenant.encode(), fingerprint, *keys):
        digest.update(len(part).to_bytes(4, "little") + part)
    return digest.digest()[:BINDING_BYTES]
