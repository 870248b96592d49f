"""min_p, top_k, top_p and typical_p of one row by one program: how low a score may be, found by counting and summing.

Each pass over the row measures four scores at once: how many tokens have at least that, and what they weigh. Where the
wanted score must lie between two of them, the next pass looks there. As soon as few enough tokens are left between
(or above, for filters that keep few), they are copied aside, and later passes read only those.

Scores are logits with temperature, the largest being 0, or their negative distance from the mean for typical_p. Tokens
below e^-40 of the largest's probability are never drawn: all of them together are less than 1e-12.
"""

from __future__ import annotations

import triton
import triton.language as tl

_FLOOR, _LEAST = tl.constexpr(-40.0), tl.constexpr(4.25e-18)  # and its exponential
_MAX_PASSES = tl.constexpr(20)
"""Each leaves a fifth: 40 / 5**20 is less than what float32 tells apart, so that only ties are left between."""


@triton.jit
def read_tile(source, at, length, largest, scale):
    """Logits of places `at` with temperature, -inf beyond `length`, and their weights."""
    return _scale(tl.load(source + at, mask=at < length, other=float("-inf")), largest, scale)


@triton.jit
def _scale(x, largest, scale):
    x = tl.minimum(tl.where(x == x, x, float("-inf")), 3.4028234663852886e38)
    z = (x - largest) * scale
    return z, tl.exp(z)


