"""Blocks in and out, by key, in bounded space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from shoal.checksum import crc32c
from shoal.kv_store.disk import Corrupt, DiskError, Gone, OutOfService, Record, SegmentLog
from support.disk_faults import (
    CAPACITY_BYTES,
    OPTIONS,
    SEGMENT_BYTES,
    FaultyFiles,
    disk_bytes,
    key,
    payload,
    read,
    record,
    write,
)


class Worth:
    """Prices blocks by what a test says, and remembers what was dropped."""

    def __init__(self, cost_s: dict[bytes, float]) -> None:
        self.cost_s = cost_s
        self.gone: list[bytes] = []

    def cost_of_losing_s(self, key: bytes) -> float:
        return self.cost_s.get(key, 0.0)

    def dropped(self, keys: Sequence[bytes]) -> None:
        self.gone.extend(keys)


def open_log(folder: Path, capacity_bytes: int = CAPACITY_BYTES, worth: Worth | None = None) -> SegmentLog:
    return SegmentLog(folder, capacity_bytes, SEGMENT_BYTES, 5.0, options=OPTIONS, retention=worth)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SegmentLog]:
    log = open_log(tmp_path)
    yield log
    log.close()


def test_a_block_comes_back_with_its_checksum_and_metadata(log: SegmentLog) -> None:
    for size in (1, 4095, 4096, 4097, SEGMENT_BYTES - 8192):
        location = log.write(record(size, size)).result()
        into = bytearray(size)
        assert log.read(location, memoryview(into)).result() == crc32c(payload(size, size))
        assert bytes(into) == payload(size, size)
        assert log.metadata(key(size)) == record(size, size).metadata


def test_a_reopened_log_replays_what_was_written_in_order(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    for number in range(20):
        write(log, number)
    log.remove(key(7))
    log.close()
    log = open_log(tmp_path)
    replayed = list(log.replay())
    assert [metadata.key for metadata, _ in replayed] == [key(number) for number in range(20) if number != 7]
    for metadata, location in replayed:
        into = bytearray(metadata.payload_bytes)
        log.read(location, memoryview(into)).result()
        assert log.find(metadata.key) == location
    log.close()


def test_a_reopened_log_goes_on_in_its_segment(tmp_path: Path) -> None:
    for number in range(10):
        log = open_log(tmp_path)
        write(log, number, num_bytes=100)
        assert log.stats().num_segments <= 4
        log.close()


def test_two_writers_of_one_key_write_once(log: SegmentLog) -> None:
    futures = [log.write(record(1)) for _ in range(8)]
    assert len({future.result() for future in futures}) == 1
    stats = log.stats()
    assert (stats.num_written, stats.num_duplicates) == (1, 7)


def test_cancelling_one_writer_does_not_cancel_the_other(tmp_path: Path) -> None:
    files = FaultyFiles()
    log = SegmentLog(tmp_path, CAPACITY_BYTES, SEGMENT_BYTES, 5.0, options=OPTIONS, files=files)
    released = files.block("pwritev", times=1)
    log.write(record(0))
    first, second = log.write(record(1)), log.write(record(1))
    second.cancel()
    released.set()
    assert first.result().key == key(1)
    log.close()


def test_another_fingerprint_under_the_same_key_replaces_the_block(log: SegmentLog) -> None:
    write(log, 1)
    other = record(1).metadata._replace(fingerprint=b"other")
    log.write(Record(other, payload(1))).result()
    assert log.metadata(key(1)) == other
    assert len(log) == 1


def test_removed_blocks_are_gone(log: SegmentLog) -> None:
    location = log.write(record(1)).result()
    assert log.remove(key(1))
    assert not log.remove(key(1))
    assert log.find(key(1)) is None
    with pytest.raises(Gone):
        log.read(location, memoryview(bytearray(len(payload(1))))).result()


def test_a_payload_that_changed_after_its_commit_is_not_written(log: SegmentLog) -> None:
    with pytest.raises(Corrupt):
        log.write(Record(record(1).metadata, payload(1), payload_crc=1)).result()
    assert log.find(key(1)) is None


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (Record(record(1).metadata._replace(key=b"short"), payload(1)), "key"),
        (Record(record(1).metadata._replace(fingerprint=bytes(33)), payload(1)), "fingerprint"),
        (Record(record(1).metadata._replace(tenant="t" * 256), payload(1)), "tenant"),
        (Record(record(1).metadata._replace(payload_bytes=7), payload(1)), "payload"),
        (record(1, SEGMENT_BYTES), "segments"),
    ],
)
def test_what_can_never_be_written_is_refused_by_name(log: SegmentLog, wrong: Record, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        log.write(wrong)


def test_a_block_is_not_read_into_memory_of_another_size_or_read_only(log: SegmentLog) -> None:
    location = log.write(record(1)).result()
    for into in (memoryview(bytearray(10)), memoryview(bytes(len(payload(1))))):
        with pytest.raises(ValueError, match="cannot be read into"):
            log.read(location, into)


def test_the_folder_belongs_to_one_log(tmp_path: Path, log: SegmentLog) -> None:
    with pytest.raises(OutOfService):
        open_log(tmp_path)


@pytest.mark.parametrize(("capacity_bytes", "segment_bytes"), [(1 << 20, 1 << 19), (1 << 20, 5000), (1 << 40, 1 << 20)])
def test_sizes_that_do_not_work_are_refused(tmp_path: Path, capacity_bytes: int, segment_bytes: int) -> None:
    with pytest.raises(ValueError, match="segment_bytes"):
        SegmentLog(tmp_path, capacity_bytes, segment_bytes)


def test_a_full_log_drops_its_oldest_blocks_and_says_which(tmp_path: Path) -> None:
    worth = Worth({})
    capacity_bytes = CAPACITY_BYTES // 4
    log = open_log(tmp_path, capacity_bytes, worth)
    for number in range(200):
        write(log, number)
        assert disk_bytes(tmp_path) <= capacity_bytes
    present = {number for number in range(200) if log.find(key(number))}
    assert set(range(190, 200)) <= present
    log.close()
    assert {key(number) for number in range(200)} - set(worth.gone) == {key(number) for number in present}
    log = open_log(tmp_path, capacity_bytes, worth)
    for number in present:
        assert read(log, number) == payload(number)
    log.close()


def test_a_block_that_costs_more_to_lose_than_to_move_is_moved(tmp_path: Path) -> None:
    worth = Worth({key(number): 10.0 for number in range(0, 20, 3)})
    log = open_log(tmp_path, CAPACITY_BYTES // 4, worth)
    first = {number: log.write(record(number)).result() for number in range(20)}
    for number in range(20, 100):
        write(log, number)
    stats = log.stats()
    assert stats.num_moved > 0
    assert stats.write_amplification < 2
    for number in range(0, 20, 3):
        assert read(log, number) == payload(number)
    assert any(log.find(key(number)) != first[number] for number in range(0, 20, 3))
    log.close()


def test_a_parent_stays_while_blocks_follow_it(tmp_path: Path) -> None:
    log = open_log(tmp_path, CAPACITY_BYTES // 4)
    write(log, 0)
    for number in range(1, 300):
        write(log, number, parent=0)
    assert read(log, 0) == payload(0)
    log.close()


def test_removing_everything_frees_segments_without_io(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    num_free = log.stats().num_free_segments
    for number in range(60):
        write(log, number)
    for number in range(60):
        log.remove(key(number))
    stats = log.stats()
    assert num_free - stats.num_free_segments <= 1
    assert stats.num_moved == stats.num_reclaimed == 0
    log.close()


def test_leftovers_and_a_smaller_capacity_are_cleared_and_other_files_are_not(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    for number in range(100):
        write(log, number)
    log.close()
    (tmp_path / "checkpoint.tmp").write_bytes(b"left")
    (tmp_path / "segment-000999.log").write_bytes(b"left")
    (tmp_path / "mine.txt").write_bytes(b"not the log's")
    log = open_log(tmp_path, CAPACITY_BYTES // 4)
    assert disk_bytes(tmp_path) <= CAPACITY_BYTES // 4
    assert (tmp_path / "mine.txt").exists()
    assert not (tmp_path / "segment-000999.log").exists()
    assert 0 < len(log) < 100
    for metadata, location in log.replay():
        log.read(location, memoryview(bytearray(metadata.payload_bytes))).result()
    log.close()


def test_another_segment_size_starts_empty(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    write(log, 1)
    log.close()
    log = SegmentLog(tmp_path, CAPACITY_BYTES, 2 * SEGMENT_BYTES, options=OPTIONS)
    assert len(log) == 0
    write(log, 1)
    assert read(log, 1) == payload(1)
    log.close()


def test_a_closed_log_refuses(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    write(log, 1)
    log.close()
    log.close()
    with pytest.raises(DiskError):
        write(log, 2)
    with pytest.raises(DiskError):
        read(log, 1)
