"""PrefixIndex against a plain model, natively and in Python, and the two against each other."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shoal.blocks import KeyChain
from shoal.gateway.routing import block_table, native_table
from shoal.gateway.routing.block_table import BlockTable, Tier, make_table
from shoal.gateway.routing.native_table import NativeTable
from shoal.gateway.routing.prefix_index import SWEEP_KEYS, CachedPrefix, PrefixIndex
from shoal.gateway.routing.python_table import PythonTable
from shoal.native import NativeBuildError

EXPECT_S = 2.0
WORKERS = ["a", "b", "c", "d"]
KEYS = [bytes([i]) * 16 for i in range(12)]
workers = st.sampled_from(WORKERS)
tiers = st.sampled_from(Tier)
some_keys = st.lists(st.sampled_from(KEYS), max_size=6)
chains = st.integers(0, len(KEYS)).map(lambda n: KEYS[:n])


def has_native() -> bool:
    try:
        NativeTable(1)
    except NativeBuildError:
        return False
    return True


needs_compiler = pytest.mark.skipif(not has_native(), reason="no C compiler here")
TABLES: list[Callable[[int], BlockTable]] = [PythonTable, NativeTable] if has_native() else [PythonTable]
each_table = pytest.mark.parametrize("make", TABLES)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Model:
    """What a PrefixIndex without bounds knows: for each worker and tier a set of keys, and who is expected to hold."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.held: dict[str, dict[Tier, set[bytes]]] = {}
        self.staged: dict[str, dict[Tier, set[bytes]]] = {}
        self.expected: dict[bytes, list[tuple[str, float]]] = {}

    def nothing(self) -> dict[Tier, set[bytes]]:
        return {tier: set() for tier in Tier}

    def unexpect(self, worker: str, keys: list[bytes]) -> None:
        for key in keys:
            self.expected[key] = [e for e in self.expected.get(key, []) if e[0] != worker]

    def store(self, worker: str, keys: list[bytes], tier: Tier) -> None:
        self.held.setdefault(worker, self.nothing())[tier].update(keys)

    def remove(self, worker: str, keys: list[bytes], tier: Tier) -> None:
        if worker in self.held:
            self.held[worker][tier].difference_update(keys)
            if tier is Tier.DEVICE:
                self.unexpect(worker, keys)

    def clear(self, worker: str) -> None:
        self.held[worker] = self.nothing()
        self.unexpect(worker, KEYS)

    def drop(self, worker: str) -> None:
        self.held.pop(worker, None)
        self.staged.pop(worker, None)
        self.unexpect(worker, KEYS)

    def stage(self, worker: str, keys: list[bytes], tier: Tier) -> None:
        self.staged.setdefault(worker, self.nothing())[tier].update(keys)

    def commit(self, worker: str) -> None:
        self.unexpect(worker, KEYS)
        self.held[worker] = self.staged.pop(worker)

    def expect(self, worker: str, keys: list[bytes]) -> None:
        if worker not in self.held:
            return
        now_s = self.clock()
        for key in keys:
            if key not in self.held[worker][Tier.DEVICE]:
                others = [e for e in self.expected.get(key, []) if e[0] != worker and e[1] > now_s]
                self.expected[key] = [*others[-1:], (worker, now_s + EXPECT_S)]

    def withdraw(self, worker: str, keys: list[bytes], made_s: float) -> None:
        if worker in self.held:
            for key in keys:
                expected = self.expected.get(key, [])
                self.expected[key] = [e for e in expected if e[0] != worker or e[1] > made_s + EXPECT_S]

    def prefix(self, worker: str, keys: list[bytes]) -> CachedPrefix:
        device, memory, disk = (self.held[worker][tier] for tier in Tier)
        now_s = self.clock()
        soon = device | {k for k, es in self.expected.items() if any(w == worker and s > now_s for w, s in es)}
        return CachedPrefix(*(depth(held, keys) for held in (device, soon, soon | memory, soon | memory | disk)))


