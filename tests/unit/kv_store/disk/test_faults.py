"""A disk that fails, fills up, lies, or does not answer: no wrong byte, no wait without end, each counted."""

from __future__ import annotations

import errno
import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.checksum import crc32c
from shoal.kv_store.disk import (
    Corrupt,
    DiskError,
    Gone,
    IoFailed,
    NotAdmitted,
    OutOfService,
    Record,
    SegmentLog,
    Stalled,
)
from shoal.kv_store.disk.layout import RecordHeader, pack_record
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
from support.eventually import wait_until


@pytest.fixture
def files() -> FaultyFiles:
    return FaultyFiles()


@pytest.fixture
def open_log(tmp_path: Path, files: FaultyFiles) -> Callable[..., SegmentLog]:
    def open_(io_timeout_s: float = 5.0) -> SegmentLog:
        return SegmentLog(tmp_path, CAPACITY_BYTES, SEGMENT_BYTES, io_timeout_s, options=OPTIONS, files=files)

    return open_


Opener = Callable[..., SegmentLog]


# --- errors -----------------------------------------------------------------------------------------------------------


def test_failing_reads_take_reads_out_of_service_and_probes_bring_them_back(
    open_log: Opener, files: FaultyFiles
) -> None:
    log = open_log()
    write(log, 1)
    files.fail("preadv", errno.EIO)
    for _ in range(3):
        with pytest.raises(IoFailed):
            read(log, 1)
    with pytest.raises(OutOfService, match="reads are out of service"):
        read(log, 1)
    assert not log.healthy
    assert "reads" in log.reason
    files.heal()
    wait_until(lambda: log.healthy, "a probe finds the disk in order")
    assert read(log, 1) == payload(1)
    stats = log.stats()
    assert (stats.num_io_errors, stats.num_openings) == (3, 1)
    log.close()


def test_failing_writes_leave_reads_in_service(open_log: Opener, files: FaultyFiles) -> None:
    log = open_log()
    write(log, 1)
    files.fail("pwritev", errno.EIO)
    for number in range(2, 5):
        with pytest.raises(IoFailed):
            write(log, number)
    with pytest.raises(OutOfService, match="writes are out of service"):
        write(log, 5)
    assert read(log, 1) == payload(1)
    files.heal()
    wait_until(lambda: log.healthy, "a probe finds the disk in order")
    write(log, 5)
    assert read(log, 5) == payload(5)
    log.close()


def test_a_read_only_disk_serves_reads_at_once_and_on(open_log: Opener, files: FaultyFiles) -> None:
    log = open_log()
    write(log, 1)
    files.fail("pwritev", errno.EROFS)
    with pytest.raises(IoFailed):
        write(log, 2)
    with pytest.raises(OutOfService, match="read-only"):
        write(log, 3)
    assert read(log, 1) == payload(1)
    log.close()


def test_a_full_disk_means_fewer_segments(open_log: Opener, files: FaultyFiles, tmp_path: Path) -> None:
    log = open_log()
    for number in range(12):
        write(log, number)
    num_segments = log.stats().num_segments
    files.fail("allocate", errno.ENOSPC)
    outcomes = [log.write(record(number)).exception(timeout=10) for number in range(12, 60)]
    refused = [error for error in outcomes if error is not None]
    assert len(refused) < 5
    assert all(isinstance(error, NotAdmitted) and error.reason in ("disk_full", "no_space") for error in refused)
    assert log.healthy
    assert log.stats().num_segments == num_segments
    assert read(log, 59) == payload(59)
    assert disk_bytes(tmp_path) <= (num_segments + 1) * SEGMENT_BYTES
    log.close()


def test_a_disk_that_is_full_from_the_start_refuses_writes(open_log: Opener, files: FaultyFiles) -> None:
    files.fail("allocate", errno.ENOSPC)
    log = open_log()
    with pytest.raises(NotAdmitted, match="no room"):
        write(log, 1)
    assert log.stats().num_refused == {"disk_full": 1}
    log.close()


