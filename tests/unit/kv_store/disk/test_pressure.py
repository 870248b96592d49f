"""What a busy disk lets in, and when a side of it is out of service."""

from __future__ import annotations

import errno

from shoal.kv_store.disk.admission import TICK_S, WriteAdmission
from shoal.kv_store.disk.health import WINDOW_S, Breaker, Health
from support.disk_faults import key


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def admit_many(admission: WriteAdmission, clock: Clock, queue_fill: float, first: int, parent_is_here: bool) -> int:
    """How many of 200 blocks, in one tick of time, are let in."""
    clock.now_s += TICK_S
    return sum(
        admission.admit(key(number), key(number - 1), parent_is_here, queue_fill, 1.0)
        for number in range(first, first + 200)
    )


def test_an_idle_disk_takes_everything() -> None:
    clock = Clock()
    admission = WriteAdmission(clock)
    assert all(admit_many(admission, clock, 0.1, 200 * tick, False) == 200 for tick in range(20))


def test_pressure_lowers_the_share_of_new_prefixes_and_rest_restores_it() -> None:
    clock = Clock()
    admission = WriteAdmission(clock)
    for tick in range(10):
        admit_many(admission, clock, 0.7, 200 * tick, False)
    assert admission.fraction < 0.1
    assert admit_many(admission, clock, 0.7, 2000, False) < 30
    assert admit_many(admission, clock, 0.7, 3000, True) == 200, "chains that were begun go on"
    for tick in range(40):
        admit_many(admission, clock, 0.0, 4000 + 200 * tick, False)
    assert admission.fraction == 1.0
    assert admission.num_ticks_under_pressure >= 10


def test_what_follows_a_refused_block_is_refused() -> None:
    clock = Clock()
    admission = WriteAdmission(clock)
    for tick in range(4):
        admit_many(admission, clock, 0.7, 10_000 + 200 * tick, False)
    refused = next(n for n in range(1000) if not admission.admit(key(n), bytes(16), False, 0.7, 1.0))
    for number in range(2000, 2050):
        assert not admission.admit(key(number), key(refused), False, 0.7, 1.0)
        refused = number


def test_a_queue_that_is_almost_full_takes_nothing() -> None:
    assert admit_many(WriteAdmission(Clock()), Clock(), 0.95, 0, True) == 0


def test_latency_and_moved_bytes_are_pressure() -> None:
    for slow in (True, False):
        clock = Clock()
        admission = WriteAdmission(clock)
        for _ in range(50):
            admission.reads.observe(0.001, 1 << 20)
        for tick in range(20):
            clock.now_s += TICK_S
            for _ in range(8):
                admission.reads.observe(0.02 if slow else 0.001, 1 << 20, beside_writes=True)
            admission.admit(key(tick), bytes(16), False, 0.0, 1.0 if slow else 3.5)
        assert admission.fraction < 0.5


def test_a_breaker_opens_after_failures_in_a_window_and_probes_less_and_less_often() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(10):
        breaker.fail("now and then")
        clock.now_s += WINDOW_S * 0.6
    assert breaker.closed
    clock.now_s += WINDOW_S
    for _ in range(3):
        breaker.fail("broken")
    assert breaker.reason == "broken"
    waits = []
    for _ in range(9):
        wait_s = breaker.probe_due_in_s
        assert wait_s is not None
        waits.append(wait_s)
        clock.now_s += wait_s
        breaker.probed("still broken")
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    breaker.probed("")
    assert breaker.closed
    assert breaker.probe_due_in_s is None


def test_a_read_only_file_system_ends_writing_at_once() -> None:
    health = Health(Clock())
    health.failed("write", OSError(errno.EROFS, "Read-only file system"))
    assert not health.writes.closed
    assert health.reads.closed
    assert "read-only" in health.reason
