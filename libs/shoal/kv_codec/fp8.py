"""Half or a quarter of the bytes: each element as an 8-bit float, each group with a scale of its own.

Stored form: a code an element in the payload's order, then an exponent a group (int8). A value is
`e4m3(code) * 2**exponent`. The format is e4m3fn of Micikevicius et al., "FP8 formats for deep learning" (2022):
largest 448, smallest 2**-9, no infinities.

Scales are powers of two. Among floats that costs no precision, as a scale that is not a power of two only shifts
where rounding happens; and it makes scaling and restoring exact, so integers do it: the exponent moves within the bits
of the element, and a table of 32,768 codes rounds. No float arithmetic, hence the same bytes on every machine, and no
dependency: numpy has no such type, ml_dtypes has one but converts an element at a time.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numpy as np

from shoal.kv_codec.shape import BlockShape, Buffer

MIN_EXPONENT: Final = -100
"""Of groups of nothing but tiny values, which become zeros or lose digits."""
MAX_EXPONENT: Final = 100
"""A group with larger values than 448 * 2**100 is refused, as are infinities and NaN: something is wrong with it."""
_ROWS_AT_A_TIME_BYTES: Final = 1 << 18
"""Intermediate arrays of this size stay in the cache between passes."""
_U8 = np.ndarray[Any, np.dtype[np.uint8]]
_U16 = np.ndarray[Any, np.dtype[np.uint16]]


class Fp8:
    """See the module. Payloads are bfloat16 or float32, little-endian."""

    name = "fp8"
    suffix = "+fp8-e4m3-1"

    def __init__(self, shape: BlockShape) -> None:
        self.shape = shape
        self._num_codes = shape.num_groups * shape.group_elements
        self.stored_bytes = self._num_codes + shape.num_groups
        self._rows = max(1, _ROWS_AT_A_TIME_BYTES // (2 * shape.group_elements))

    def encode(self, payload: Buffer, into: bytearray | memoryview) -> None:
        """See `Codec`."""
        target = self._target(into, self.stored_bytes)
        given = self._given(payload, self.shape.payload_bytes)
        codes = target[: self._num_codes].reshape(self.shape.num_groups, -1)
        exponents = target[self._num_codes :].view(np.int8)
        elements = given.view("<u2" if self.shape.dtype == "bfloat16" else "<u4").reshape(self.shape.num_groups, -1)
        for start in range(0, self.shape.num_groups, self._rows):
            rows = slice(start, start + self._rows)
            exponents[rows] = self._encode_rows(elements[rows], codes[rows])

    def decode(self, stored: Buffer, into: bytearray | memoryview) -> None:
        """See `Codec`."""
        given = self._given(stored, self.stored_bytes)
        target = self._target(into, self.shape.payload_bytes)
        codes = given[: self._num_codes].reshape(self.shape.num_groups, -1)
        exponents = given[self._num_codes :].view(np.int8).astype(np.int32)
        if exponents.min() < MIN_EXPONENT or exponents.max() > MAX_EXPONENT:
            raise ValueError(f"a scale is not within 2**{MIN_EXPONENT} and 2**{MAX_EXPONENT}")
        scales = np.ldexp(np.float32(1), exponents)[:, None]
        for start in range(0, self.shape.num_groups, self._rows):
            rows = slice(start, start + self._rows)
            values = np.take(_values(), codes[rows], mode="clip")
            values *= scales[rows]
            if self.shape.dtype == "float32":
                target.view("<f4").reshape(self.shape.num_groups, -1)[rows] = values
            else:  # four significant bits: what is cut off is zero
                elements = target.view("<u2").reshape(self.shape.num_groups, -1)
                np.right_shift(values.view(np.uint32), 16, out=elements[rows], casting="unsafe")

    def _encode_rows(self, elements: np.ndarray[Any, Any], codes: _U8) -> np.ndarray[Any, np.dtype[np.int8]]:
        bits = elements if self.shape.dtype == "bfloat16" else _round_to_odd(elements)
        magnitudes = bits & np.uint16(0x7FFF)
        exponents = _exponents(magnitudes.max(axis=1))
        # The exponent of an element is its bits 7 to 14. What falls below zero is far below the smallest code.
        shifts = (exponents.astype(np.int32) * 128)[:, None]
        if int(shifts.max()) > 0:
            np.maximum(magnitudes, np.maximum(shifts, 0).astype(np.uint16), out=magnitudes)
        magnitudes -= (shifts & 0xFFFF).astype(np.uint16)
        np.take(_codes(), magnitudes, out=codes, mode="clip")
        signs = (bits >> np.uint16(8)).astype(np.uint8)
        signs &= np.uint8(0x80)
        codes |= signs
        return exponents

    def _given(self, data: Buffer, num_bytes: int) -> _U8:
        given = np.frombuffer(data, np.uint8)
        if given.nbytes != num_bytes:
            raise ValueError(f"{given.nbytes} bytes given; a block has {num_bytes}")
        return given

    def _target(self, into: bytearray | memoryview, num_bytes: int) -> _U8:
        target = np.frombuffer(into, np.uint8)
        if target.nbytes != num_bytes or not target.flags.writeable:
            raise ValueError(f"give {num_bytes} writable bytes to write to, not {target.nbytes}")
        return target


def _round_to_odd(words: np.ndarray[Any, np.dtype[np.uint32]]) -> _U16:
    """Float32 as bfloat16 whose last bit says whether anything was cut off: rounding that again is rounding once."""
    kept = (words >> np.uint32(16)).astype(np.uint16)
    kept |= (words & np.uint32(0xFFFF)) != 0
    return kept


def _exponents(largest: _U16) -> np.ndarray[Any, np.dtype[np.int8]]:
    """Of groups whose largest magnitude, as bfloat16 bits, is given: it comes to lie within (224, 448]."""
    exponents = (largest >> np.uint16(7)).astype(np.int32) - 127 - 8  # 448 is 1.75 * 2**8
    exponents += (largest & np.uint16(0x7F)) > 0x60  # above 1.75
    if int(exponents.max()) > MAX_EXPONENT:
        raise ValueError(f"a value is not finite, or larger than 448 * 2**{MAX_EXPONENT}")
    return np.maximum(exponents, MIN_EXPONENT).astype(np.int8)


@cache
def _codes() -> _U8:
    """The code of each bfloat16 magnitude, rounded to nearest, ties to even; 448 for all above."""
    values = (np.arange(0x8000, dtype=np.uint32) << np.uint32(16)).view(np.float32)
    candidates = _magnitudes()
    with np.errstate(invalid="ignore"):
        above = np.searchsorted(candidates, values).clip(1, len(candidates) - 1)
    middle = (candidates[above - 1] + candidates[above]) / 2
    up = (values > middle) | ((values == middle) & (above % 2 == 0))
    codes = np.where(up, above, above - 1).astype(np.uint8)
    codes.flags.writeable = False
    return codes


@cache
def _magnitudes() -> np.ndarray[Any, np.dtype[np.float32]]:
    """What codes 0 to 126 stand for, in order."""
    code = np.arange(127)
    exponent, fraction = code >> 3, code & 7
    values = np.where(exponent == 0, fraction / 512, (1 + fraction / 8) * 2.0 ** (exponent - 7.0))
    return values.astype(np.float32)


@cache
def _values() -> np.ndarray[Any, np.dtype[np.float32]]:
    """What the 256 codes stand for; NaN for 127 and 255, which `encode` never writes."""
    positive = np.append(_magnitudes(), np.float32(np.nan))
    values = np.concatenate([positive, -positive])
    values.flags.writeable = False
    return values
