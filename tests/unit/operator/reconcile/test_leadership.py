"""Of several operators one writes: whatever hangs, breaks or dies, and by a clock that a test can stop."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import structlog.testing

from shoal.operator.reconcile.api_client import ApiError
from shoal.operator.reconcile.leadership import Leadership
from support.fake_api import FakeApi
from support.virtual_time import now_s, run_in_virtual_time

DURATION_S = 15.0
BROKEN = ApiError(500, "InternalError", "etcd has no leader")
CONFLICT = ApiError(409, "Conflict", "somebody else was faster")
Scenario = Callable[[], Coroutine[Any, Any, None]]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Thousands of tracebacks of made-up bugs are not printed."""
    with structlog.testing.capture_logs():
        yield


class Candidate:
    """An operator, as far as its Lease is concerned. Its calls go through a client of its own."""

    def __init__(self, name: str, shared: FakeApi) -> None:
        self.name = name
        self.api = FakeApi(shared)
        self.changes: list[tuple[float, bool]] = []
        self.leadership = Leadership(
            self.api, "system", name, on_change=lambda leads: self.changes.append((now_s(), leads))
        )

    @asynccontextmanager
    async def claiming(self) -> AsyncIterator[None]:
        async with self.leadership.held():
            yield

    @property
    def leads(self) -> bool:
        return bool(self.changes) and self.changes[-1][1]

    def hang(self, seconds: float = 3600.0) -> None:
        """None of its calls is answered for so long."""

        async def wait(method: str, path: str) -> None:
            await asyncio.sleep(seconds)

        self.api.before = wait

    def hang_after(self) -> None:
        """Its calls are carried out, and never answered."""

        async def wait(method: str, path: str) -> None:
            await asyncio.sleep(3600.0)

        self.api.after = wait

    def fail(self, error: Exception) -> None:
        """All of its calls do."""

        def refuse(method: str, path: str) -> None:
            raise error

        self.api.before = refuse

    def recover(self) -> None:
        self.api.before = self.api.after = lambda method, path: None


def holder(api: FakeApi) -> str:
    found = api.objects.get(("leases", "system", "shoal-operator"))
    return str(found["spec"]["holderIdentity"]) if found else ""


def test_the_first_one_leads_and_hands_over_at_its_end() -> None:
    async def scenario() -> None:
        shared = FakeApi()
        a, b = Candidate("a", shared), Candidate("b", shared)
        async with AsyncExitStack() as first:
            await first.enter_async_context(a.claiming())
            await asyncio.sleep(0.1)
            async with b.claiming():
                await asyncio.sleep(60)
                assert (a.leads, b.leads, holder(shared)) == (True, False, "a")
                await first.aclose()
                assert (a.leads, holder(shared)) == (False, "")
                await asyncio.sleep(2)
                assert b.leads, "without waiting for the Lease to be over"
        assert holder(shared) == ""

    run_in_virtual_time(scenario())


def test_one_that_dies_is_followed_once_its_lease_is_over() -> None:
    async def scenario() -> None:
        shared = FakeApi()
        a, b = Candidate("a", shared), Candidate("b", shared)
        async with b.claiming():
            b.hang()  # so that a is the first
            async with a.claiming():
                await asyncio.sleep(20)
                b.recover()
                await asyncio.sleep(20)
                assert a.leads
                assert not b.leads
                a.fail(BROKEN)  # nor can it give the Lease back: as after SIGKILL
                died_s = now_s()
            await asyncio.sleep(DURATION_S + 5)
            assert b.leads
            # A renewal, a look at it by the other, and the next look after it is over.
            assert DURATION_S - 2 <= b.changes[0][0] - died_s <= DURATION_S + 4
            assert shared.objects["leases", "system", "shoal-operator"]["spec"]["leaseTransitions"] == 2

    run_in_virtual_time(scenario())