def depth(held: set[bytes], keys: list[bytes]) -> int:
    return next((i for i, key in enumerate(keys) if key not in held), len(keys))


class IndexMachine(RuleBasedStateMachine):
    """Steps that every index takes; `indexes` and `check` are the subclasses'."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.model = Model(self.clock)
        self.indexes: list[PrefixIndex] = []
        self.picks: list[tuple[str, list[bytes], float, list[int]]] = []

    def make_index(self, table: BlockTable) -> PrefixIndex:
        return PrefixIndex(0, expect_s=EXPECT_S, clock=self.clock, table=table)

    @rule(worker=workers, keys=some_keys, tier=tiers)
    def store(self, worker: str, keys: list[bytes], tier: Tier) -> None:
        self.model.store(worker, keys, tier)
        for index in self.indexes:
            index.store(worker, keys, tier)

    @rule(worker=workers, keys=chains)
    def store_chain(self, worker: str, keys: list[bytes]) -> None:
        self.store(worker, keys, Tier.DEVICE)

    @rule(worker=workers, keys=some_keys, tier=tiers)
    def remove(self, worker: str, keys: list[bytes], tier: Tier) -> None:
        self.model.remove(worker, keys, tier)
        for index in self.indexes:
            index.remove(worker, keys, tier)

    @rule(worker=workers)
    def clear(self, worker: str) -> None:
        self.model.clear(worker)
        for index in self.indexes:
            index.clear(worker)

    @rule(worker=workers)
    def drop(self, worker: str) -> None:
        self.model.drop(worker)
        for index in self.indexes:
            index.drop(worker)

    @rule(worker=workers, keys=chains, tier=tiers)
    def stage(self, worker: str, keys: list[bytes], tier: Tier) -> None:
        self.model.stage(worker, keys, tier)
        for index in self.indexes:
            index.stage(worker, keys, tier)

    @precondition(lambda self: self.model.staged)
    @rule(data=st.data(), keep=st.booleans())
    def end_staging(self, data: st.DataObject, keep: bool) -> None:
        worker = data.draw(st.sampled_from(sorted(self.model.staged)))
        if keep:
            self.model.commit(worker)
        else:
            del self.model.staged[worker]
        for index in self.indexes:
            (index.commit if keep else index.abandon)(worker)

    @rule(worker=workers, keys=chains)
    def expect(self, worker: str, keys: list[bytes]) -> None:
        self.model.expect(worker, keys)
        chain = KeyChain.of(keys)
        made = [index.expect(worker, chain) for index in self.indexes]
        if worker in self.model.held:
            self.picks.append((worker, keys, self.clock.now_s, made))

    @precondition(lambda self: self.picks)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        worker, keys, made_s, made = data.draw(st.sampled_from(self.picks))
        self.model.withdraw(worker, keys, made_s)
        for index, expectation in zip(self.indexes, made, strict=True):
            index.withdraw(worker, KeyChain.of(keys), expectation)

    @rule(num_eighths=st.integers(1, 20))
    def wait(self, num_eighths: int) -> None:
        self.clock.now_s += num_eighths / 8

    @rule(keys=st.one_of(some_keys, chains))
    def match(self, keys: list[bytes]) -> None:
        self.check(keys)

    def check(self, keys: list[bytes]) -> None:
        raise NotImplementedError

    @invariant()
    def the_workers_are_known(self) -> None:
        for index in self.indexes:
            assert index.workers == set(self.model.held)
            assert all(index.knows(worker) for worker in self.model.held)


class UnboundedMachine(IndexMachine):
    """Both forms are what the model is."""

    @initialize()
    def make(self) -> None:
        self.indexes = [self.make_index(make(1000)) for make in TABLES]

    def check(self, keys: list[bytes]) -> None:
        expected = {worker: self.model.prefix(worker, keys) for worker in self.model.held}
        for index in self.indexes:
            assert index.match_tiers(keys) == {w: p for w, p in expected.items() if any(p)}
            assert index.match(keys) == {w: p.soon for w, p in expected.items() if p.soon}

    @invariant()
    def keys_are_counted(self) -> None:
        for index in self.indexes:
            for worker, held in self.model.held.items():
                assert [index.num_keys(worker, tier) for tier in Tier] == [len(held[tier]) for tier in Tier]
            assert len(index) >= len(
                set().union(*(keys for held in self.model.held.values() for keys in held.values()))
            )


class BoundedMachine(IndexMachine):
    """A full index claims nothing that the model does not, and both forms forget the same."""

    @initialize(max_keys=st.integers(1, 6))
    def make(self, max_keys: int) -> None:
        self.max_keys = max_keys
        self.indexes = [self.make_index(make(max_keys)) for make in TABLES]

    def check(self, keys: list[bytes]) -> None:
        for index in self.indexes:
            index.settle()
        found = [index.match_tiers(keys) for index in self.indexes]
        assert all(one == found[0] for one in found)
        for worker, prefix in found[0].items():
            assert all(ours <= true for ours, true in zip(prefix, self.model.prefix(worker, keys), strict=True))

    @invariant()
    def both_hold_the_same(self) -> None:
        for index in self.indexes:
            index.settle()
            assert len(index) <= self.max_keys
        counts = [[i.num_keys(w, t) for w in WORKERS for t in Tier] + [len(i)] for i in self.indexes]
        assert all(one == counts[0] for one in counts)


for machine in (UnboundedMachine, BoundedMachine):
    machine.TestCase.settings = settings(deadline=None, max_examples=150, stateful_step_count=40)
TestUnbounded = UnboundedMachine.TestCase
TestBounded = BoundedMachine.TestCase


@each_table
def test_a_chain_too_long_for_the_index_keeps_its_start(make: Callable[[int], BlockTable]) -> None:
    index = PrefixIndex(0, table=make(3))
    index.store("a", KEYS[:6])
    assert index.match(KEYS[:6]) == {"a": 3}


@each_table
def test_what_was_matched_lately_outlives_what_was_not(make: Callable[[int], BlockTable]) -> None:
    index = PrefixIndex(0, table=make(4))
    index.store("a", KEYS[:2])
    index.store("a", KEYS[2:4])
    index.match(KEYS[:2])
    index.store("a", KEYS[4:6])
    assert index.match(KEYS[:2]) == {"a": 2}
    assert index.match(KEYS[2:4]) == {}


@each_table
def test_a_key_of_another_size_is_refused_and_nothing_stored(make: Callable[[int], BlockTable]) -> None:
    index = PrefixIndex(0, table=make(10))
    with pytest.raises(ValueError, match="a block key has 16 bytes, not 15"):
        index.store("a", [KEYS[0], bytes(15), bytes(17)])
    assert index.num_keys("a") == 0


@each_table
@pytest.mark.parametrize("num_workers", [63, 64, 65, 3000])
def test_any_number_of_workers(make: Callable[[int], BlockTable], num_workers: int) -> None:
    index = PrefixIndex(0, table=make(1000))
    names = [f"w{i}" for i in range(num_workers)]
    for i, name in enumerate(names):
        index.store(name, KEYS[: 1 + i % 8])
    assert index.match(KEYS) == {name: 1 + i % 8 for i, name in enumerate(names)}
    for name in names[::2]:
        index.drop(name)
    index.settle()
    for i in range(num_workers, num_workers + 5):
        index.store(f"w{i}", KEYS[:9])
    left = {name: 1 + i % 8 for i, name in enumerate(names) if i % 2}
    assert index.match(KEYS) == left | {f"w{i}": 9 for i in range(num_workers, num_workers + 5)}


@needs_compiler
def test_slots_that_run_out_are_swept_at_once_and_then_refused() -> None:
    index = PrefixIndex(0, table=NativeTable(4))
    for _ in range(20_000):  # one worker that restarts forever
        index.stage("a", KEYS[:1])
        index.commit("a")
    assert index.match(KEYS) == {"a": 1}
    for i in range(16_383):
        index.store(f"w{i}", [])
    with pytest.raises(RuntimeError, match="it takes 16,384"):
        index.store("one too many", [])


@each_table
def test_forgetting_a_large_worker_is_spread_over_many_calls(make: Callable[[int], BlockTable]) -> None:
    num_keys = 10 * SWEEP_KEYS
    index = PrefixIndex(0, table=make(2 * num_keys))
    index.store("a", [i.to_bytes(16, "big") for i in range(1, num_keys + 1)])
    index.store("b", KEYS[:3])
    index.drop("a")
    assert len(index) == num_keys + 3
    lengths = [num_keys + 3]
    while lengths[-1] > 3:
        assert index.match(KEYS) == {"b": 3}
        lengths.append(len(index))
        assert lengths[-2] - lengths[-1] <= SWEEP_KEYS
        assert len(lengths) < 15
    assert index.num_keys("b") == 3


@needs_compiler
def test_a_block_costs_less_than_100_bytes() -> None:
    def resident() -> int:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    index = PrefixIndex(0, table=NativeTable(1 << 19))
    before = resident()
    for i in range(400):
        index.store(f"w{i % 64}", [os.urandom(16) for _ in range(1000)])
    assert len(index) == 400_000
    assert resident() - before < 100 * 400_000


def test_a_chain_is_hashed_little_further_than_anybody_matches() -> None:
    index = PrefixIndex(10_000)
    tokens = list(range(4000))
    index.store("a", list(KeyChain(bytes(16), tokens[:200], 4)))
    chain = KeyChain(bytes(16), tokens, 4)
    assert index.match(chain) == {"a": 50}
    assert 50 < chain.num_hashed < 500


def test_expectations_count_until_their_time_ends() -> None:
    clock = Clock()
    index = PrefixIndex(100, expect_s=EXPECT_S, clock=clock)
    index.store("a", KEYS[:1])
    index.expect("a", KeyChain.of(KEYS[:4]))
    index.expect("nobody", KeyChain.of(KEYS[:4]))
    assert index.match_tiers(KEYS) == {"a": CachedPrefix(1, 4, 4, 4)}
    clock.now_s += EXPECT_S / 2
    index.store("a", KEYS[1:2])
    assert index.match_tiers(KEYS) == {"a": CachedPrefix(2, 4, 4, 4)}
    clock.now_s += EXPECT_S / 2
    assert index.match_tiers(KEYS) == {"a": CachedPrefix(2, 2, 2, 2)}
    assert index.workers == {"a"}


def test_an_expectation_is_withdrawn_unless_a_later_pick_shares_it() -> None:
    clock = Clock()
    index = PrefixIndex(100, expect_s=EXPECT_S, clock=clock)
    index.store("a", KEYS[:1])
    first, second = KeyChain.of(KEYS[:4]), KeyChain.of(KEYS[:2])
    expectation = index.expect("a", first)
    clock.now_s += EXPECT_S / 2
    index.expect("a", second)
    index.withdraw("a", first, expectation)
    assert index.match_tiers(KEYS) == {"a": CachedPrefix(1, 2, 2, 2)}
    index.withdraw("nobody", first, index.expect("nobody", first))
    assert len(index) == 2


def test_without_a_compiler_it_runs_in_python_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise NativeBuildError("there is no C compiler")

    monkeypatch.setattr(native_table, "build", refuse)
    monkeypatch.setattr(block_table, "NativeTable", UncachedTable)
    with caplog.at_level(logging.WARNING):
        assert isinstance(make_table(10), PythonTable)
    assert "there is no C compiler" in caplog.text


class UncachedTable(NativeTable):
    def __init__(self, max_keys: int) -> None:
        native_table._library.__wrapped__()
        super().__init__(max_keys)
