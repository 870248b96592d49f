"""KvEventFeed: in step with the worker, or knowing that it is not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.api.worker.v1 import worker_pb2
from shoal.blocks import KeyChain
from shoal.gateway.routing.prefix_index import CachedPrefix, PrefixIndex
from shoal.gateway.workers.kv_events import EventGap, KvEventFeed

KEYS = [bytes([i]) * 16 for i in range(8)]
Event = worker_pb2.SubscribeKvEventsResponse
DEVICE = worker_pb2.TIER_DEVICE
keys = st.lists(st.sampled_from(KEYS), min_size=1, max_size=3)


def stored(seq: int, held: list[bytes], epoch: int = 1, tier: Any = DEVICE) -> Event:
    return Event(epoch=epoch, seq=seq, stored=worker_pb2.KvStored(keys=held, tier=tier))


def removed(seq: int, held: list[bytes]) -> Event:
    return Event(epoch=1, seq=seq, removed=worker_pb2.KvRemoved(keys=held, tier=DEVICE))


def cleared(seq: int) -> Event:
    return Event(epoch=1, seq=seq, cleared=worker_pb2.KvCleared())


def snapshot(seq: int, held: list[bytes], *, complete: bool = True, epoch: int = 1, tier: Any = DEVICE) -> Event:
    return Event(epoch=epoch, seq=seq, snapshot=worker_pb2.KvSnapshot(keys=held, tier=tier, complete=complete))


class FakeCache:
    """A worker's cache and its numbered event log."""

    def __init__(self) -> None:
        self.held: set[bytes] = set()
        self.log: list[Event] = []

    def do(self, name: str, some: list[bytes]) -> None:
        seq = len(self.log) + 1
        if name == "stored":
            self.held.update(some)
            self.log.append(stored(seq, some))
        elif name == "removed":
            self.held.difference_update(some)
            self.log.append(removed(seq, some))
        else:
            self.held.clear()
            self.log.append(cleared(seq))

    def answer(self, request: worker_pb2.SubscribeKvEventsRequest) -> list[Event]:
        """What a subscription begins with."""
        if request.epoch != 1 or request.start_seq == 0:
            parts = sorted(self.held)
            middle = len(parts) // 2
            seq = len(self.log)
            return [snapshot(seq, parts[:middle], complete=False), snapshot(seq, parts[middle:])]
        return self.log[request.start_seq - 1 :]


steps = st.lists(
    st.tuples(st.sampled_from(["stored", "removed", "cleared"]), keys, st.sampled_from(["ok", "lost", "twice", "cut"])),
    max_size=30,
)


@settings(deadline=None)
@given(steps)
def test_the_index_is_the_workers_cache_whenever_the_feed_is_in_step(
    operations: list[tuple[str, list[bytes], str]],
) -> None:
    cache, index = FakeCache(), PrefixIndex(1000)
    feed = KvEventFeed("w", index)

    def subscribe() -> None:
        for event in cache.answer(feed.next_request):
            feed.apply(event)

    subscribe()
    for name, some, fate in operations:
        cache.do(name, some)
        if fate == "cut":
            subscribe()
        for _ in range({"ok": 1, "lost": 0, "twice": 2, "cut": 1}[fate]):
            try:
                feed.apply(cache.log[-1])
            except EventGap:
                subscribe()
        if fate != "lost":
            assert {key for key in KEYS if index.match([key])} == cache.held
            assert index.num_keys("w") == len(cache.held)


def in_step(index: PrefixIndex) -> KvEventFeed:
    feed = KvEventFeed("w", index)
    feed.apply(snapshot(5, KEYS[:2]))
    return feed


def test_nothing_is_claimed_before_a_snapshot_is_complete() -> None:
    index = PrefixIndex(100)
    feed = KvEventFeed("w", index)
    assert (feed.next_request.epoch, feed.next_request.start_seq) == (0, 0)
    feed.apply(snapshot(5, KEYS[:1], complete=False))
    assert index.workers == frozenset()
    feed.apply(snapshot(5, KEYS[1:2]))
    assert index.match(KEYS) == {"w": 2}
    assert (feed.next_request.epoch, feed.next_request.start_seq) == (1, 6)


def test_a_gap_keeps_what_is_known_and_asks_for_the_missing_event() -> None:
    index = PrefixIndex(100)
    feed = in_step(index)
    with pytest.raises(EventGap, match="expected event 6, got 8"):
        feed.apply(stored(8, KEYS[2:3]))
    assert index.match(KEYS) == {"w": 2}
    assert feed.next_request.start_seq == 6


