"""Several gateways' loads: each sees the sum, whatever is lost, restarted or late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shoal.api.peer.v1 import peer_pb2
from shoal.blocks import KeyChain
from shoal.gateway.admission.admission import Admission
from shoal.gateway.admission.fair_queue import FairQueue
from shoal.gateway.admission.limits import QueueLimits
from shoal.gateway.peers.board import MAX_EXPECTED_BYTES, MAX_FRAMES, MAX_KEYS, LoadBoard
from shoal.gateway.peers.shares import PeerFeed, PeerGap
from shoal.gateway.routing.load import Load, LoadTracker, Ticket
from shoal.gateway.routing.prefix_index import PrefixIndex

WORKERS = ("a", "b", "c")
KEYS = [bytes([i]) * 16 for i in range(8)]
Message = peer_pb2.FollowLoadsResponse


async def read(stream: AsyncIterator[bytes]) -> Message:
    return Message.FromString(await asyncio.wait_for(anext(stream), 5))


def own_load(gateway: Gateway, worker: str) -> Load:
    """By this gateway's requests."""
    tickets = [t for t in gateway.tickets if t.is_open and t.worker == worker]
    return sum((Load(1, t.num_tokens, t.num_prompt_tokens) for t in tickets), Load())


class Gateway:
    """One gateway's process: its own loads, what it publishes, and what it heard."""

    def __init__(self, epoch: int) -> None:
        self.loads = LoadTracker()
        self.board = LoadBoard(epoch, self.loads)
        self.board.num_followers = 1
        self.tickets: list[Ticket] = []
        self.index = PrefixIndex(100)
        self.feeds: dict[int, PeerFeed] = {}
        self.next_seqs: dict[int, int] = {}
        """Of the gateways that it is connected to."""


class Mesh(RuleBasedStateMachine):
    """Three gateways; connections break, processes restart, followers lag behind."""

    @initialize()
    def start(self) -> None:
        self.num_epochs = 0
        self.gateways = [self.make() for _ in range(3)]

    def make(self) -> Gateway:
        self.num_epochs += 1
        return Gateway(self.num_epochs)

    @rule(i=st.integers(0, 2), worker=st.sampled_from(WORKERS), tokens=st.integers(0, 9))
    def admit(self, i: int, worker: str, tokens: int) -> None:
        gateway = self.gateways[i]
        gateway.tickets.append(gateway.loads.admit(worker, tokens, num_prompt_tokens=tokens + 1))

    @rule(i=st.integers(0, 2), data=st.data(), worker=st.sampled_from((None, *WORKERS)), close=st.booleans())
    def go_on(self, i: int, data: st.DataObject, worker: str | None, close: bool) -> None:
        tickets = self.gateways[i].tickets
        if tickets:
            ticket = tickets[data.draw(st.integers(0, len(tickets) - 1))]
            ticket.close() if close else ticket.answered(worker)

    @rule(i=st.integers(0, 2))
    def publish(self, i: int) -> None:
        self.gateways[i].board.publish()

    @rule(i=st.integers(0, 2), j=st.integers(0, 2), num=st.integers(1, 3))
    def receive(self, i: int, j: int, num: int) -> None:
        """Gateway i hears some messages of gateway j, connecting first if need be."""
        if i == j:
            return
        me, other = self.gateways[i], self.gateways[j]
        me.feeds.setdefault(j, PeerFeed(me.loads, me.index))
        for _ in range(num):
            data, me.next_seqs[j] = other.board.take(me.next_seqs.get(j, 0))
            if data is not None:
                me.feeds[j].apply(Message.FromString(data))

    @rule(i=st.integers(0, 2), j=st.integers(0, 2))
    def lose(self, i: int, j: int) -> None:
        """Gateway i loses its connection to gateway j."""
        me = self.gateways[i]
        if me.next_seqs.pop(j, None) is not None:
            me.feeds[j].forget()

    @rule(i=st.integers(0, 2))
    def restart(self, i: int) -> None:
        """A process ends with all its requests; everybody's connections to it break."""
        self.gateways[i] = self.make()
        for j in range(3):
            self.lose(j, i)

    @invariant()
    def a_lost_gateway_counts_for_nothing(self) -> None:
        for me in self.gateways:
            if not me.next_seqs:
                assert all(me.loads.elsewhere(worker) == Load() for worker in WORKERS)

    @invariant()
    def the_forecast_knows_every_waiting_prompt(self) -> None:
        for me in self.gateways:
            for worker in WORKERS:
                load = me.loads.of(worker)
                assert me.loads.forecast.outlook(worker, 10, 0, load).tokens_ahead == load.num_waiting_tokens

    def teardown(self) -> None:
        """Once everybody has heard everything, everybody sees the same loads, whatever happened before."""
        for gateway in self.gateways:
            gateway.board.publish()
        for i in range(3):
            for j in range(3):
                self.receive(i, j, MAX_FRAMES)
        for worker in WORKERS:
            own = [own_load(gateway, worker) for gateway in self.gateways]
            assert [g.loads.of(worker) for g in self.gateways] == [sum(own, Load())] * 3
            assert [g.loads.elsewhere(worker) + o for g, o in zip(self.gateways, own, strict=True)] == [
                sum(own, Load())
            ] * 3


