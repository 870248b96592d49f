"""Rows and hash tables against a dictionary, and what a checkpoint keeps of them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.kv_store.disk import checkpoint
from shoal.kv_store.disk.index import NO_ROW, Entry, Index
from shoal.kv_store.disk.layout import RecordMetadata
from support.disk_faults import key

NUM_SEGMENTS = 3


def entry(number: int, slot: int) -> Entry:
    metadata = RecordMetadata(key(number), key(number - 1), b"f%d" % (number % 2), f"t{number % 5}", 100 + number)
    return Entry(metadata, slot, 4096 * (number + 1), 90 + number, 0)


@given(st.lists(st.tuples(st.sampled_from(["insert", "kill", "free"]), st.integers(0, 40), st.integers(0, 2))))
@settings(max_examples=150, deadline=None)
def test_the_index_is_a_dictionary(steps: list[tuple[str, int, int]]) -> None:
    index = Index()
    heads = [NO_ROW] * NUM_SEGMENTS
    model: dict[int, int] = {}
    for what, number, slot in steps:
        if what == "free":
            index.free_chain(heads[slot])
            heads[slot] = NO_ROW
            model = {key: at for key, at in model.items() if at != slot}
            continue
        row = index.find(key(number))
        assert (row != NO_ROW) == (number in model)
        if row != NO_ROW:
            index.kill(row)
            del model[number]
        if what == "insert":
            heads[slot] = index.insert(entry(number, slot), heads[slot])
            model[number] = slot
    check(index, model)
    data = checkpoint.encode(index, [], 1 << 15)
    checkpoint.seal(data)
    copy, _ = checkpoint.decode(memoryview(data), 1 << 15, 100)
    check(copy, model)
    for head in heads:
        copy.free_chain(head)
    assert copy.num_used_rows == copy.num_live == 0
    assert all(uses == 0 for _, uses in copy.tenants.items())


def check(index: Index, model: dict[int, int]) -> None:
    assert index.num_live == len(model)
    for number in range(41):
        row = index.find(key(number))
        assert (row != NO_ROW) == (number in model)
        if row != NO_ROW:
            found = index.entry(row)
            assert found[:4] == entry(number, model[number])[:4]
            assert found.num_children <= (number + 1 in model)


def test_memory_of_a_block() -> None:
    index, head = Index(), NO_ROW
    for number in range(100_000):
        head = index.insert(entry(number, 0), head)
    assert index.num_bytes / 100_000 <= 80
    assert index.find(key(99_999)) == head


@pytest.mark.parametrize("seed", range(20))
def test_a_checkpoint_with_a_wrong_bit_is_refused(seed: int) -> None:
    index, head = Index(), NO_ROW
    for number in range(50):
        head = index.insert(entry(number, 0), head)
    data = checkpoint.encode(index, [checkpoint.SegmentMark(0, bytes(16), 1, 4096, True, head, 1, 50)], 1 << 15)
    checkpoint.seal(data)
    order = random.Random(seed)
    data[order.randrange(len(data))] ^= 1 << order.randrange(8)
    with pytest.raises(ValueError, match="checkpoint"):
        checkpoint.decode(memoryview(data), 1 << 15, 100)


def test_tenants_without_blocks_give_their_number_back() -> None:
    index = Index(max_names=8)
    for number in range(1000):
        metadata = entry(number, 0).metadata._replace(tenant=f"tenant-{number}")
        row = index.insert(entry(number, 0)._replace(metadata=metadata), NO_ROW)
        assert index.entry(row).metadata.tenant == f"tenant-{number}"
        index.free_chain(row)
    for number in range(8):
        metadata = entry(number, 0).metadata._replace(tenant=f"tenant-{number}")
        index.insert(entry(number, 0)._replace(metadata=metadata), NO_ROW)
    assert not index.has_room_for_names(entry(0, 0).metadata)
