"""Where chains belong: the same for everybody, evenly, and moving as little as can be."""

from __future__ import annotations

from collections import Counter
from hashlib import sha256

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.kv_store.remote.rendezvous import anchors, candidates, rank

hosts_of = st.integers(1, 12).map(lambda num: [f"10.0.0.{number}:50064" for number in range(num)])


def units(seed: int, num: int = 300) -> list[bytes]:
    return [sha256(f"{seed}/{number}".encode()).digest()[:16] for number in range(num)]


@given(hosts=hosts_of, seed=st.integers(0, 1 << 32), num=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_a_host_that_comes_or_goes_moves_only_its_own(hosts: list[str], seed: int, num: int) -> None:
    more = [*hosts, "10.0.1.1:50064"]
    for unit in units(seed, 50):
        before, after = rank(unit, hosts, num), rank(unit, more, num)
        assert [host for host in after if host != more[-1]] == before[: len(after) - (more[-1] in after)]
        assert rank(unit, reversed(more), num) == after
        assert len(set(after)) == min(num, len(more))


@given(num_hosts=st.integers(2, 10), seed=st.integers(0, 1 << 32))
@settings(max_examples=20, deadline=None)
def test_units_are_spread_evenly(num_hosts: int, seed: int) -> None:
    hosts = [f"store-{number}.stores:50064" for number in range(num_hosts)]
    found = Counter(rank(unit, hosts, 1)[0] for unit in units(seed, 1000))
    expected = 1000 / num_hosts
    assert set(found) == set(hosts)
    assert max(abs(found[host] - expected) for host in hosts) < 6 * expected**0.5


@given(hosts=hosts_of, seed=st.integers(0, 1 << 32))
@settings(max_examples=20, deadline=None)
def test_a_new_host_takes_its_share(hosts: list[str], seed: int) -> None:
    more = [*hosts, "10.0.1.1:50064"]
    moved = sum(rank(unit, hosts, 1) != rank(unit, more, 1) for unit in units(seed))
    expected = 300 / len(more)
    assert abs(moved - expected) < 6 * expected**0.5


def test_anchors_are_at_growing_depths_from_the_deepest_on() -> None:
    keys = units(1, 100)
    assert anchors(keys) == [keys[63], keys[15], keys[3], keys[0]]
    assert anchors(keys[:3]) == [keys[0]]
    assert anchors([]) == []


@given(length=st.integers(1, 300), growth=st.integers(0, 40))
@settings(max_examples=50, deadline=None)
def test_whoever_has_a_part_of_a_chain_is_among_those_who_are_asked(length: int, growth: int) -> None:
    keys = units(3)
    hosts = [f"10.0.0.{number}:50064" for number in range(20)]
    stored = keys[:length]
    owner = rank(anchors(stored)[0], hosts, 1)[0]
    assert owner in candidates(keys[: length + growth], hosts, 1)


def test_chains_that_share_a_prompt_part_where_they_differ() -> None:
    hosts = [f"10.0.0.{number}:50064" for number in range(8)]
    shared = units(4, 250)
    owners = {rank(anchors(shared + units(100 + talk, 20))[0], hosts, 1)[0] for talk in range(200)}
    assert owners == set(hosts)


def test_long_names_of_hosts_are_told_apart() -> None:
    hosts = [f"{'store.' * 30}{number}:1" for number in range(2)]
    assert {rank(unit, hosts, 1)[0] for unit in units(5)} == set(hosts)
