"""A log against a dictionary, through clean ends, kills, power cuts and flipped bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shoal.kv_store.disk import Corrupt, Gone, SegmentLog
from support.disk_faults import CAPACITY_BYTES, OPTIONS, SEGMENT_BYTES, key, payload, read, record
from support.memory_disk import MemoryDisk, MemoryFile

NUMBERS = st.integers(0, 30)
SEEDS = st.integers(0, 2**32)


class LivesOfALog(RuleBasedStateMachine):
    """`live` is what the log must have, `possible` what it may have besides (removed, perhaps brought back)."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = MemoryDisk()
        self.live: set[int] = set()
        self.durable: set[int] = set()
        self.possible: set[int] = set()
        self.trusted = True
        self.log = self.open()

    def open(self) -> SegmentLog:
        options = replace(OPTIONS, num_threads=1)
        return SegmentLog("disk", CAPACITY_BYTES, SEGMENT_BYTES, 20.0, options=options, files=self.disk)

    def teardown(self) -> None:
        self.disk.freeze()
        self.log.close()

    @rule(number=NUMBERS, parent=NUMBERS)
    def write(self, number: int, parent: int) -> None:
        known = self.log.find(key(number)) is not None
        self.log.write(record(number) if known else record(number, parent=parent)).result(timeout=20)
        self.live.add(number)
        self.possible.add(number)

    @rule(number=NUMBERS)
    def remove(self, number: int) -> None:
        removed = self.log.remove(key(number))
        assert removed or number not in self.live or not self.trusted
        self.live.discard(number)
        self.durable.discard(number)

    @rule(number=NUMBERS)
    def read(self, number: int) -> None:
        try:
            assert read(self.log, number) == payload(number)
            assert number in self.possible
        except Gone:
            assert number not in self.live or not self.trusted
        except Corrupt:
            assert not self.trusted

    @rule()
    def checkpoint(self) -> None:
        assert self.log.checkpoint()
        self.durable = set(self.live)
        if self.trusted:
            self.possible = set(self.live)

    @rule()
    def end_and_reopen(self) -> None:
        self.log.close()
        self.disk = self.disk.after_kill()
        self.reopen(self.live)

    @rule()
    def kill(self) -> None:
        self.disk.freeze()
        self.disk, dead = self.disk.after_kill(), self.log
        dead.close()
        self.reopen(self.live)

    @rule(seed=SEEDS)
    def cut_the_power(self, seed: int) -> None:
        self.disk.freeze()
        self.disk, dead = self.disk.after_power_cut(seed), self.log
        dead.close()
        self.reopen(self.durable)

    @precondition(lambda self: self.trusted)
    @rule(seed=SEEDS)
    def flip_a_bit(self, seed: int) -> None:
        self.disk.flip(seed)
        self.trusted = False

    @rule()
    def replay(self) -> None:
        replayed = [metadata.key for metadata, _ in self.log.replay()]
        assert len(replayed) == len(set(replayed)) == len(self.log)
        assert set(replayed) <= {key(number) for number in self.possible}

    def reopen(self, expected: set[int]) -> None:
        self.log = self.open()
        found = {number for number in range(31) if self.log.find(key(number)) is not None}
        assert found <= self.possible
        if self.trusted:
            assert expected <= found
            for number in found:
                assert read(self.log, number) == payload(number)
        self.live, self.durable = set(found), self.durable & found

    @invariant()
    def takes_no_more_than_its_capacity(self) -> None:
        assert self.disk.num_bytes <= CAPACITY_BYTES


LivesOfALog.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestLivesOfALog = LivesOfALog.TestCase


class _SlowSync(MemoryDisk):
    """Does something else while the first sync after it was told to is under way."""

    def __init__(self, names: dict[str, MemoryFile] | None = None) -> None:
        super().__init__(names)
        self.meanwhile: Callable[[], None] | None = None

    def fdatasync(self, fd: int) -> None:
        super().fdatasync(fd)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()


def test_what_is_written_while_a_checkpoint_syncs_is_not_taken_for_synced() -> None:
    for seed in range(8):
        disk = _SlowSync()
        options = replace(OPTIONS, num_threads=3)
        log = SegmentLog("disk", CAPACITY_BYTES, SEGMENT_BYTES, 20.0, options=options, files=disk)
        log.write(record(1, 100)).result(timeout=20)
        disk.meanwhile = lambda log=log: log.write(record(2, 9000)).result(timeout=20)
        assert log.checkpoint()
        disk.freeze()
        cut = disk.after_power_cut(seed)
        log.close()
        log = SegmentLog("disk", CAPACITY_BYTES, SEGMENT_BYTES, 20.0, options=options, files=cut)
        assert read(log, 1, 100) == payload(1, 100)
        if log.find(key(2)) is not None:
            assert read(log, 2, 9000) == payload(2, 9000), "shown only if it is whole"
        log.close()
