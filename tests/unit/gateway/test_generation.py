"""A request's messages, whatever its workers do: every token once and in order, or one clear error."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.api.gateway.v1 import gateway_pb2
from shoal.gateway.attempt import StallWatch
from shoal.gateway.explain.records import RequestRecord
from shoal.gateway.failover import FailoverConfig, MoveGate
from shoal.gateway.generation import Admitted, Generation
from shoal.gateway.journal import Message
from shoal.gateway.stream import Stream
from shoal.gateway.upstream import Lost, Unreached
from shoal.rpc.errors import (
    DeadlineExceeded,
    Draining,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    ShoalError,
    StreamLost,
    Unavailable,
    WorkerFailed,
)
from support.eventually import eventually
from support.fake_streams import CACHED, MODEL, PROMPT, Asked, FakeWorkers, Fault, make_errand, tokens_of

QUICK = FailoverConfig(wait_s=0.05, first_backoff_s=0, death_news_s=0.001)
PATIENT = replace(QUICK, wait_s=10)


def open_generation(
    workers: FakeWorkers, config: FailoverConfig = QUICK, *, gate: MoveGate | None = None, timeout_s: float = 30
) -> Generation:
    errand = make_errand(workers.lengths, time.monotonic() + timeout_s)
    stream = Stream(errand, workers, gate or MoveGate(config), config, RequestRecord("", "r"))
    return Generation(Admitted("r", MODEL, 0.0), stream, workers.first(errand))


async def read_all(generation: Generation) -> list[Message]:
    messages = []
    with generation:
        await generation.start()
        while (message := await generation.read()) is not None:
            assert Message.FromString(generation.raw) == message
            messages.append(message)
    return messages


def check(messages: Sequence[Message], lengths: Sequence[int]) -> None:
    """Every token once, in order, one end for each completion, counts in the first and the last message."""
    for choice, length in enumerate(lengths):
        mine = [m for m in messages if m.choice == choice]
        received: list[int] = []
        for message in mine:
            assert message.first_token_index == len(received)
            received += message.token_ids
        assert received == tokens_of(choice, length)
        assert [bool(m.finish_reason) for m in mine] == [False] * (len(mine) - 1) + [True]
    first, last = messages[0].usage, messages[-1].usage
    assert (first.prompt_tokens, last.prompt_tokens) == (len(PROMPT), len(PROMPT))
    assert last.cached_tokens == first.cached_tokens
    assert last.completion_tokens == sum(lengths)
    assert not any(m.HasField("usage") for m in messages[1:-1])


LOSSES: list[ShoalError | None] = [
    Lost("gone"), WorkerFailed("engine died"), Draining("shutting down"), Unavailable("loading"), None,
]  # fmt: skip


@pytest.mark.parametrize("error", LOSSES)
@pytest.mark.parametrize("after", [0, 1, 7])
async def test_a_lost_stream_goes_on_after_its_last_token(error: ShoalError | None, after: int) -> None:
    workers = FakeWorkers([20], deque([Fault(after, error)]))
    check(await read_all(open_generation(workers)), [20])
    assert workers.asked == [Asked("a", (0,), ()), Asked("b", (0,), tuple(tokens_of(0, after)))]
    assert all(call.ended.is_set() for call in workers.calls)
    assert all(workers.loads.of(worker).num_requests == 0 for worker in workers.epochs)


async def test_completions_go_on_each_by_itself_and_finished_ones_stay_finished() -> None:
    workers = FakeWorkers([2, 9, 5], deque([Fault(6, Lost("gone"))]))
    check(await read_all(open_generation(workers)), [2, 9, 5])
    assert workers.asked[1:] == [Asked("b", (1,), tuple(tokens_of(1, 2))), Asked("b", (2,), tuple(tokens_of(2, 2)))]


async def test_what_a_stop_string_ended_is_not_taken_along() -> None:
    workers = FakeWorkers([9, 9], deque([Fault(4, Lost("gone"))]))
    with open_generation(workers) as generation:
        await generation.start()
        generation.abandon(0)
        while (await generation.read()) is not None:
            pass
    assert workers.asked[1:] == [Asked("b", (1,), tuple(tokens_of(1, 2)))]


async def test_a_client_goes_on_with_what_it_has() -> None:
    workers = FakeWorkers([4, 9, 5], deque([Fault(1, Lost("gone"))]))
    resume = gateway_pb2.Resume(cached_tokens=CACHED)
    for choice, (length, finished) in enumerate([(4, True), (3, False), (0, False)]):
        resume.completions.add(token_ids=tokens_of(choice, length), finished=finished)
    errand = make_errand(workers.lengths, time.monotonic() + 30)
    stream = Stream(errand, workers, MoveGate(QUICK), QUICK, RequestRecord("", "r"), resume)
    generation = Generation(Admitted("r", MODEL, 0.0), stream, None)
    messages = await read_all(generation)
    asked = {(asked.choices, asked.resumed) for asked in workers.asked[:2]}
    assert asked == {((1,), tuple(tokens_of(1, 3))), ((2,), ())}
    for choice, start in ((1, 3), (2, 0)):
        received = [i for m in messages if m.choice == choice for i in m.token_ids]
        assert received == tokens_of(choice, workers.lengths[choice])[start:]
        assert next(m.first_token_index for m in messages if m.choice == choice) == start
    assert [m.HasField("usage") for m in messages] == [False] * (len(messages) - 1) + [True]
    usage = messages[-1].usage
    assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (len(PROMPT), CACHED, 18)
    assert generation.num_tokens == 18 - 7, "what the client had was counted when it came"
    assert generation.worker


async def test_nothing_delivered_means_everything_again() -> None:
    workers = FakeWorkers([3, 4], deque([Fault(0, Lost("gone"))]))
    messages = await read_all(open_generation(workers))
    check(messages, [3, 4])
    assert workers.asked[1:] == [Asked("b", (0, 1), ())]
    assert messages[0].usage.cached_tokens == CACHED + 1


faults = st.builds(
    Fault,
    after=st.integers(0, 8),
    error=st.sampled_from([Draining("d"), Unavailable("u"), ResourceExhausted("full", 0.001), Lost("l"), None]),
)


@given(
    lengths=st.lists(st.integers(1, 24), min_size=1, max_size=4),
    plan=st.lists(faults, max_size=8),
    tokens_per_message=st.integers(1, 5),
)
def test_every_token_comes_once_and_in_order_whatever_fails(
    lengths: list[int], plan: list[Fault], tokens_per_message: int
) -> None:
    async def run() -> list[Message]:
        if any(isinstance(fault.error, ResourceExhausted) for fault in plan):
            plan[0] = replace(plan[0], after=max(1, plan[0].after))  # before any token it is the client's to know
            if isinstance(plan[0].error, ResourceExhausted):
                plan[0] = replace(plan[0], error=Lost("l"))
        workers = FakeWorkers(lengths, deque(plan), tokens_per_message)
        workers.epochs = {str(i): 1 for i in range(40)} | {"a": 1}
        return await read_all(open_generation(workers, replace(PATIENT, max_moves=100)))

    check(asyncio.run(run()), lengths)


@pytest.mark.parametrize("error", [InvalidArgument("sampling.seed", "bad"), Internal("bug"), DeadlineExceeded("late")])
async def test_what_another_worker_would_say_as_well_ends_the_stream(error: ShoalError) -> None:
    workers = FakeWorkers([9], deque([Fault(2, error)]))
    with pytest.raises(type(error)):
        await read_all(open_generation(workers))
    assert len(workers.asked) == 1


async def test_a_full_worker_before_the_first_token_is_told_to_the_client_and_later_waited_for() -> None:
    full = ResourceExhausted("full", retry_after_s=0.001)
    with pytest.raises(ResourceExhausted):
        await read_all(open_generation(FakeWorkers([9], deque([Fault(0, full)]))))
    workers = FakeWorkers([9], deque([Fault(2, Lost("gone")), *[Fault(0, full)] * 10]))
    check(await read_all(open_generation(workers)), [9])
    assert len(workers.asked) == 12


async def test_a_stream_without_progress_is_given_up_after_max_moves() -> None:
    workers = FakeWorkers([9], deque([Fault(1, Draining("d")), *[Fault(0, Draining("d"))] * 9]))
    with pytest.raises(Unavailable, match=r"lost 3 times in a row \(at last: d\)"):
        await read_all(open_generation(workers, replace(QUICK, max_moves=2)))
    assert len(workers.asked) == 3


async def test_attempts_that_come_to_no_worker_do_not_count_and_accuse_nobody() -> None:
    away = [Fault(0, Unreached("Envoy is away"), dies=True)] * 9
    workers = FakeWorkers([20], deque([Fault(3, Lost("gone"), dies=True), *away]))
    check(await read_all(open_generation(workers, replace(PATIENT, max_moves=2))), [20])
    assert len(workers.asked) == 11


async def test_nobody_waits_for_ever_for_a_mesh_that_is_away() -> None:
    workers = FakeWorkers([20], deque([Fault(3, Lost("gone")), *[Fault(0, Unreached("Envoy is away"))] * 1000]))
    with pytest.raises(Unavailable, match="none could be reached within") as caught:
        await read_all(open_generation(workers, replace(QUICK, first_backoff_s=0.01)))
    assert not isinstance(caught.value, StreamLost), "a client may go on elsewhere"
    workers = FakeWorkers([20], deque([Fault(0, Unreached("Envoy is away"))] * 1000))
    with pytest.raises(StreamLost, match="6 times in a row"):
        await read_all(open_generation(workers, PATIENT))


async def test_progress_is_not_held_against_a_stream() -> None:
    workers = FakeWorkers([100], deque([Fault(16, Lost("gone"), dies=True)] * 5))
    check(await read_all(open_generation(workers, replace(QUICK, max_moves=1))), [100])


async def test_moving_can_be_turned_off() -> None:
    workers = FakeWorkers([9], deque([Fault(2, Lost("gone"))]))
    with pytest.raises(Lost):
        await read_all(open_generation(workers, replace(QUICK, max_moves=0)))


@pytest.mark.parametrize(("error", "after"), [(Lost("x"), 0), (WorkerFailed("x"), 0), (WorkerFailed("x"), 3)])
async def test_a_request_that_two_workers_died_of_is_not_sent_to_a_third(error: ShoalError, after: int) -> None:
    deaths = [Fault(after, error, dies=True), Fault(0, error, dies=True)]
    workers = FakeWorkers([9], deque(deaths))
    with pytest.raises(Internal, match="2 workers died one after the other while they had this request"):
        await read_all(open_generation(workers))
    assert len(workers.asked) == 2


async def test_one_worker_that_restarts_and_dies_again_counts_twice() -> None:
    workers = FakeWorkers([9], deque([Fault(0, Lost("gone"), dies=True)] * 3), epochs={"a": 1})
    with pytest.raises(Internal, match="2 workers died"):
        await read_all(open_generation(workers))
    assert len(workers.asked) == 2


async def test_workers_killed_after_a_token_are_not_held_against_the_request() -> None:
    workers = FakeWorkers([9], deque([Fault(1, Lost("gone"), dies=True)] * 4))
    check(await read_all(open_generation(workers)), [9])


async def test_broken_connections_to_living_workers_are_no_deaths() -> None:
    workers = FakeWorkers([9], deque([Fault(1, Lost("gone")), *[Fault(0, Lost("gone"))] * 3]))
    check(await read_all(open_generation(workers)), [9])


async def test_without_another_worker_the_same_one_is_asked_again() -> None:
    workers = FakeWorkers([9], deque([Fault(2, Lost("gone"))]), epochs={"a": 1})
    check(await read_all(open_generation(workers)), [9])
    assert [asked.worker for asked in workers.asked] == ["a", "a"]


async def test_a_stream_with_tokens_waits_for_a_worker_and_one_without_does_not() -> None:
    workers = FakeWorkers([9], deque([Fault(2, Lost("gone"))]), epochs={"a": 1, "b": 0})
    with open_generation(workers, PATIENT) as generation:
        await generation.start()
        await generation.read()
        await generation.read()
        workers.set_epoch("a", 0)
        reading = asyncio.create_task(generation.read())
        await asyncio.wait_for(workers.calls[0].ended.wait(), 5)
        workers.set_epoch("b", 7)
        message = await asyncio.wait_for(reading, 5)
        assert message is not None
        assert message.first_token_index == 2
    workers = FakeWorkers([9], deque([Fault(0, Lost("gone"))]), epochs={"a": 1})
    with pytest.raises(Lost):
        await read_all(open_generation(workers, PATIENT))


async def test_a_wait_for_a_worker_has_an_end() -> None:
    workers = FakeWorkers([9], deque([Fault(2, Lost("gone"))]), epochs={"a": 1})
    with open_generation(workers) as generation:
        await generation.start()
        await generation.read()
        await generation.read()
        workers.epochs["a"] = 0
        with pytest.raises(Unavailable, match=r"no worker was ready within 0.05 s \(at last: gone\)"):
            await generation.read()


async def test_the_deadline_holds_during_a_move() -> None:
    workers = FakeWorkers([9], deque([Fault(2, Lost("gone"))]), epochs={"a": 1})
    with open_generation(workers, PATIENT, timeout_s=0.2) as generation:
        await generation.start()
        await generation.read()
        await generation.read()
        workers.epochs["a"] = 0
        with pytest.raises(DeadlineExceeded):
            await generation.read()


async def test_a_client_that_leaves_during_a_move_gives_its_place_back() -> None:
    gate = MoveGate(PATIENT)
    workers = FakeWorkers([9], deque([Fault(2, Lost("gone"))]), epochs={"a": 1})
    with open_generation(workers, PATIENT, gate=gate) as generation:
        await generation.start()
        await generation.read()
        await generation.read()
        workers.epochs["a"] = 0
        reading = asyncio.create_task(generation.read())
        await eventually(lambda: gate.num_moving == 1, "the stream is on its way")
        reading.cancel()
        await asyncio.wait([reading])
    assert (gate.num_moving, gate.num_streams) == (0, 0)


async def test_leaving_ends_every_leg() -> None:
    workers = FakeWorkers([9, 9], deque([Fault(4, Lost("gone")), Fault(1, hangs=True), Fault(1, hangs=True)]))
    with open_generation(workers) as generation:
        await generation.start()
        for _ in range(5):
            await generation.read()
    assert all(call.ended.is_set() for call in workers.calls)
    assert all(workers.loads.of(worker).num_requests == 0 for worker in workers.epochs)


@pytest.mark.parametrize("after", [0, 3])
async def test_a_stalled_stream_moves(after: int) -> None:
    watch = StallWatch(stall_timeout_s=8, first_token_timeout_s=8)
    workers = FakeWorkers([9], deque([Fault(after, hangs=True)]), watch=watch)
    reading = asyncio.create_task(read_all(open_generation(workers)))
    await asyncio.wait_for(workers.calls[0].reading.wait(), 5)
    for _ in range(8):
        watch.look()
    assert not workers.calls[0].ended.is_set()
    watch.look()
    check(await asyncio.wait_for(reading, 5), [9])
    assert workers.asked[1] == Asked("b", (0,), tuple(tokens_of(0, after)))


async def test_a_stream_leaves_a_worker_that_nobody_reaches_any_more() -> None:
    watch = StallWatch(stall_timeout_s=80, first_token_timeout_s=0)
    workers = FakeWorkers([9], deque([Fault(0, hangs=True)]), watch=watch)
    reading = asyncio.create_task(read_all(open_generation(workers)))
    await asyncio.wait_for(workers.calls[0].reading.wait(), 5)
    workers.set_epoch("a", 0)
    watch.look()
    workers.set_epoch("a", 1)  # a hiccup
    watch.look()
    workers.set_epoch("a", 0)
    watch.look()
    assert not workers.calls[0].ended.is_set()
    watch.look()
    check(await asyncio.wait_for(reading, 5), [9])


async def test_a_stalled_stream_stays_when_there_is_nowhere_to_go() -> None:
    watch = StallWatch(stall_timeout_s=1, first_token_timeout_s=0)
    workers = FakeWorkers([9], deque([Fault(3, hangs=True)]), watch=watch, epochs={"a": 1})
    reading = asyncio.create_task(read_all(open_generation(workers)))
    await asyncio.wait_for(workers.calls[0].reading.wait(), 5)
    for _ in range(50):
        watch.look()
    assert not workers.calls[0].ended.is_set()
    reading.cancel()
    await asyncio.wait([reading])


async def test_a_worker_that_skips_or_repeats_is_not_relayed() -> None:
    for start in (0, 2):
        workers = FakeWorkers([9])
        generation = open_generation(workers)
        workers.calls[0].messages[1].first_token_index = start
        with pytest.raises(Internal, match=f"token {start} of completion 0 where token 1 was due"):
            await read_all(generation)


async def test_a_turn_that_comes_as_its_stream_ends_goes_to_the_next() -> None:
    gate = MoveGate(replace(QUICK, min_budget=1, budget_ratio=0))
    await gate.enter()
    waiting = [asyncio.create_task(gate.enter()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    gate.leave()  # before the cancelled one runs again
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]
    await waiting[1]
    waiting[2].cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting[2]
    gate.leave()
    assert gate.num_moving == 0
    await asyncio.wait_for(gate.enter(), 1)


async def test_so_many_streams_move_at_once_and_the_others_wait_their_turn() -> None:
    gate = MoveGate(FailoverConfig(budget_ratio=0.2, min_budget=2))
    await gate.enter()
    await gate.enter()
    third, fourth = asyncio.ensure_future(gate.enter()), asyncio.ensure_future(gate.enter())
    await asyncio.sleep(0)
    assert (gate.num_moving, third.done()) == (2, False)
    third.cancel()
    gate.leave()
    await asyncio.wait_for(fourth, 5)
    gate.leave()
    gate.leave()
    assert gate.num_moving == 0
    gate.num_streams = 100
    assert gate.limit == 20