Mesh.TestCase.settings = settings(deadline=None, max_examples=60)
TestMesh = Mesh.TestCase


async def test_a_follower_hears_every_change_and_a_late_one_hears_the_whole() -> None:
    gateway, other = Gateway(1), Gateway(2)
    stream, feed = gateway.board.follow(), PeerFeed(other.loads, other.index)
    feed.apply(await read(stream))
    ticket = gateway.loads.admit("a", 10)
    gateway.loads.admit("a", 5).answered("b")
    gateway.board.publish()
    message = await read(stream)
    feed.apply(message)
    assert len(message.requests) == 2
    assert (other.loads.of("a"), other.loads.of("b")) == (Load(1, 10), Load(1, 0))
    for _ in range(MAX_FRAMES + 1):
        ticket.close()
        ticket = gateway.loads.admit("c", 1)
        gateway.board.publish()
    behind = await read(stream)
    feed.apply(behind)
    assert behind.snapshot
    assert (other.loads.of("a"), other.loads.of("b"), other.loads.of("c")) == (Load(), Load(1, 0), Load(1, 1))


async def test_messages_out_of_step_are_refused_and_the_share_is_gone() -> None:
    gateway, other = Gateway(1), Gateway(2)
    stream, feed = gateway.board.follow(), PeerFeed(other.loads, other.index)
    gateway.loads.admit("a", 10)
    snapshot = await read(stream)
    with pytest.raises(PeerGap):
        feed.apply(Message(epoch=1, seq=1))
    for wrong in (Message(epoch=1, seq=snapshot.seq + 2), Message(epoch=9, seq=snapshot.seq + 1)):
        feed.apply(snapshot)
        assert other.loads.of("a") == Load(1, 10)
        with pytest.raises(PeerGap):
            feed.apply(wrong)
        assert other.loads.of("a") == Load()


async def test_other_gateways_requests_teach_the_forecast_and_move_the_turn() -> None:
    gateway, other = Gateway(1), Gateway(2)
    gateway.loads.turn = 5
    stream, feed = gateway.board.follow(), PeerFeed(other.loads, other.index)
    feed.apply(await read(stream))
    assert other.loads.turn == 5
    ticket = gateway.loads.admit("a", 1000, num_prompt_tokens=1500)
    gateway.board.publish()
    feed.apply(await read(stream))
    assert other.loads.turn == 6
    assert other.loads.forecast.outlook("a", 10, 0, other.loads.of("a")).num_ahead == 1
    ticket.answered("b")
    gateway.board.publish()
    feed.apply(await read(stream))
    assert other.loads.forecast.outlook("a", 10, 0, other.loads.of("a")).num_ahead == 0
    assert (other.loads.of("a"), other.loads.of("b")) == (Load(), Load(1, 0, 1500))