@pytest.mark.parametrize("call", ["lock", "create", "pwritev"])
def test_a_folder_that_cannot_be_written_is_refused_at_open(open_log: Opener, files: FaultyFiles, call: str) -> None:
    files.fail(call, errno.EROFS)
    with pytest.raises(OutOfService, match="Read-only"):
        open_log()
    files.heal()
    open_log().close()


@pytest.mark.parametrize("direct", [True, False])
def test_short_writes_and_reads_are_continued(open_log: Opener, files: FaultyFiles, direct: bool) -> None:
    files.refuses_direct = not direct
    log = open_log()
    sizes = random.Random(1)
    files.limit = lambda name, num_bytes: max(4096, sizes.randrange(1, num_bytes + 1) // 512 * 512)
    for number in range(20):
        write(log, number)
    for number in range(20):
        assert read(log, number) == payload(number)
    log.close()


def test_writes_that_write_nothing_fail(open_log: Opener, files: FaultyFiles) -> None:
    log = open_log()
    write(log, 1)
    files.limit = lambda name, num_bytes: 0 if name == "pwritev" else num_bytes
    with pytest.raises(IoFailed):
        write(log, 2)
    files.limit = lambda name, num_bytes: num_bytes
    log.close()


def test_without_o_direct_every_record_is_synced(open_log: Opener, files: FaultyFiles) -> None:
    files.refuses_direct = True
    log = open_log()
    write(log, 1)
    num_syncs = 0

    def count(name: str, argument: object) -> None:
        nonlocal num_syncs
        num_syncs += name == "fdatasync"

    files.on_call = count
    write(log, 2, num_bytes=100)
    assert num_syncs == 1
    log.close()


def test_what_a_failed_sync_left_is_not_taken_for_durable(open_log: Opener, files: FaultyFiles, tmp_path: Path) -> None:
    """The checkpoint after it covers what was synced before; the rest is scanned and verified."""
    log = open_log()
    write(log, 1, num_bytes=100)
    assert log.checkpoint()
    write(log, 2, num_bytes=100)
    files.fail("fdatasync", errno.EIO, times=1)
    assert not log.checkpoint()
    assert log.stats().num_checkpoint_failures == 1
    assert log.checkpoint()
    location = log.find(key(2))
    assert location is not None
    log.close()
    _overwrite(_segment_of(tmp_path, location.sequence), location.offset_bytes + 4096, b"\xff")
    log = open_log()
    assert log.find(key(1)) is not None
    assert log.find(key(2)) is None, "it was verified, though a checkpoint came after it"
    assert log.stats().num_torn == 1
    log.close()


def test_what_a_sync_that_hangs_left_is_not_taken_for_durable(open_log: Opener, files: FaultyFiles) -> None:
    """It may still fail, when nobody listens any more; a later one that succeeds says nothing about what it left."""
    log = open_log(io_timeout_s=0.3)
    write(log, 1, num_bytes=100)
    released = files.block("fdatasync", times=1)
    assert not log.checkpoint()
    released.set()
    files.heal()
    segment = log._volume.segments.open
    assert segment is not None
    assert segment.suspect
    wait_until(lambda: log.healthy, "the disk is back")
    assert log.checkpoint()
    assert segment.synced_bytes < segment.end_bytes
    log.close()


def test_without_o_direct_a_failed_sync_of_one_record_is_one_of_all(open_log: Opener, files: FaultyFiles) -> None:
    """The kernel tells it once: the next sync of the same file succeeds, whatever was lost."""
    files.refuses_direct = True
    log = open_log()
    write(log, 1, num_bytes=100)
    files.fail("fdatasync", errno.EIO, times=1)
    with pytest.raises(IoFailed):
        write(log, 2, num_bytes=100)
    assert log.checkpoint()
    segment = log._volume.segments.open
    assert segment is not None
    assert segment.synced_bytes < segment.end_bytes
    log.close()


@pytest.mark.parametrize(
    ("fault", "broken", "kept"), [("header", 3, {1, 2}), ("stall", 2, {1}), ("payload", 2, {1, 3}), ("header", 2, {1})]
)
def test_a_tail_that_cannot_be_read_costs_the_tail(
    open_log: Opener, files: FaultyFiles, fault: str, broken: int, kept: set[int]
) -> None:
    """Blocks that the checkpoint covers, and those of the tail that were read, are kept."""
    log = open_log()
    write(log, 1, num_bytes=100)
    assert log.checkpoint()
    for number in (2, 3):
        write(log, number, num_bytes=100)
    location = log.find(key(broken))
    assert location is not None
    assert len(log._volume.segments.by_slot) == 1, "all in one segment"
    log._maintenance.checkpoint = lambda: False  # type: ignore[method-assign]  # dies without one
    log.close()
    wanted = location.offset_bytes + (4096 if fault == "payload" else 0)
    released = threading.Event()

    def break_one(name: str, offset: object) -> None:
        if name == "preadv" and offset == wanted:
            if fault == "stall":
                released.wait(30)
            raise OSError(errno.EIO, "Input/output error")

    files.on_call = break_one
    log = open_log(io_timeout_s=0.3)
    assert {number for number in (1, 2, 3) if log.find(key(number)) is not None} == kept
    assert log.stats().num_io_errors >= 1
    released.set()
    files.heal()
    later = {broken, 6, 7, 8, 9}
    for number in later:
        write(log, number, num_bytes=100)
    for number in kept | later:
        assert read(log, number, num_bytes=100) == payload(number, 100)
    assert log.checkpoint()
    log.close()
    log = open_log()
    for number in kept | later:
        assert read(log, number, num_bytes=100) == payload(number, 100)
    log.close()


# --- bits -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 5, 12, 30, 40, 60, 100, 300, 360, 4096, 4097, 6000])
def test_a_flipped_bit_is_never_served(open_log: Opener, tmp_path: Path, offset: int) -> None:
    log = open_log()
    write(log, 1, num_bytes=5000)
    location = log.find(key(1))
    assert location is not None
    _flip(_segment_of(tmp_path, location.sequence), location.offset_bytes + offset)
    with pytest.raises(Corrupt):
        read(log, 1, num_bytes=5000)
    with pytest.raises(Gone):
        read(log, 1, num_bytes=5000)
    assert log.stats().num_corrupt == 1
    write(log, 1, num_bytes=5000)
    assert read(log, 1, num_bytes=5000) == payload(1, 5000)
    log.close()


def test_a_record_of_another_block_in_its_place_is_not_served(open_log: Opener, tmp_path: Path) -> None:
    log = open_log()
    first, second = (log.write(record(number, 4096)).result() for number in (1, 2))
    path = _segment_of(tmp_path, first.sequence)
    with path.open("rb") as file:
        file.seek(second.offset_bytes)
        other = file.read(8192)
    _overwrite(path, first.offset_bytes, other)
    with pytest.raises(Corrupt):
        read(log, 1, num_bytes=4096)
    log.close()


def test_a_payload_cannot_pass_for_a_record(open_log: Opener, tmp_path: Path) -> None:
    """A scan looks for headers inside a record whose own header is broken; a forged one lacks the segment's nonce."""
    log = open_log()
    forged = RecordHeader(record(2, 4096).metadata, bytes(16), 8192, 0, 4096, crc32c(payload(3, 4096)), 0)
    data = pack_record(forged).ljust(4096, b"\0") + payload(3, 4096)
    location = log.write(Record(record(1, 8192).metadata, data)).result()
    assert location.offset_bytes == 4096, "the payload, and so the forged header, is at 8192"
    log.close()
    _flip(_segment_of(tmp_path, location.sequence), location.offset_bytes)
    (tmp_path / "checkpoint").unlink()
    log = open_log()
    assert list(log.replay()) == []
    log.close()


def test_what_an_earlier_use_of_a_segment_left_is_not_found(open_log: Opener, tmp_path: Path) -> None:
    log = open_log()
    for number in range(400):
        write(log, number)
    gone = {key(number) for number in range(400) if log.find(key(number)) is None}
    assert len(gone) > 100
    log.close()
    (tmp_path / "checkpoint").unlink()
    log = open_log()
    assert not gone & {metadata.key for metadata, _ in log.replay()}
    log.close()


def test_many_corrupt_blocks_take_reads_out_of_service(open_log: Opener, tmp_path: Path) -> None:
    log = open_log()
    for number in range(20):
        location = log.write(record(number)).result()
        _flip(_segment_of(tmp_path, location.sequence), location.offset_bytes + 4100)
    outcomes = []
    for number in range(20):
        with pytest.raises(DiskError) as caught:
            read(log, number)
        outcomes.append(type(caught.value))
    assert outcomes[:15] == [Corrupt] * 15
    assert outcomes[15] is OutOfService
    log.close()


@pytest.mark.parametrize("lost", ["removed", "flipped", "truncated", "empty"])
def test_a_lost_checkpoint_costs_a_scan(open_log: Opener, tmp_path: Path, lost: str) -> None:
    log = open_log()
    for number in range(30):
        write(log, number)
    log.close()
    path = tmp_path / "checkpoint"
    if lost == "removed":
        path.unlink()
    elif lost == "flipped":
        _flip(path, path.stat().st_size // 2)
    else:
        path.write_bytes(path.read_bytes()[: 0 if lost == "empty" else 1000])
    log = open_log()
    assert len(log) == 30
    assert log.stats().num_corrupt == (lost != "removed")
    for number in range(30):
        assert read(log, number) == payload(number)
    log.close()


@pytest.mark.parametrize("num_bytes", [0, 100, 4096, 10_000, 20_480])
@pytest.mark.parametrize("with_checkpoint", [True, False])
def test_truncated_segments_lose_only_what_is_cut(
    open_log: Opener, tmp_path: Path, num_bytes: int, with_checkpoint: bool
) -> None:
    log = open_log()
    for number in range(12):
        write(log, number, num_bytes=4000)
    log.close()
    if not with_checkpoint:
        (tmp_path / "checkpoint").unlink()
    for path in tmp_path.glob("segment-*"):
        with path.open("r+b") as file:
            file.truncate(num_bytes)
    log = open_log()
    found = 0
    for number in range(12):
        try:
            assert read(log, number, num_bytes=4000) == payload(number, 4000)
            found += 1
        except (Corrupt, Gone):
            pass
    assert found == 4 * min(3, max(0, num_bytes - 4096) // 8192)
    for number in range(100, 112):
        write(log, number)
        assert read(log, number) == payload(number)
    log.close()


# --- stalls -----------------------------------------------------------------------------------------------------------


def test_a_stalled_read_fails_in_time_and_never_touches_the_memory_again(open_log: Opener, files: FaultyFiles) -> None:
    log = open_log(io_timeout_s=0.5)
    write(log, 1)
    location = log.find(key(1))
    assert location is not None
    released = files.block("preadv", times=1)
    into = bytearray(len(payload(1)))
    start_s = time.monotonic()
    with pytest.raises(Stalled):
        log.read(location, memoryview(into)).result(timeout=10)
    assert time.monotonic() - start_s < 10
    assert log.stats().num_lost_threads == 1
    released.set()
    wait_until(lambda: log.stats().num_lost_threads == 0, "the thread comes back")
    assert not any(into)
    assert read(log, 1) == payload(1)
    assert log.stats().num_stalls == 1
    log.close()


def test_a_stalled_write_is_not_published_and_its_segment_not_used_again(open_log: Opener, files: FaultyFiles) -> None:
    log = open_log(io_timeout_s=0.5)
    write(log, 1)
    released = files.block("pwritev", times=1)
    with pytest.raises(Stalled):
        write(log, 2)
    assert log.find(key(2)) is None
    write(log, 3)
    assert read(log, 3) == payload(3)
    released.set()
    wait_until(lambda: log.stats().num_lost_threads == 0, "the thread comes back")
    assert log.find(key(2)) is None
    write(log, 2)
    assert read(log, 2) == payload(2)
    log.close()


def test_a_segment_is_not_used_again_under_a_slow_read(tmp_path: Path, files: FaultyFiles) -> None:
    log = SegmentLog(tmp_path, CAPACITY_BYTES // 4, SEGMENT_BYTES, 20.0, options=OPTIONS, files=files)
    location = log.write(record(0)).result()
    released = files.block("preadv", times=1)
    into = bytearray(len(payload(0)))
    slow = log.read(location, memoryview(into))
    for number in range(1, 200):
        write(log, number)
    assert log.find(key(0)) is None
    released.set()
    slow.result(timeout=10)
    assert into == payload(0)
    assert log.stats().num_corrupt == 0
    log.close()


def test_a_late_write_hits_no_other_block(tmp_path: Path, files: FaultyFiles) -> None:
    log = SegmentLog(tmp_path, CAPACITY_BYTES // 4, SEGMENT_BYTES, 1.0, options=OPTIONS, files=files)
    write(log, 0)
    released = files.block("pwritev", times=1)
    with pytest.raises(Stalled):
        write(log, 1)
    for number in range(2, 200):
        write(log, number)
    released.set()
    wait_until(lambda: log.stats().num_lost_threads == 0, "the late write is done")
    for metadata, _ in list(log.replay()):
        number = next(number for number in range(200) if key(number) == metadata.key)
        assert read(log, number) == payload(number)
    assert log.stats().num_corrupt == 0
    log.close()


def test_a_stall_while_a_segment_is_opened_does_not_stop_other_writers(open_log: Opener, files: FaultyFiles) -> None:
    log = open_log(io_timeout_s=0.5)
    released = files.block("allocate", times=1)
    with pytest.raises(Stalled):
        write(log, 1)
    write(log, 2)
    assert read(log, 2) == payload(2)
    released.set()
    log.close()


def test_a_disk_that_hangs_is_out_of_service_within_bounds_and_comes_back(open_log: Opener, files: FaultyFiles) -> None:
    log = open_log(io_timeout_s=0.5)
    write(log, 1)
    released = files.block("preadv")
    start_s = time.monotonic()
    for _ in range(20):
        with pytest.raises((Stalled, OutOfService)):
            read(log, 1)
    assert time.monotonic() - start_s < 10
    assert not log.healthy
    assert log.stats().num_lost_threads <= OPTIONS.max_lost_threads
    with pytest.raises(OutOfService):
        write(log, 2)
    files.heal()
    released.set()
    wait_until(lambda: log.healthy and log.stats().num_lost_threads == 0, "it is in service again")
    assert read(log, 1) == payload(1)
    log.close()


def test_closing_a_hanging_log_ends(open_log: Opener, files: FaultyFiles) -> None:
    log = open_log(io_timeout_s=0.5)
    write(log, 1)
    released = files.block("fdatasync")
    start_s = time.monotonic()
    log.close()
    assert time.monotonic() - start_s < 10
    released.set()


def test_opening_on_a_hanging_disk_fails_in_time(open_log: Opener, files: FaultyFiles) -> None:
    released = files.block("lock")
    start_s = time.monotonic()
    with pytest.raises(OutOfService, match="cannot be opened"):
        open_log(io_timeout_s=0.5)
    assert time.monotonic() - start_s < 10
    released.set()


def test_requests_beyond_the_queue_are_refused_at_once(tmp_path: Path, files: FaultyFiles) -> None:
    options = replace(OPTIONS, max_queued=4)
    log = SegmentLog(tmp_path, CAPACITY_BYTES, SEGMENT_BYTES, 5.0, options=options, files=files)
    released = files.block("pwritev")
    futures = [log.write(record(number)) for number in range(20)]
    refused = [future for future in futures if future.done()]
    assert len(refused) >= 20 - 2 * options.max_queued
    for future in refused:
        assert isinstance(future.exception(), NotAdmitted)
    released.set()
    for future in futures:
        future.exception(timeout=10)
    assert sum(log.stats().num_refused.values()) == len(refused)
    log.close()


def _segment_of(folder: Path, sequence: int) -> Path:
    """Fresh logs use their slots in order."""
    return folder / f"segment-{sequence - 1:06d}.log"


def _flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def _overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
