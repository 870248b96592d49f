from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.api.worker.v1 import worker_pb2
from shoal.blocks.event_log import SNAPSHOT_PART_KEYS
from shoal.model_worker.kv_cache import Cleared, KvEvent, Removed, Stored
from shoal.model_worker.kv_events import KvEventHub

Response = worker_pb2.SubscribeKvEventsResponse
EPOCH = 77


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def stored(*numbers: int) -> Stored:
    return Stored(tuple(map(key, numbers)), key(0))


class Follower:
    """What a router keeps: the set of keys, and where it stands."""

    def __init__(self) -> None:
        self.keys: set[bytes] = set()
        self.seq = 0
        self.num_snapshots = 0
        self._snapshot: set[bytes] = set()

    def take(self, response: Response) -> None:
        match response.WhichOneof("event"):
            case "snapshot":
                self._snapshot |= set(response.snapshot.keys)
                if response.snapshot.complete:
                    self.keys, self._snapshot = self._snapshot, set()
                    self.num_snapshots += 1
            case kind:
                assert response.seq == self.seq + 1, "a gap"
                if kind == "stored":
                    self.keys |= set(response.stored.keys)
                elif kind == "removed":
                    self.keys -= set(response.removed.keys)
                else:
                    self.keys.clear()
        self.seq = response.seq


async def drain(stream: AsyncIterator[Response], follower: Follower, last_seq: int) -> None:
    async with asyncio.timeout(5):
        async for response in stream:
            follower.take(response)
            if response.seq == last_seq and not (response.HasField("snapshot") and not response.snapshot.complete):
                return


async def test_a_subscriber_that_is_up_to_date_gets_only_what_is_missing() -> None:
    hub = KvEventHub(epoch=EPOCH, buffer=10)
    hub.publish_device([stored(1, 2), stored(3)])
    follower = Follower()
    follower.seq = 1
    await drain(hub.follow(EPOCH, 2), follower, 2)
    assert follower.num_snapshots == 0
    assert follower.keys == {key(3)}


async def test_a_stranger_a_latecomer_and_one_from_the_future_get_a_snapshot() -> None:
    hub = KvEventHub(epoch=EPOCH, buffer=2)
    for number in range(5):
        hub.publish_device([stored(number)])
    for epoch, start_seq in ((0, 0), (EPOCH + 1, 5), (EPOCH, 2), (EPOCH, 9)):
        follower = Follower()
        await drain(hub.follow(epoch, start_seq), follower, 5)
        assert follower.num_snapshots == 1
        assert follower.keys == {key(number) for number in range(5)}


async def test_a_large_snapshot_comes_in_parts_of_one_moment() -> None:
    hub = KvEventHub(epoch=EPOCH, buffer=2)
    hub.publish_device([stored(*range(SNAPSHOT_PART_KEYS + 1))])
    stream = hub.follow(0, 0)
    first = await anext(stream)
    hub.publish_device([Cleared()])
    second = await anext(stream)
    assert [first.snapshot.complete, second.snapshot.complete] == [False, True]
    assert first.seq == second.seq == 1
    assert (await anext(stream)).seq == 2


async def test_followers_wait_without_polling_and_end_with_the_hub() -> None:
    hub = KvEventHub(epoch=EPOCH, buffer=2)
    stream = hub.follow(0, 0)
    await anext(stream)
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    hub.publish_device([stored(1)])
    assert (await asyncio.wait_for(waiting, 5)).seq == 1
    ending = asyncio.ensure_future(anext(stream, None))
    await asyncio.sleep(0)
    hub.close()
    assert await asyncio.wait_for(ending, 5) is None


async def test_who_is_up_to_date_hears_heartbeats_that_change_nothing() -> None:
    hub = KvEventHub(epoch=EPOCH, buffer=2, heartbeat_s=0.001)
    hub.publish_device([stored(1)])
    stream = hub.follow(EPOCH, 2)
    beats = [await asyncio.wait_for(anext(stream), 5) for _ in range(2)]
    assert [(beat.epoch, beat.seq, beat.WhichOneof("event")) for beat in beats] == [(EPOCH, 1, None)] * 2
    hub.publish_device([stored(2)])
    assert (await asyncio.wait_for(anext(stream), 5)).seq == 2


