"""What a store shows of a disk when it starts."""

from __future__ import annotations

import asyncio
from pathlib import Path

from shoal.kv_store.disk import Record, RecordMetadata, SegmentLog
from support.disk_faults import FaultyFiles
from support.kv_store_core import BLOCK_BYTES, DISK_BYTES, OPTIONS, SEGMENT_BYTES, open_core, payloads
from support.kv_store_running import key, payload


def write(log: SegmentLog, number: int, parent: int = 0, *, tenant: str = "a", num_bytes: int = BLOCK_BYTES) -> None:
    parent_key = key(parent) if parent else bytes(16)
    metadata = RecordMetadata(key(number), parent_key, b"f", tenant, num_bytes)
    log.write(Record(metadata, payload(number, num_bytes))).result(timeout=10)


async def test_only_what_can_be_reached_is_shown_and_the_rest_dropped(tmp_path: Path) -> None:
    log = SegmentLog(tmp_path, DISK_BYTES, SEGMENT_BYTES, options=OPTIONS, files=FaultyFiles())
    for number, parent in ((4, 3), (3, 2), (1, 0), (2, 1), (5, 3), (9, 8)):  # children before parents, an orphan
        write(log, number, parent)
    write(log, 20, num_bytes=BLOCK_BYTES // 2)  # its fingerprint's blocks have another size
    write(log, 32, 31, tenant="b")
    write(log, 30, 1, tenant="b")  # follows another tenant's block
    write(log, 31, 30, tenant="b")
    write(log, 40, tenant="b")
    log.close()
    async with asyncio.timeout(20), open_core(files=FaultyFiles(), folder=tmp_path) as core:
        assert core.lookup(1, 2, 3, 4) == (4, 0)
        assert core.lookup(1, 2, 3, 5) == (4, 0)
        assert core.log is not None
        assert core.stats.num_disk_blocks == len(core.log) == 6
        for number in (9, 20, 30, 31, 32):
            assert core.log.find(key(number)) is None
        assert core.log.find(key(40)) is not None
        assert await core.prefetch(1, 2, 3, 4) == 4
        assert core.read(1, 2, 3, 4) == payloads((1, 2, 3, 4))
