"""Token ids as the bytes that are hashed."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Final

KEY_BYTES: Final = 16


def to_words(tokens: Sequence[int]) -> array[int]:
    """Little-endian 32-bit words, on any machine. Raises OverflowError when a token does not fit 32 bits unsigned."""
    words = array("I", tokens)
    if words.itemsize != 4:  # the C standard allows others
        raise RuntimeError("array('I') is not 32 bits wide on this platform")
    if _SWAP:
        words.byteswap()
    return words


_SWAP: Final = array("I", [1]).tobytes() != b"\x01\x00\x00\x00"
