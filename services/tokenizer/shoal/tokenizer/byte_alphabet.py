"""The alphabet of byte-level vocabularies: one printable character for each byte (GPT-2's table).

Bytes that are printable in Latin-1 stand for themselves; the others get the characters from U+0100 on, in order.
"""

from __future__ import annotations

from typing import Final

_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_REST = [byte for byte in range(256) if byte not in _PRINTABLE]
CHAR_OF_BYTE: Final[tuple[str, ...]] = tuple(
    chr(byte) if byte in _PRINTABLE else chr(0x100 + _REST.index(byte)) for byte in range(256)
)
BYTE_OF_CHAR: Final = {char: byte for byte, char in enumerate(CHAR_OF_BYTE)}


def spell_bytes(data: bytes) -> str:
    """`data` in the alphabet."""
    return "".join(CHAR_OF_BYTE[byte] for byte in data)


def read_spelling(text: str) -> bytes | None:
    """The bytes that `text` spells, or None when it holds a character outside of the alphabet."""
    try:
        return bytes([BYTE_OF_CHAR[char] for char in text])
    except KeyError:
        return None
