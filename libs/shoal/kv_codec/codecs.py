"""Codecs by name."""

from __future__ import annotations

from typing import Final

from shoal.kv_codec.fp8 import Fp8
from shoal.kv_codec.shape import BlockShape as BlockShape
from shoal.kv_codec.shape import Buffer
from shoal.kv_codec.shape import Codec as Codec

NAMES: Final = ("none", "fp8")


class Identity:
    """Stores payloads as they are. A caller may as well copy."""

    name = "none"
    suffix = ""

    def __init__(self, shape: BlockShape) -> None:
        self.stored_bytes = shape.payload_bytes

    def encode(self, payload: Buffer, into: bytearray | memoryview) -> None:
        """See `Codec`."""
        self._copy(payload, into)

    def decode(self, stored: Buffer, into: bytearray | memoryview) -> None:
        """See `Codec`."""
        self._copy(stored, into)

    def _copy(self, source: Buffer, into: bytearray | memoryview) -> None:
        given, target = memoryview(source).cast("B"), memoryview(into).cast("B")
        if given.nbytes != self.stored_bytes or target.nbytes != self.stored_bytes:
            raise ValueError(f"{given.nbytes} bytes into {target.nbytes}; a block has {self.stored_bytes}")
        target[:] = given


def make_codec(name: str, shape: BlockShape) -> Codec:
    """Raises ValueError for a name that is not in NAMES."""
    if name == "none":
        return Identity(shape)
    if name == "fp8":
        return Fp8(shape)
    raise ValueError(f"codec is {name!r}; it can be {', '.join(NAMES)}")
