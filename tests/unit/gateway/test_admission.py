"""Waiting for room at the workers: who goes, who is told to come back, and what stays behind: nothing."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.config import ConfigError
from shoal.gateway.admission.admission import MAX_REFUSALS, Admission
from shoal.gateway.admission.drain_rate import MIN_DEPARTURES
from shoal.gateway.admission.entry import Entry
from shoal.gateway.admission.lane import Lane, TooLong
from shoal.gateway.admission.limits import QueueLimits, TenantPolicy, tenant_policies
from shoal.gateway.admission.permit import Ask, Permit
from shoal.gateway.admission.room import Capacity, Room
from shoal.rpc.errors import DeadlineExceeded, ResourceExhausted, ShoalError, Unavailable
from support.eventually import eventually

MODEL = "m"


def ask(tenant: str = "a", *, priority: int = 0, patience_s: float = 30.0, num_tokens: int = 10) -> Ask:
    return Ask(MODEL, tenant, priority, num_tokens, 1, 10, time.monotonic() + patience_s)


class Mesh:
    """An admission in front of workers with a few places."""

    def __init__(self, num_sequences: int = 1, limits: QueueLimits | None = None) -> None:
        self.capacity: Capacity | None = Capacity(num_sequences, 1000)
        self.admission = Admission(limits or QueueLimits(), lambda model: self.capacity)
        self.order: list[str] = []

    def enter(self, asked: Ask, name: str = "") -> asyncio.Task[Permit]:
        async def go() -> Permit:
            permit = self.admission.enter_now(asked) or await self.admission.enter(asked)
            self.order.append(name or asked.tenant)
            return permit

        return asyncio.create_task(go())

    async def entered(self, *asks: Ask) -> list[asyncio.Task[Permit]]:
        """Tasks that have gone, or wait."""
        tasks = [self.enter(asked) for asked in asks]
        await settle()
        return tasks


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def failure(task: asyncio.Task[Permit]) -> ShoalError:
    with pytest.raises(ShoalError) as caught:
        await asyncio.wait_for(task, 5)
    return caught.value


async def test_what_fits_passes_at_once_and_the_rest_waits_its_turn() -> None:
    mesh = Mesh(2)
    first, second, third, fourth = await mesh.entered(ask("a"), ask("b"), ask("a"), ask("b"))
    assert first.done()
    assert second.done()
    assert not third.done()
    assert not fourth.done()
    assert mesh.admission.enter_now(ask("c")) is None, "nobody passes those who wait"
    (await first).close()
    (await first).close()
    await settle()
    assert third.done()
    assert not fourth.done()
    assert (await third).waited_s > 0
    assert (await first).waited_s == 0
    for task in (second, third, fourth):
        (await task).close()
    assert mesh.admission.num_waiting == 0
    assert mesh.admission.enter_now(ask("c")) is not None


async def test_a_client_that_is_gone_takes_no_place() -> None:
    mesh = Mesh(1)
    first, gone, woken, last = await mesh.entered(*(ask() for _ in range(4)))
    gone.cancel()
    (await first).close()
    woken.cancel()  # in the moment in which its turn came
    await settle()
    assert gone.cancelled()
    assert woken.cancelled()
    assert last.done()
    (await last).close()
    assert mesh.admission.enter_now(ask()) is not None


async def test_deadline_and_age_end_the_wait() -> None:
    mesh = Mesh(1, QueueLimits(max_age_s=0.1))
    first, hurried, patient = await mesh.entered(ask(), ask(patience_s=0.05), ask())
    assert isinstance(await failure(hurried), DeadlineExceeded)
    assert not patient.done()
    refusal = await failure(patient)
    assert isinstance(refusal, ResourceExhausted)
    assert refusal.retry_after_s == 1
    mesh.capacity = None
    mesh.admission.refresh()
    (await first).close()
    (unlucky,) = await mesh.entered(ask())
    assert unlucky.done(), "nobody waits and nobody is ready: the mesh says so better"


async def test_those_who_wait_when_the_last_worker_goes_wait_for_the_next() -> None:
    mesh = Mesh(1, QueueLimits(max_age_s=0.2))
    first, second, third = await mesh.entered(ask(), ask(patience_s=5), ask(patience_s=5))
    mesh.capacity = None
    mesh.admission.refresh()
    (await first).close()
    await settle()
    assert not second.done()
    mesh.capacity = Capacity(1, 1000)
    mesh.admission.refresh()
    await settle()
    assert second.done()
    assert not third.done()
    mesh.capacity = None
    mesh.admission.refresh()
    assert isinstance(await failure(third), Unavailable)


async def test_a_low_priority_that_waits_does_not_block_a_high_one() -> None:
    mesh = Mesh(1)
    first, *_ = await mesh.entered(ask())
    low = mesh.enter(ask(priority=50), "low")
    await settle()
    high = mesh.enter(ask(priority=-50), "high")
    await settle()
    (await first).close()
    await settle()
    assert high.done()
    assert not low.done()
    (await high).close()
    (await low).close()


async def test_a_full_queue_refuses_or_displaces_and_says_when_to_come_back() -> None:
    mesh = Mesh(1, QueueLimits(max_requests=2, default_tenant=TenantPolicy(max_requests=2)))
    first, second, third = await mesh.entered(ask("a"), ask("a"), ask("a"))
    fourth, other = await mesh.entered(ask("a"), ask("b"))
    for refused in (fourth, third):
        error = await failure(refused)
        assert isinstance(error, ResourceExhausted)
        assert error.retry_after_s
    assert not second.done()
    assert not other.done()
    for task in (first, other, second):
        (await asyncio.wait_for(task, 5)).close()


async def test_a_worker_that_is_full_after_all_sends_back_to_the_old_place_a_few_times() -> None:
    mesh = Mesh(2)
    full = ResourceExhausted("the worker is full")
    one, other, waiting = await mesh.entered(ask(), ask(), ask())
    back = asyncio.create_task(mesh.admission.enter_again(await one, full))
    await settle()
    assert not back.done(), "others fill the workers: only what leaves makes room"
    (await other).close()
    await settle()
    permit = await asyncio.wait_for(waiting, 5)  # it came before the one that was sent back was entered again
    permit.close()
    permit = await asyncio.wait_for(back, 5)
    for _ in range(MAX_REFUSALS - 1):
        permit = await asyncio.wait_for(mesh.admission.enter_again(permit, full), 5)
    with pytest.raises(ResourceExhausted, match="the worker is full"):
        await mesh.admission.enter_again(permit, full)
    await eventually(lambda: mesh.admission.enter_now(ask()) is not None, "the mesh is tried again")


async def test_draining_answers_everybody() -> None:
    mesh = Mesh(1)
    first, *waiting = await mesh.entered(*(ask() for _ in range(5)))
    mesh.admission.drain()
    for task in waiting:
        assert isinstance(await failure(task), Unavailable)
    (late,) = await mesh.entered(ask())
    assert isinstance(await failure(late), Unavailable)
    (await first).close()
    assert mesh.admission.num_waiting == 0


@pytest.mark.parametrize("seed", range(3))
async def test_nothing_is_lost_or_left_whatever_clients_do(seed: int) -> None:
    rng = random.Random(seed)
    mesh = Mesh(4, QueueLimits(max_requests=30, max_age_s=5))
    under_way = 0
    ends: Counter[str] = Counter()

    async def client() -> None:
        nonlocal under_way
        asked = ask(rng.choice("abc"), priority=rng.randint(-3, 3), patience_s=rng.choice([0.01, 5]))
        try:
            permit = mesh.admission.enter_now(asked) or await mesh.admission.enter(asked)
            while rng.random() < 0.2:
                permit = await mesh.admission.enter_again(permit, ResourceExhausted("full"))
        except ShoalError as error:
            ends[type(error).__name__] += 1
            return
        under_way += 1
        assert under_way <= 4
        try:
            permit.dispatched(rng.randint(0, 10))
            await asyncio.sleep(rng.random() * 0.004)
        finally:
            under_way -= 1
            permit.close(num_output_tokens=rng.randint(0, 50))
        ends["served"] += 1

    tasks = []
    for _ in range(300):
        tasks.append(asyncio.create_task(client()))
        await asyncio.sleep(rng.random() * 0.001)
        if rng.random() < 0.1:
            rng.choice(tasks).cancel()
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)
    cancelled = sum(task.cancelled() for task in tasks)
    assert sum(ends.values()) + cancelled == 300
    assert ends["served"] > 30
    room = mesh.admission._lanes[MODEL].room
    assert (mesh.admission.num_waiting, room.num_sequences, round(room.num_tokens)) == (0, 0, 0)


@given(rate=st.floats(5, 500), num_waiting=st.integers(60, 300), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_the_estimate_is_honest(rate: float, num_waiting: int, seed: int) -> None:
    """At a steady rate of service, what a request is told it would wait is what it waits, within a third."""
    rng = random.Random(seed)
    lane = Lane(MODEL, QueueLimits(max_age_s=1e6), Room())
    lane.room.resize(Capacity(1, 10**9))
    now_s = 0.0

    def offer(tenant: str) -> Entry:
        cost = rng.uniform(50, 150)
        new = Entry(tenant, num_tokens=10, cost=cost, arrived_s=now_s, expires_s=1e9)
        lane.offer(new, now_s)
        return new

    def serve() -> Entry:
        nonlocal now_s
        taken = lane.next(now_s)
        assert taken is not None
        now_s += taken.cost / 100 / rate
        lane.release(taken.tenant, 1, 10, taken.cost, taken.cost)
        return taken

    for number in range(num_waiting):
        offer("ab"[number % 2])
        if number % 3 == 0 and number > 10:
            serve()
    expected_s = lane.expected_wait_s("a", 0, now_s)
    asked_s, mine = now_s, offer("a")
    while serve() is not mine:
        offer("b")  # which takes nothing from a, and b's place behind
    assert expected_s is not None
    assert expected_s == pytest.approx(now_s - asked_s, rel=1 / 3, abs=4 / rate)


def test_a_wait_that_would_be_too_long_is_refused_before_it_begins() -> None:
    lane = Lane(MODEL, QueueLimits(max_age_s=10), Room())
    lane.room.resize(Capacity(1, 10**9))
    entries = [Entry("a", num_tokens=1, cost=10, arrived_s=0, expires_s=10) for _ in range(100)]
    for entry in entries:
        lane.offer(entry, 0.0)
    for second in range(MIN_DEPARTURES):
        assert lane.next(float(second)) is not None
        lane.release("a", 1, 1, 10, 10)
    with pytest.raises(TooLong) as caught:
        lane.offer(Entry("a", num_tokens=1, cost=10, arrived_s=8, expires_s=18), 8.0)
    assert caught.value.expected_s == pytest.approx(92, rel=0.2), "a second each, at 10 tokens a second"
    lane.offer(Entry("b", num_tokens=1, cost=10, arrived_s=8, expires_s=18), 8.0)  # has nothing ahead of its own


def test_room_is_a_share_unless_the_others_leave_some() -> None:
    others: list[int | None] = [None]
    room = Room(4, lambda: others[0])
    assert room.is_free()
    assert not room.is_known
    room.resize(Capacity.of(2, 30, 10_000, 0.25))
    assert room.share == 10, "a quarter of 30 that run and 8 that may wait"
    room.num_sequences = 9
    assert room.is_free()
    room.num_sequences = 10
    assert not room.is_free()
    others[0] = 27
    assert room.is_free()
    others[0] = 28
    assert not room.is_free()
    room.num_sequences, room.num_tokens = 1, 2500
    assert not room.is_free(), "its part of the KV memory"
    room.num_sequences = 0
    assert room.is_free(), "alone, anything goes"


def test_room_after_a_refusal_grows_in_steps() -> None:
    room = Room()
    room.resize(Capacity(100, 10_000))
    room.num_sequences = 40
    room.refused()
    assert not room.is_free()
    room.num_sequences = 39
    assert room.is_free()
    steps = 1
    while room.probe():
        steps += 1
    assert 5 < steps < 15
    room.num_sequences = 99
    assert room.is_free()


def test_tenants_in_settings() -> None:
    default = TenantPolicy(max_requests=100, max_tokens=1000)
    policies = tenant_policies(default, "gold=4, free=0.5", "gold=50", "")
    assert policies == {"gold": replace(default, weight=4, max_requests=50), "free": replace(default, weight=0.5)}
    for text in ("gold", "gold=", "=1", "gold=x", "gold=0", "gold=1001", "gold=nan", "a=1,a=2"):
        with pytest.raises(ConfigError, match="tenant_weights"):
            tenant_policies(default, text, "", "")
    with pytest.raises(ConfigError, match=r"tenant_max_queued_requests: .a=1.5. is not"):
        tenant_policies(default, "", "a=1.5", "")
