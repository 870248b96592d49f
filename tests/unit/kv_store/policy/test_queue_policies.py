"""LRU, S3-FIFO and ARC by hand: each sequence ends differently under each of them."""

from __future__ import annotations

import pytest

from shoal.kv_store.policy import POLICIES, Policy, make_policy
from shoal.kv_store.policy.arc import Arc
from shoal.kv_store.policy.lru import Lru
from shoal.kv_store.policy.s3_fifo import S3Fifo


def key(name: str) -> bytes:
    return name.encode().ljust(16, b".")


def name_of(found: bytes | None) -> str | None:
    return None if found is None else found.decode().rstrip(".")


def insert(policy: Policy, names: str) -> None:
    for name in names:
        policy.insert(key(name), 1, 1.0, None)


def touch(policy: Policy, names: str) -> None:
    policy.touch_all([key(name) for name in names])


def victims(policy: Policy, count: int) -> str:
    found = [name_of(policy.victim(lambda _: True)) for _ in range(count)]
    return "".join(name or "-" for name in found)


def test_lru_gives_up_what_was_used_longest_ago() -> None:
    policy = Lru()
    insert(policy, "abcd")
    touch(policy, "a")
    touch(policy, "c")
    assert victims(policy, 5) == "bdac-"


def test_s3_fifo_moves_what_was_used_twice_to_the_main_queue() -> None:
    policy = S3Fifo()
    insert(policy, "abcdefghij")
    touch(policy, "aab")  # a: 2, moves to main; b: 1, does not
    assert victims(policy, 2) == "bc"
    assert victims(policy, 8) == "defghija"


def test_s3_fifo_takes_ghosts_into_the_main_queue() -> None:
    policy = S3Fifo(small_fraction=0.5)
    insert(policy, "abcd")
    assert victims(policy, 1) == "a"
    insert(policy, "a")  # main: a; small: b c d
    assert victims(policy, 2) == "bc"
    # Half of what is held may be in the small queue: of a and d, d is.
    assert victims(policy, 2) == "da"


def test_s3_fifo_gives_blocks_of_the_main_queue_a_turn_for_each_use() -> None:
    policy = S3Fifo(small_fraction=0.5)
    insert(policy, "abcdef")
    assert victims(policy, 2) == "ab"
    insert(policy, "ab")  # both are ghosts; main: a b; small: c d e f
    touch(policy, "a")
    for name in "cdef":
        policy.remove(key(name))
    assert victims(policy, 2) == "ba"


def test_s3_fifo_forgets_the_oldest_ghosts() -> None:
    policy = S3Fifo(small_fraction=0.5)
    insert(policy, "abcd")
    assert victims(policy, 3) == "abc"  # room for 0.5 * (1 + 1) = 1 ghost: c
    insert(policy, "c")
    assert victims(policy, 2) == "dc"  # c is in main
    insert(policy, "ba")
    assert victims(policy, 2) == "ba"  # b was no ghost, so it is in the small queue, before a


def test_arc_prefers_to_give_up_what_was_used_once() -> None:
    policy = Arc()
    insert(policy, "abcd")
    touch(policy, "ab")
    assert victims(policy, 4) == "cdab"


def test_arc_learns_from_ghosts_of_blocks_used_once() -> None:
    policy = Arc()
    insert(policy, "abcd")
    touch(policy, "ab")  # again: a b; once: c d
    assert victims(policy, 1) == "c"
    insert(policy, "c")  # a ghost of `once`: its share becomes 1, and c comes to `again`
    assert victims(policy, 1) == "a"  # `once` has 1 block, not more than its share
    insert(policy, "e")
    assert victims(policy, 1) == "d"  # 2 blocks again


def test_arc_learns_back_from_ghosts_of_blocks_used_again() -> None:
    policy = Arc()
    insert(policy, "abcd")
    touch(policy, "ab")
    assert victims(policy, 1) == "c"
    insert(policy, "c")
    assert victims(policy, 1) == "a"
    insert(policy, "a")  # a ghost of `again`: the share of `once` falls to 0
    assert victims(policy, 1) == "d"


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_children_go_before_their_parents(name: str) -> None:
    policy = POLICIES[name](8)
    policy.insert(key("a"), 1, 1.0, None)
    policy.insert(key("b"), 1, 1.0, key("a"))
    policy.insert(key("c"), 1, 1.0, key("b"))
    policy.insert(key("d"), 1, 1.0, key("a"))
    touch(policy, "ccd")  # the leaves are the newest
    order = victims(policy, 4)
    assert order.index("c") < order.index("b") < order.index("a")
    assert order.index("d") < order.index("a")


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_pinned_blocks_are_no_victims_until_they_are_free(name: str) -> None:
    policy = POLICIES[name](8)
    insert(policy, "abc")
    pinned = {key("a"), key("b")}
    assert policy.victim(lambda k: k not in pinned) == key("c")
    assert policy.victim(lambda k: k not in pinned) is None
    pinned.remove(key("b"))
    assert policy.victim(lambda k: k not in pinned) == key("b")
    assert policy.victim(lambda k: k not in pinned) is None
    assert len(policy) == 1
    assert key("a") in policy


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_pins_do_not_slow_down_later_victims(name: str) -> None:
    policy = POLICIES[name](4096)
    pinned = {i.to_bytes(16, "little") for i in range(1000)}
    for each in sorted(pinned):
        policy.insert(each, 1, 1.0, None)
    for i in range(2000, 2100):
        policy.insert(i.to_bytes(16, "little"), 1, 1.0, None)
    asked = 0

    def is_evictable(each: bytes) -> bool:
        nonlocal asked
        asked += 1
        return each not in pinned

    for _ in range(100):
        assert policy.victim(is_evictable) is not None
    assert asked <= 1000 + 2 * 100 + 1


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_a_removed_parent_leaves_its_children(name: str) -> None:
    policy = POLICIES[name](8)
    policy.insert(key("a"), 1, 1.0, None)
    policy.insert(key("b"), 1, 1.0, key("a"))
    policy.remove(key("a"))
    assert key("a") not in policy
    insert(policy, "x")
    policy.remove(key("b"))
    policy.insert(key("a"), 1, 1.0, key("b"))  # of a block that is not held
    assert sorted(victims(policy, 3)) == ["-", "a", "x"]


def test_an_unknown_policy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'mru'; there are adaptive, arc, lru, s3_fifo"):
        make_policy("mru", 1 << 20, 1 << 10)
