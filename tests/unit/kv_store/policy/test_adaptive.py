"""The adaptive policy, in C and in Python."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from shoal.kv_store.policy.native_adaptive import NativeAdaptive
from shoal.kv_store.policy.policies import adaptive
from shoal.kv_store.policy.python_adaptive import PythonAdaptive
from shoal.native import NativeBuildError, find_compiler

Make = Callable[[int], NativeAdaptive | PythonAdaptive]


@pytest.fixture(params=["native", "python"])
def make(request: pytest.FixtureRequest) -> Make:
    if request.param == "python":
        return PythonAdaptive
    try:
        find_compiler()
    except NativeBuildError as error:
        pytest.skip(str(error))
    return NativeAdaptive


def key(number: int) -> bytes:
    return random.Random(number).randbytes(16)


def use(policy: NativeAdaptive | PythonAdaptive, number: int, capacity: int) -> bool:
    """One access to a tier of `capacity` blocks; whether it was a hit."""
    if key(number) in policy:
        policy.touch(key(number))
        return True
    if policy.admit(key(number), 1, 1.0):
        if len(policy) >= capacity:
            assert policy.victim(lambda _: True) is not None
        policy.insert(key(number), 1, 1.0, None)
    return False


def hit_ratio(policy: NativeAdaptive | PythonAdaptive, numbers: Iterator[int], capacity: int) -> float:
    hits = [use(policy, number, capacity) for number in numbers]
    return sum(hits) / len(hits)


def test_it_is_lru_while_nothing_was_learned(make: Make) -> None:
    policy = make(4)
    for number in range(4):
        policy.insert(key(number), 1, 1.0, None)
    assert [policy.victim(lambda _: True) for _ in range(5)] == [*(key(number) for number in range(4)), None]


def test_a_block_used_more_often_stays_longer(make: Make) -> None:
    policy = make(64)
    for number in range(8):
        policy.insert(key(number), 1, 1.0, None)
    policy.touch_all([key(0), key(1)] * 3)
    for _ in range(40):  # reuse of what was used twice or more is seen, that of others is not
        policy.touch_all([key(0), key(1)])
    assert [policy.victim(lambda _: True) for _ in range(6)] == [key(number) for number in range(2, 8)]


def test_what_is_read_once_does_not_push_out_what_is_read_again(make: Make) -> None:
    rng = random.Random(1)

    def numbers() -> Iterator[int]:
        for i in range(6000):
            yield rng.randrange(80) if i % 2 else 1000 + i

    # Half of the last 100 blocks, which LRU keeps, are never read again: it hits in about 0.23 of all accesses.
    assert hit_ratio(make(100), numbers(), 100) > 0.42


def test_a_loop_larger_than_the_tier_hits(make: Make) -> None:
    assert hit_ratio(make(100), iter([i % 150 for i in range(9000)]), 100) > 0.3  # LRU: 0; at most 0.66


def test_new_blocks_are_admitted_again_when_there_is_room(make: Make) -> None:
    policy = make(100)
    hit_ratio(policy, iter([1000 + i if i % 2 else i // 2 % 98 for i in range(6000)]), 100)
    for number in range(8000, 8050):
        use(policy, number, 100)
    assert sum(key(number) in policy for number in range(8000, 8050)) < 10
    for number in range(50):
        policy.remove(key(number))
    assert all(policy.admit(key(number), 1, 1.0) for number in range(2000, 2010))


def test_ghosts_count_as_uses(make: Make) -> None:
    policy = make(100)
    for number in range(100):
        policy.insert(key(number), 1, 1.0, None)
    for _ in range(30):
        policy.touch_all([key(number) for number in range(50, 100)])
    assert policy.victim(lambda _: True) == key(0)
    assert not policy.admit(key(500), 1, 1.0) or policy.victim(lambda _: True) == key(1)
    policy.insert(key(0), 1, 1.0, None)  # its second use, so it outlives those used once
    for number in range(1, 50):
        if key(number) in policy:
            assert policy.victim(lambda _: True) == key(number)
    assert policy.victim(lambda _: True) == key(0)


def test_cheap_blocks_go_before_dear_ones(make: Make) -> None:
    policy = make(3200)  # so many that all have the same age
    for number in range(9):
        policy.insert(key(number), 100, [1.0, 8.0, 0.1][number % 3], None)
    order = [policy.victim(lambda _: True) for _ in range(9)]
    assert {each for each in order[:3] if each} == {key(2), key(5), key(8)}
    assert {each for each in order[-3:] if each} == {key(1), key(4), key(7)}


def test_ranks_follow_the_rates_that_were_seen(make: Make) -> None:
    policy = make(3200)
    before = [policy.rank(1, bucket) for bucket in range(19)]
    assert before == sorted(before, reverse=True)  # as in LRU
    assert all(policy.rank(uses, 5) == before[5] for uses in range(1, 6))
    for number in range(6400):
        policy.insert(key(number), 1, 1.0, None)
        if number >= 1600:
            policy.touch(key(number - 1600))  # always half a capacity later: 32 units of 100 accesses, or 16
    assert policy.rank(1, 10) > 10 * policy.rank(1, 16)
    assert policy.rank(2, 10) < policy.rank(1, 10) / 10  # twice, and never again


@pytest.mark.parametrize("seed", range(3))
def test_native_and_python_agree_on_every_victim(seed: int) -> None:
    try:
        native = NativeAdaptive(50)
    except NativeBuildError as error:
        pytest.skip(str(error))
    python, rng, pinned = PythonAdaptive(50), random.Random(seed), set[bytes]()
    keys = [key(number) for number in range(200)]

    def is_evictable(each: bytes) -> bool:
        return each not in pinned

    for step in range(5000):
        each, size, cost = keys[min(int(rng.expovariate(0.03)), 199)], rng.choice([1, 3]), rng.choice([0.0, 1.0, 5.0])
        action = rng.random()
        if action < 0.4:
            native.touch(each)
            python.touch(each)
        elif action < 0.85:
            admitted = native.admit(each, size, cost)
            assert admitted == python.admit(each, size, cost), step
            if admitted:
                parent = rng.choice(keys)
                native.insert(each, size, cost, None if parent == each else parent)
                python.insert(each, size, cost, None if parent == each else parent)
        elif action < 0.9:
            native.remove(each)
            python.remove(each)
        elif action < 0.95:
            pinned.symmetric_difference_update({each})
        while len(native) > 50 - len(pinned) // 10:
            found = native.victim(is_evictable)
            assert found == python.victim(is_evictable), step
            if found is None:
                break
        assert len(native) == len(python)
    for uses in range(1, 6):
        for bucket in range(19):
            assert native.rank(uses, bucket) == python.rank(uses, bucket)


def test_memory_per_block_with_a_million_blocks() -> None:
    try:
        policy = NativeAdaptive(1 << 20)
    except NativeBuildError as error:
        pytest.skip(str(error))
    for number in range((1 << 20) - 1):
        policy.insert(number.to_bytes(16, "little"), 1, 1.0, None)
    assert policy.num_bytes / len(policy) < 100


def test_bad_keys_are_refused(make: Make) -> None:
    if make is PythonAdaptive:
        pytest.skip("keys of any length work in Python")
    policy = make(8)
    with pytest.raises(ValueError, match="16 bytes"):
        policy.insert(b"short", 1, 1.0, None)
    with pytest.raises(ValueError, match="16 bytes"):
        policy.touch_all([b"short"])
    assert b"short" not in policy


def test_python_takes_over_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(num_blocks: int) -> NativeAdaptive:
        raise NativeBuildError("no compiler")

    monkeypatch.setattr("shoal.kv_store.policy.policies.NativeAdaptive", fail)
    assert isinstance(adaptive(8), PythonAdaptive)
