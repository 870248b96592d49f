"""What a codec knows of a block, and what every codec does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, Protocol

ElementType = Literal["bfloat16", "float32"]
_ELEMENT_BYTES: Final[dict[str, int]] = {"bfloat16": 2, "float32": 4}
Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class BlockShape:
    """A block as groups of elements that lie side by side: in Shoal's caches one layer, K or V, and KV head each."""

    num_groups: int
    """2 * layers * KV heads."""
    group_elements: int
    """Tokens of a block * head size."""
    dtype: ElementType

    def __post_init__(self) -> None:
        if self.num_groups < 1 or self.group_elements < 1:
            raise ValueError(f"a block of {self.num_groups} groups of {self.group_elements} elements; give 1 or more")
        if self.dtype not in _ELEMENT_BYTES:
            raise ValueError(f"dtype is {self.dtype!r}; it can be bfloat16 or float32")

    @property
    def payload_bytes(self) -> int:
        """Of a block in the cache."""
        return self.num_groups * self.group_elements * _ELEMENT_BYTES[self.dtype]


class Codec(Protocol):
    """Turns payloads of one shape into stored bytes of one size and back. Safe from several threads."""

    @property
    def name(self) -> str:
        """As in configuration."""

    @property
    def suffix(self) -> str:
        """What to append to the KV layout's name in the namespace; empty when stored bytes are the payload's."""

    @property
    def stored_bytes(self) -> int:
        """Of every block: one fingerprint has one size."""

    def encode(self, payload: Buffer, into: bytearray | memoryview) -> None:
        """Writes the stored form. Raises ValueError for another size, or for values that the codec cannot hold."""

    def decode(self, stored: Buffer, into: bytearray | memoryview) -> None:
        """Writes the payload. Raises ValueError for another size, or for bytes that `encode` cannot have written."""