@triton.jit
def filter_row(
    source, length, masses, largest, scale, values, ids, min_p, top_k, top_p, typical_p,
    CHUNK: tl.constexpr, CHUNKS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """What the filters keep of a row of `length` logits, whose chunks weigh `masses` [CHUNKS].

    Returns a row that holds all of that in order (the given one, or `values` with the tokens in `ids`), its length,
    what is kept of each of its chunks, and the kept scores' lowest, center and greatest distance from that.
    """
    cuts_low = min_p > _LEAST
    lowest = tl.where(cuts_low, tl.log(tl.maximum(min_p, _LEAST)), _FLOOR)
    whole_mass = tl.sum(masses, 0)
    is_whole = (top_k == 0) & (cuts_low == 0)  # top_p is the first filter, and of all tokens
    needed = tl.where(
        is_whole & (top_p < 1.0), whole_mass * top_p * 1.00001, float("inf")
    )  # other sums round otherwise
    start, count = _enough(source, length, largest, scale, lowest, top_k, needed, CHUNK, WIDTH)
    if (count <= CHUNK) & (count < length):
        _gather(source, length, largest, scale, start, 0.0, False, start, 1.0, values, ids, CHUNK)
        source, length = values, count
    center, width = 0.0, float("inf")
    for stage in range(3):
        is_typical = stage == 2
        if ((stage == 0) & (top_k > 0)) | ((stage == 1) & (top_p < 1.0)) | (is_typical & (typical_p < 1.0)):
            kept, mass, least, mean = _totals(source, length, largest, scale, lowest, CHUNK, WIDTH)
            mass = tl.where(is_whole & (stage == 1), whole_mass, mass)  # the row may be cut already
            center = tl.where(is_typical, mean, 0.0)
            low = tl.where(is_typical, -tl.maximum(mean - least, -mean), least)
            wanted_count = tl.where(stage == 0, top_k, 0)
            wanted_mass = tl.where(stage == 0, 0.0, mass * tl.where(is_typical, typical_p, top_p))
            if kept > wanted_count:
                found = _search(
                    source, length, largest, scale, lowest, center, is_typical, low, kept, wanted_count, wanted_mass,
                    values, ids, CHUNK, WIDTH
                )  # fmt: skip
                lowest = tl.where(is_typical, lowest, found)
                width = tl.where(is_typical, -found, width)
    masses = _masses(source, length, largest, scale, lowest, center, width, CHUNK, CHUNKS, WIDTH)
    return source, length, masses, lowest, center, width


@triton.jit
def _score(z, lowest, center, is_typical):
    return tl.where(z >= lowest, tl.where(is_typical, -tl.abs(z - center), z), float("-inf"))


@triton.jit
def _tile(CHUNK: tl.constexpr, WIDTH: tl.constexpr):
    """[CHUNK / WIDTH, WIDTH] places: sums over the first axis stay in a thread."""
    return tl.arange(0, CHUNK // WIDTH)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]


@triton.jit
def _measure(
    source, length, largest, scale, lowest, center, is_typical, s1, s2, s3, s4, CHUNK: tl.constexpr,
    WIDTH: tl.constexpr
):  # fmt: skip
    """How many tokens have at least each of four scores, and what they weigh."""
    n1, n2, n3, n4 = (tl.zeros([WIDTH], tl.int32), tl.zeros([WIDTH], tl.int32), tl.zeros([WIDTH], tl.int32),
                      tl.zeros([WIDTH], tl.int32))  # fmt: skip
    w1, w2, w3, w4 = (tl.zeros([WIDTH], tl.float32), tl.zeros([WIDTH], tl.float32), tl.zeros([WIDTH], tl.float32),
                      tl.zeros([WIDTH], tl.float32))  # fmt: skip
    at = _tile(CHUNK, WIDTH)
    for begin in range(0, length, CHUNK):
        z, weight = read_tile(source, begin + at, length, largest, scale)
        score = _score(z, lowest, center, is_typical)
        n1, w1 = _add(n1, w1, score >= s1, weight)
        n2, w2 = _add(n2, w2, score >= s2, weight)
        n3, w3 = _add(n3, w3, score >= s3, weight)
        n4, w4 = _add(n4, w4, score >= s4, weight)
    return (tl.sum(n1, 0), tl.sum(n2, 0), tl.sum(n3, 0), tl.sum(n4, 0),
            tl.sum(w1, 0), tl.sum(w2, 0), tl.sum(w3, 0), tl.sum(w4, 0))  # fmt: skip


@triton.jit
def _add(count, mass, is_member, weight):
    return count + tl.sum(is_member.to(tl.int32), 0), mass + tl.sum(tl.where(is_member, weight, 0.0), 0)


@triton.jit
def _enough(
    source, length, largest, scale, lowest, top_k, needed, CHUNK: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """The highest of four scores that all tokens have which filters keep, and its count; -inf and all if none is.

    That is one from which on `top_k` tokens lie, or the mass `needed`, or that is not above `lowest`.
    """
    n1, n2, n3, n4, w1, w2, w3, w4 = _measure(
        source, length, largest, scale, _FLOOR, 0.0, False, -16.0, -10.0, -6.0, -3.0, CHUNK, WIDTH
    )
    rank = tl.where(top_k > 0, top_k, 2147483647)
    start, count = float("-inf"), length
    start, count = _raise(start, count, -16.0, n1, (n1 >= rank) | (w1 >= needed) | (lowest >= -16.0))
    start, count = _raise(start, count, -10.0, n2, (n2 >= rank) | (w2 >= needed) | (lowest >= -10.0))
    start, count = _raise(start, count, -6.0, n3, (n3 >= rank) | (w3 >= needed) | (lowest >= -6.0))
    return _raise(start, count, -3.0, n4, (n4 >= rank) | (w4 >= needed) | (lowest >= -3.0))


@triton.jit
def _raise(start, count, score, score_count, is_enough):
    return tl.where(is_enough, score, start), tl.where(is_enough, score_count, count)


@triton.jit
def _totals(source, length, largest, scale, lowest, CHUNK: tl.constexpr, WIDTH: tl.constexpr):
    """Of the tokens from `lowest` on: how many, their weight, their lowest score, and the mean score by weight."""
    count, mass = tl.zeros([WIDTH], tl.int32), tl.zeros([WIDTH], tl.float32)
    moment, least = tl.zeros([WIDTH], tl.float32), tl.zeros([WIDTH], tl.float32)
    at = _tile(CHUNK, WIDTH)
    for begin in range(0, length, CHUNK):
        z, weight = read_tile(source, begin + at, length, largest, scale)
        is_member = z >= lowest
        count, mass = _add(count, mass, is_member, weight)
        moment += tl.sum(weight * tl.where(is_member, z, 0.0), 0)
        least = tl.minimum(least, tl.min(tl.where(is_member, z, 0.0), 0))
    total = tl.sum(mass, 0)
    return tl.sum(count, 0), total, tl.min(least, 0), tl.sum(moment, 0) / total


@triton.jit
def _search(
    source, length, largest, scale, lowest, center, is_typical, low, low_count, wanted_count, wanted_mass, values, ids,
    CHUNK: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """The highest score that `wanted_count` tokens have and tokens of `wanted_mass`; `low_count` have `low` or more."""
    high, high_count, high_mass = 1e-3, 0, 0.0  # no score is above 0
    base_count, base_mass = 0, 0.0
    passes = 0
    middle = low + (high - low) * 0.5
    while (low_count - high_count > 1) & (middle > low) & (middle < high) & (passes < _MAX_PASSES):
        step = (high - low) * 0.2
        s1, s2, s3, s4 = low + step, low + 2.0 * step, low + 3.0 * step, low + 4.0 * step
        n1, n2, n3, n4, w1, w2, w3, w4 = _measure(
            source, length, largest, scale, lowest, center, is_typical, s1, s2, s3, s4, CHUNK, WIDTH
        )
        n1, n2, n3, n4 = n1 + base_count, n2 + base_count, n3 + base_count, n4 + base_count
        w1, w2, w3, w4 = w1 + base_mass, w2 + base_mass, w3 + base_mass, w4 + base_mass
        low, low_count, high, high_count, high_mass = _narrow(
            low, low_count, high, high_count, high_mass, s4, n4, w4, wanted_count, wanted_mass
        )
        low, low_count, high, high_count, high_mass = _narrow(
            low, low_count, high, high_count, high_mass, s3, n3, w3, wanted_count, wanted_mass
        )
        low, low_count, high, high_count, high_mass = _narrow(
            low, low_count, high, high_count, high_mass, s2, n2, w2, wanted_count, wanted_mass
        )
        low, low_count, high, high_count, high_mass = _narrow(
            low, low_count, high, high_count, high_mass, s1, n1, w1, wanted_count, wanted_mass
        )
        passes += 1
        middle = low + (high - low) * 0.5
        between = low_count - high_count
        if (length > CHUNK) & (between <= CHUNK):
            _gather(source, length, largest, scale, lowest, center, is_typical, low, high, values, ids, CHUNK)
            source, length = values, between
            base_count, base_mass = high_count, high_mass
    return low


@triton.jit
def _narrow(low, low_count, high, high_count, high_mass, score, count, mass, wanted_count, wanted_mass):
    """Takes a score into account that lies between `low` and `high`."""
    is_inside = (score > low) & (score < high)
    is_enough = (count >= wanted_count) & (mass >= wanted_mass)
    raises, lowers = is_inside & is_enough, is_inside & (is_enough == 0)
    low, low_count = tl.where(raises, score, low), tl.where(raises, count, low_count)
    high, high_count = tl.where(lowers, score, high), tl.where(lowers, count, high_count)
    return low, low_count, high, high_count, tl.where(lowers, mass, high_mass)


@triton.jit
def _gather(
    source, length, largest, scale, lowest, center, is_typical, low, high, values, ids, CHUNK: tl.constexpr
):  # fmt: skip
    """Copies the logits with scores in [low, high), no more than CHUNK, and their places, to `values` and `ids`."""
    tl.debug_barrier()  # other threads may still read what lies there
    filled, at = 0, tl.arange(0, CHUNK)
    x = tl.load(source + at, mask=at < length, other=float("-inf"))
    for begin in range(0, length, CHUNK):
        # Asked for a chunk early: all threads wait for each other in each chunk, and would for the memory as well.
        following = tl.load(source + begin + CHUNK + at, mask=begin + CHUNK + at < length, other=float("-inf"))
        z, _ = _scale(x, largest, scale)
        score = _score(z, lowest, center, is_typical)
        is_member = (score >= low) & (score < high)
        place = filled + tl.cumsum(is_member.to(tl.int32), 0) - 1
        is_member &= place < CHUNK
        tl.store(values + place, x, mask=is_member)
        tl.store(ids + place, begin + at, mask=is_member)
        filled += tl.sum(is_member.to(tl.int32), 0)
        x = following
    tl.debug_barrier()  # other threads read what these have stored


@triton.jit
def _masses(
    source, length, largest, scale, lowest, center, width, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
    WIDTH: tl.constexpr
):  # fmt: skip
    """[CHUNKS] what is kept of each chunk."""
    masses, chunk = tl.zeros([CHUNKS], tl.float32), tl.arange(0, CHUNKS)
    at = _tile(CHUNK, WIDTH)
    for begin in range(0, length, CHUNK):
        z, weight = read_tile(source, begin + at, length, largest, scale)
        weight = tl.where((z >= lowest) & (tl.abs(z - center) <= width), weight, 0.0)
        masses = tl.where(chunk == begin // CHUNK, tl.sum(tl.sum(weight, 0), 0), masses)
    return masses
