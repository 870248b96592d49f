"""Counter-based randomness, so that a token depends on its request and position, never on batch, worker or attempt.

The generator is Philox-4x32 with 10 rounds (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3",
SC 2011), which Triton's `tl.rand` family uses as well: a GPU kernel that calls `philox(seed, position, choice, 0, 0)`
gets the same words.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

UInt64Array = NDArray[np.uint64]

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox_4x32(
    counter: tuple[UInt64Array, UInt64Array, UInt64Array, UInt64Array], key: tuple[UInt64Array, UInt64Array]
) -> tuple[UInt64Array, UInt64Array, UInt64Array, UInt64Array]:
    """Four random 32-bit words for each counter and key; both hold 32-bit words in uint64 arrays of one shape."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0 = c0 * _MULTIPLIERS[0]
        product1 = c2 * _MULTIPLIERS[1]
        c0 = (product1 >> _HALF) ^ c1 ^ k0
        c1 = product1 & _LOW
        c2 = (product0 >> _HALF) ^ c3 ^ k1
        c3 = product0 & _LOW
        k0 = (k0 + _KEY_STEPS[0]) & _LOW
        k1 = (k1 + _KEY_STEPS[1]) & _LOW
    return c0, c1, c2, c3


def uniforms(seeds: UInt64Array, positions: ArrayLike, choices: ArrayLike) -> NDArray[np.float64]:
    """[R] numbers in [0, 1), multiples of 2**-53, for [R] 64-bit seeds, output positions and choices (both < 2**32).

    The key is the seed (low word first), the counter (position, choice, 0, 0); of the four words the first is the high
    half of the number and the second the low half.
    """
    key = (seeds & _LOW, seeds >> _HALF)
    position = np.asarray(positions, dtype=np.uint64)
    choice = np.asarray(choices, dtype=np.uint64)
    zero = np.zeros_like(position)
    high, low, _, _ = philox_4x32((position, choice, zero, zero), key)
    bits: UInt64Array = ((high << _HALF) | low) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53