FAULTS: dict[str, Callable[[Candidate], None]] = {
    "its calls hang": Candidate.hang,
    "its answers are lost": Candidate.hang_after,
    "it is refused": lambda who: who.fail(BROKEN),
    "a bug": lambda who: who.fail(ValueError("what is this?")),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_one_that_cannot_renew_stops_before_another_begins(fault: Callable[[Candidate], None]) -> None:
    async def scenario() -> None:
        shared = FakeApi()
        a, b = Candidate("a", shared), Candidate("b", shared)
        async with a.claiming():
            await asyncio.sleep(1)
            async with b.claiming():
                await asyncio.sleep(10)
                fault(a)
                failed_s = now_s()
                await asyncio.sleep(40)
                stopped_s = next(when for when, leads in a.changes if not leads)
                assert stopped_s - failed_s <= DURATION_S * 2 / 3
                assert b.leads == (holder(shared) == "b")
                if b.leads:
                    began_s = next(when for when, leads in b.changes if leads)
                    assert stopped_s < began_s
                a.recover()
                await asyncio.sleep(40)
                assert [a.leads, b.leads].count(True) == 1, "one of them goes on"

    run_in_virtual_time(scenario())


def test_a_short_outage_changes_nothing() -> None:
    async def scenario() -> None:
        a = Candidate("a", FakeApi())
        async with a.claiming():
            await asyncio.sleep(1)
            a.fail(BROKEN)
            await asyncio.sleep(DURATION_S * 2 / 3 - 3)
            a.recover()
            await asyncio.sleep(60)
            assert a.changes == [(0.0, True)]

    run_in_virtual_time(scenario())


def test_whoever_is_slower_at_writing_does_not_lead() -> None:
    async def scenario() -> None:
        shared = FakeApi()
        a = Candidate("a", shared)

        def refuse(method: str, path: str) -> None:
            if method != "GET":
                raise CONFLICT

        a.api.before = refuse
        async with a.claiming():
            await asyncio.sleep(30)
            assert a.changes == []
            a.recover()
            await asyncio.sleep(3)
            assert a.leads
            a.api.before = refuse  # somebody writes in between: it is not known any more whose it is
            await asyncio.sleep(3)
            assert not a.leads

    run_in_virtual_time(scenario())


def test_one_that_was_stopped_does_not_write_when_it_goes_on() -> None:
    """A process that is frozen, or busy, looks at the clock before it writes, whatever its timers had to say."""

    async def scenario() -> None:
        a = Candidate("a", FakeApi())
        async with a.claiming():
            await asyncio.sleep(1)
            assert a.leadership.holds
            a.hang()
            await asyncio.sleep(DURATION_S * 2 / 3 - 1.5)
            assert a.leadership.holds
            renewed_s = a.leadership._renewed_s
            a.leadership._renewed_s = renewed_s - 1.0  # a second more passed than timers know of
            assert a.leads
            assert not a.leadership.holds

    run_in_virtual_time(scenario())


@pytest.mark.parametrize("seed", range(40))
def test_never_two_at_a_time(seed: int) -> None:
    """Three of them, with faults that come and go."""

    async def scenario() -> None:
        chance, shared = random.Random(seed), FakeApi()
        candidates = [Candidate(name, shared) for name in "abc"]
        async with AsyncExitStack() as stack:
            for each in candidates:
                await stack.enter_async_context(each.claiming())
            for _ in range(60):
                victim = chance.choice(candidates)
                chance.choice([*FAULTS.values(), Candidate.recover, Candidate.recover])(victim)
                for _ in range(chance.randrange(1, 40)):
                    await asyncio.sleep(0.25)
                    assert sum(each.leadership.holds for each in candidates) <= 1
            for each in candidates:
                each.recover()
            await asyncio.sleep(60)
            assert sum(each.leads for each in candidates) == 1
        for one, other in itertools.combinations(candidates, 2):
            assert not _overlap(one.changes, other.changes)

    run_in_virtual_time(scenario())


def _overlap(one: list[tuple[float, bool]], other: list[tuple[float, bool]]) -> bool:
    """Whether both led at some moment."""
    spans = [
        [(begin, end) for (begin, leads), (end, _) in itertools.pairwise(changes) if leads] for changes in (one, other)
    ]
    return any(a[0] < b[1] and b[0] < a[1] for a, b in itertools.product(*spans))
