"""Frames on the store's Unix socket: a header, then a message of kv_store.proto.

Requests are answered in order. A descriptor travels with the first byte of the response that it belongs to. An answer
that is no message is an error: the gRPC code as status, and a sentence.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

HEADER: Final = struct.Struct("<IHH")
"""Bytes of the body, method, status."""
MAX_BODY_BYTES: Final = 4 << 20
OK: Final = 0


class Method(IntEnum):
    """What a frame asks for, or answers."""

    OPEN = 1
    MAP = 2
    LOOKUP = 3
    RESERVE = 4
    COMMIT = 5
    ACQUIRE = 6
    RELEASE = 7
    PREFETCH = 8
    EVICT = 9


def pack(method: int, body: bytes, status: int = OK) -> bytes:
    """One frame."""
    return HEADER.pack(len(body), method, status) + body