@st.composite
def histories(draw: st.DrawFn) -> list[list[KvEvent]]:
    """Batches of events as a cache would make them."""
    present: set[int] = set()
    batches: list[list[KvEvent]] = []
    for _ in range(draw(st.integers(1, 12))):
        batch: list[KvEvent] = []
        for _ in range(draw(st.integers(0, 4))):
            number = draw(st.integers(0, 9))
            if draw(st.integers(0, 20)) == 0:
                batch.append(Cleared())
                present.clear()
            elif number in present:
                batch.append(Removed((key(number),)))
                present.discard(number)
            else:
                batch.append(stored(number))
                present.add(number)
        batches.append(batch)
    return batches


@settings(deadline=None)
@given(batches=histories(), buffer=st.integers(1, 6), stops=st.sets(st.integers(0, 11)))
async def test_whoever_comes_and_goes_ends_up_with_the_whole_set(
    batches: list[list[KvEvent]], buffer: int, stops: set[int]
) -> None:
    hub = KvEventHub(epoch=EPOCH, buffer=buffer)
    follower, truth = Follower(), set[bytes]()
    for index, batch in enumerate(batches):
        hub.publish_device(batch)
        for event in batch:
            match event:
                case Stored():
                    truth |= set(event.keys)
                case Removed():
                    truth -= set(event.keys)
                case Cleared():
                    truth.clear()
        if (index in stops or index == len(batches) - 1) and follower.seq < hub.last_seq:
            await drain(hub.follow(EPOCH, follower.seq + 1), follower, hub.last_seq)
            assert follower.keys == truth


def messages(hub: KvEventHub) -> list[Response]:
    """All that is in the hub's buffer."""
    return [hub.message_of(number, event) for number, event in enumerate(hub._events, 1)]


def test_a_stores_blocks_carry_their_tier_and_come_with_snapshots() -> None:
    hub = KvEventHub(epoch=EPOCH, buffer=64)
    hub.publish_device([stored(1)])
    hub.publish_stored([key(1), key(2)], key(0), worker_pb2.TIER_MEMORY)
    hub.publish_stored([key(2)], key(1), worker_pb2.TIER_DISK)
    hub.publish_removed([key(2), key(3)], worker_pb2.TIER_MEMORY)
    tiers = [(m.stored.tier or m.removed.tier, len(m.stored.keys), len(m.removed.keys)) for m in messages(hub)]
    memory, disk = worker_pb2.TIER_MEMORY, worker_pb2.TIER_DISK
    assert tiers == [(worker_pb2.TIER_DEVICE, 1, 0), (memory, 2, 0), (disk, 1, 0), (memory, 0, 1)]
    parts = {part.snapshot.tier: list(part.snapshot.keys) for part in hub.snapshot()}
    assert parts == {worker_pb2.TIER_DEVICE: [key(1)], memory: [key(1)], disk: [key(2)]}
    assert [part.snapshot.complete for part in hub.snapshot()] == [False, False, True]


def test_no_more_of_a_stores_blocks_are_told_of_than_allowed() -> None:
    hub = KvEventHub(epoch=EPOCH, buffer=64, max_store_keys=3)
    hub.publish_stored([key(1), key(2)], key(0), worker_pb2.TIER_MEMORY)
    hub.publish_stored([key(3), key(4)], key(2), worker_pb2.TIER_DISK)
    hub.publish_stored([key(5)], key(4), worker_pb2.TIER_DISK)
    assert [len(message.stored.keys) for message in messages(hub)] == [2, 1]
    hub.publish_removed([key(4), key(1)], worker_pb2.TIER_MEMORY)
    hub.publish_stored([key(5)], key(4), worker_pb2.TIER_DISK)
    assert len(messages(hub)) == 4


def test_a_device_that_clears_its_cache_leaves_the_store_known() -> None:
    hub = KvEventHub(epoch=EPOCH, buffer=64)
    hub.publish_stored([key(2)], key(1), worker_pb2.TIER_DISK)
    hub.publish_device([Cleared()])
    kinds = [message.WhichOneof("event") for message in messages(hub)]
    assert kinds == ["stored", "cleared", "stored"]
    assert messages(hub)[2].stored.tier == worker_pb2.TIER_DISK


def test_what_a_store_is_found_to_hold_replaces_what_was_known() -> None:
    hub = KvEventHub(epoch=EPOCH, buffer=64)
    hub.publish_stored([key(1), key(2)], key(0), worker_pb2.TIER_MEMORY)
    hub.replace_stored({worker_pb2.TIER_MEMORY: {key(2), key(3)}})
    hub.replace_stored({})
    told = [(m.WhichOneof("event"), [*m.stored.keys, *m.removed.keys]) for m in messages(hub)[1:3]]
    assert told == [("removed", [key(1)]), ("stored", [key(3)])]
    assert {*messages(hub)[3].removed.keys} == {key(2), key(3)}
