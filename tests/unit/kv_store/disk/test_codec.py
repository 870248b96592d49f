"""Compression of the tier: lossless, optional, and never trusted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shoal.kv_store.disk import Record, RecordMetadata, SegmentLog, ShuffledZstd
from support.disk_faults import CAPACITY_BYTES, OPTIONS, SEGMENT_BYTES, key

pytest.importorskip("zstandard")


def values(num_bytes: int) -> bytes:
    """bfloat16 numbers as KV blocks have them: normal, most of one magnitude."""
    numbers = np.random.default_rng(1).normal(size=num_bytes // 2).astype(np.float32)
    return (numbers.view(np.uint32) >> 16).astype(np.uint16).tobytes()


@pytest.mark.parametrize("element_bytes", [1, 2, 4])
def test_what_is_compressed_comes_back(element_bytes: int) -> None:
    codec = ShuffledZstd(element_bytes)
    for data in (values(20_000), bytes(4096)):
        stored = codec.encode(memoryview(data))
        if stored is not None:
            assert codec.decode(memoryview(stored), len(data)) == data
    assert codec.encode(memoryview(bytes(4096))) is not None


def test_shuffled_halves_shrink_by_a_quarter() -> None:
    data = values(1 << 20)
    stored = ShuffledZstd(2).encode(memoryview(data))
    assert stored is not None
    assert len(stored) < 0.78 * len(data)


def test_noise_is_stored_as_it_is() -> None:
    noise = np.random.default_rng(1).bytes(8192)
    assert ShuffledZstd().encode(memoryview(noise)) is None


def test_forms_of_another_size_are_refused() -> None:
    codec = ShuffledZstd()
    stored = codec.encode(memoryview(bytes(1 << 20)))
    assert stored is not None
    for wrong, size in ((stored, 4096), (stored[:-3], 1 << 20), (b"no zstd", 1 << 20)):
        with pytest.raises(ValueError, match=r"holds|zstd|frame|content|decompress"):
            codec.decode(memoryview(wrong), size)


def test_a_log_reads_what_any_codec_wrote(tmp_path: Path) -> None:
    for number, codec in enumerate((ShuffledZstd(2), None, ShuffledZstd(4))):
        log = SegmentLog(tmp_path, CAPACITY_BYTES, SEGMENT_BYTES, options=replace(OPTIONS, codec=codec))
        data = values(16_384)
        log.write(Record(RecordMetadata(key(number), bytes(16), b"f", "t", len(data)), data)).result()
        if number == 0:
            assert log.stats().compression_ratio > 1.2
        for written in range(number + 1):
            into = bytearray(len(data))
            location = log.find(key(written))
            assert location is not None
            log.read(location, memoryview(into)).result()
            assert into == data
        log.close()
