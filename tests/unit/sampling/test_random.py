import numpy as np
import pytest
from scipy import stats

from shoal.model_worker.sampling.random import philox_4x32, uniforms

# The known answers that Random123 publishes for philox4x32 with 10 rounds: counter, key, words.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[np.ndarray]:
    return [np.array([int(word, 16)], dtype=np.uint64) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_known_answers(counter: str, key: str, expected: str) -> None:
    c0, c1, c2, c3 = words(counter)
    k0, k1 = words(key)
    assert [int(word[0]) for word in philox_4x32((c0, c1, c2, c3), (k0, k1))] == [int(w[0]) for w in words(expected)]


def test_uniforms_lay_out_seed_position_and_choice() -> None:
    seed, position, choice = 0x299F31D0_A4093822, 0x243F6A88, 0x85A308D3
    c0, c1 = words("243f6a88 85a308d3")
    zero = np.zeros(1, dtype=np.uint64)
    k0, k1 = words("a4093822 299f31d0")
    high, low, _, _ = philox_4x32((c0, c1, zero, zero), (k0, k1))
    expected = ((int(high[0]) << 32 | int(low[0])) >> 11) / 2**53
    assert uniforms(np.array([seed], dtype=np.uint64), [position], [choice])[0] == expected


def test_uniforms_do_not_depend_on_their_neighbours() -> None:
    seeds = np.array([0, 1, 2**64 - 1, 5], dtype=np.uint64)
    together = uniforms(seeds, [0, 7, 2**32 - 1, 3], [0, 1, 63, 2])
    alone = [
        uniforms(seeds[i : i + 1], [p], [c])[0] for i, (p, c) in enumerate([(0, 0), (7, 1), (2**32 - 1, 63), (3, 2)])
    ]
    assert together.tolist() == alone


@pytest.mark.parametrize("varied", ["seed", "position", "choice"])
def test_uniforms_are_uniform_along_each_axis(varied: str) -> None:
    count = 20_000
    axis = np.arange(count, dtype=np.uint64)
    fixed = np.full(count, 12, dtype=np.uint64)
    numbers = uniforms(*(axis if name == varied else fixed for name in ("seed", "position", "choice")))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert stats.kstest(numbers, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.03