async def test_prompts_on_their_way_are_expected_by_the_others_too() -> None:
    gateway, other = Gateway(1), Gateway(2)
    gateway.board.num_followers = 0
    other.index.store("a", KEYS[:2])
    stream, feed = gateway.board.follow(), PeerFeed(other.loads, other.index)
    gateway.board.expect("a", KeyChain.of(KEYS), 0)  # nobody follows yet
    feed.apply(await read(stream))
    gateway.board.expect("a", KeyChain.of(KEYS[:6]), 2)
    gateway.board.expect("b", KeyChain.of(KEYS), 8)  # all of it is known there
    gateway.board.publish()
    message = await read(stream)
    feed.apply(message)
    assert [(e.worker, e.keys) for e in message.expected] == [("a", b"".join(KEYS[2:6]))]
    assert other.index.match(KEYS) == {"a": 6}


async def test_what_is_told_of_picks_is_bounded() -> None:
    gateway = Gateway(1)
    stream = gateway.board.follow()
    await read(stream)
    chain = KeyChain.of([i.to_bytes(16, "big") for i in range(2 * MAX_KEYS)])
    for _ in range(2 * MAX_EXPECTED_BYTES // (16 * MAX_KEYS)):
        gateway.board.expect("a", chain, 0)
    gateway.board.publish()
    message = await read(stream)
    assert {len(e.keys) for e in message.expected} == {16 * MAX_KEYS}
    assert sum(len(e.keys) for e in message.expected) == MAX_EXPECTED_BYTES


async def test_changes_are_gathered_and_silence_is_filled_with_heartbeats() -> None:
    loads = LoadTracker()
    board = LoadBoard(1, loads, gather_s=0.001, heartbeat_s=0.1)
    task = asyncio.create_task(board.run())
    stream = board.follow()
    await read(stream)
    tickets = [loads.admit("a", 1) for _ in range(100)]
    first = await read(stream)
    assert [told.state for told in first.requests] == [peer_pb2.REQUEST_STATE_WAITING] * 100
    for ticket in tickets:
        ticket.answered("a")
        ticket.close(7)
    ended = await read(stream)  # later than a pick would come, and all in one
    assert {(told.state, told.num_output_tokens) for told in ended.requests} == {(peer_pb2.REQUEST_STATE_OVER, 7)}
    assert len(ended.requests) == 100
    beat = await read(stream)
    assert (beat.seq, len(beat.requests)) == (ended.seq + 1, 0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_tenants_service_is_told_in_all_and_counted_once_whatever_is_lost() -> None:
    queue = FairQueue(QueueLimits())
    admission = Admission(QueueLimits(), lambda model: None)
    heard = FairQueue(QueueLimits())
    gateway, other = Gateway(1), Gateway(2)
    gateway.board.ledger = Books(queue)
    feed = PeerFeed(
        other.loads, other.index, lambda model, tenant, tokens, new: heard.charge_elsewhere(tenant, tokens, new)
    )
    queue.pass_by("t", 100.0)
    queue.settle("t", 100.0, 100.0)  # over before anybody follows
    queue.pass_by("t", 40.0)
    stream = gateway.board.follow()
    feed.apply(await read(stream))
    assert heard.counter_of("t") == 40.0, "what is under way counts, what is past does not"
    queue.settle("t", 40.0, 10.0)
    queue.pass_by("t", 5.0)
    gateway.board.publish()
    feed.apply(await read(stream))
    assert heard.counter_of("t") == 15.0
    feed.forget()  # the connection broke, and what is under way may never come
    assert heard.counter_of("t") == 10.0
    queue.settle("t", 5.0, 5.0)
    feed.apply(await read(gateway.board.follow()))  # the same process: nothing is counted twice
    assert heard.counter_of("t") == 15.0
    queue.pass_by("t", 1.0)
    gateway.board.publish()
    restarted = Gateway(3)
    restarted.board.ledger = Books(FairQueue(QueueLimits()))
    feed.apply(await read(restarted.board.follow()))
    assert heard.counter_of("t") == 15.0
    admission.charge_elsewhere("model", "t", 3.0, 0.0)
    assert admission.service() == [("model", "t", 0.0, 0.0)], "what others gave is not told back to them"


class Books:
    """A `Ledger` of one model."""

    def __init__(self, queue: FairQueue) -> None:
        self.queue = queue

    def service(self) -> list[tuple[str, str, float, float]]:
        return [("m", *service) for service in self.queue.service()]

    def take_changes(self) -> list[tuple[str, str, float, float]]:
        return [("m", *service) for service in self.queue.take_changes()]