def test_another_epoch_voids_everything() -> None:
    index = PrefixIndex(100)
    feed = in_step(index)
    with pytest.raises(EventGap, match="restarted"):
        feed.apply(stored(6, KEYS[2:3], epoch=2))
    assert index.workers == frozenset()
    assert feed.next_request.start_seq == 0


def test_a_changed_epoch_by_get_info_voids_everything_and_the_same_one_nothing() -> None:
    index = PrefixIndex(100)
    feed = in_step(index)
    feed.expect_epoch(1)
    assert index.match(KEYS) == {"w": 2}
    feed.expect_epoch(2)
    assert index.workers == frozenset()


def test_an_event_inside_a_snapshot_is_a_gap() -> None:
    index = PrefixIndex(100)
    feed = in_step(index)
    feed.apply(snapshot(9, KEYS[:1], complete=False))
    with pytest.raises(EventGap, match="interrupted"):
        feed.apply(stored(6, KEYS[2:3]))
    assert index.workers == frozenset()


def test_a_snapshot_cut_in_the_middle_is_forgotten() -> None:
    index = PrefixIndex(100)
    feed = KvEventFeed("w", index)
    feed.apply(snapshot(5, KEYS[:4], complete=False))
    assert feed.next_request.start_seq == 0
    feed.apply(snapshot(6, KEYS[:1]))
    assert index.match(KEYS) == {"w": 1}


def test_tiers_are_kept_apart_and_unknown_ones_keep_the_numbering() -> None:
    index = PrefixIndex(100)
    feed = in_step(index)
    feed.apply(stored(6, KEYS[2:4], tier=worker_pb2.TIER_DISK))
    feed.apply(stored(7, KEYS[2:3], tier=worker_pb2.TIER_MEMORY))
    feed.apply(stored(8, KEYS[2:8], tier=99))
    assert index.match(KEYS) == {"w": 2}
    assert index.match_tiers(KEYS) == {"w": CachedPrefix(2, 2, 3, 4)}
    feed.apply(stored(9, KEYS[2:3]))
    assert index.match_tiers(KEYS) == {"w": CachedPrefix(3, 3, 3, 4)}
    feed.apply(cleared(10))
    assert index.match_tiers(KEYS) == {}


def test_a_snapshot_tells_every_tier() -> None:
    index = PrefixIndex(100)
    feed = KvEventFeed("w", index)
    feed.apply(snapshot(5, KEYS[:2], complete=False))
    feed.apply(snapshot(5, KEYS[1:4], tier=worker_pb2.TIER_MEMORY, complete=False))
    feed.apply(snapshot(5, KEYS[:8], tier=99))
    assert index.match_tiers(KEYS) == {"w": CachedPrefix(2, 2, 4, 4)}


def test_what_was_known_holds_until_the_snapshot_that_replaces_it_is_complete() -> None:
    index = PrefixIndex(100)
    feed = in_step(index)
    assert feed.next_request.start_seq == 6
    feed.apply(snapshot(9, KEYS[:4], complete=False))
    assert index.match(KEYS) == {"w": 2}
    feed.apply(snapshot(9, KEYS[4:6]))
    assert index.match(KEYS) == {"w": 6}
    assert feed.next_request.start_seq == 10


def test_a_worker_that_dies_leaves_nothing() -> None:
    index = PrefixIndex(100)
    feed = in_step(index)
    index.expect("w", KeyChain.of(KEYS))
    feed.apply(snapshot(9, KEYS[:4], complete=False))
    feed.forget()
    assert index.workers == frozenset()
    feed.apply(snapshot(1, KEYS[:1], epoch=2))
    assert index.match(KEYS) == {"w": 1}
    index.settle()
    assert len(index) == 1


@pytest.mark.parametrize("event", [stored(6, [bytes(15)]), removed(6, [bytes(17)]), snapshot(6, [b""])])
def test_keys_of_another_size_are_a_gap_and_void_everything(event: Event) -> None:
    index = PrefixIndex(100)
    feed = in_step(index)
    with pytest.raises(EventGap, match="event 6 makes no sense: a block key has 16 bytes"):
        feed.apply(event)
    assert index.workers == frozenset()
    assert feed.next_request.start_seq == 0


def test_heartbeats_change_nothing_and_tell_of_lost_events() -> None:
    index = PrefixIndex(100)
    feed = KvEventFeed("w", index)
    feed.apply(snapshot(3, KEYS[:2]))
    feed.apply(Event(epoch=1, seq=3))
    assert index.match(KEYS) == {"w": 2}
    with pytest.raises(EventGap, match="event 4, which never came"):
        feed.apply(Event(epoch=1, seq=4))
    assert feed.next_request.start_seq == 4
    with pytest.raises(EventGap, match="restarted"):
        feed.apply(Event(epoch=2, seq=4))
    assert not index.knows("w")
