"""What the SSD tier costs: blocks to and from a disk, its index after a restart, and a block's share of memory.

    python benchmarks/kv_disk.py --json kv_disk.json --folder /var/tmp/kv

Blocks of 2 MiB, one at a time and four at once, through `SegmentLog`, beside a loop of O_DIRECT calls of the same size
with as many threads in the same run: `ratio` is ours over the loop's, and what is missing to 1 is copying, checksums
and handing over. On a virtual disk only the ratios mean something. For the index, `peer` is the most that it may be.
"""

from __future__ import annotations

import argparse
import hashlib
import mmap
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import numpy as np

from shoal.kv_store.disk import LogOptions, Record, RecordMetadata, SegmentLog, ShuffledZstd
from shoal.kv_store.disk.index import Entry
from shoal.kv_store.disk.layout import record_bytes
from shoal.kv_store.disk.segments import SegmentState

sys.path.insert(0, str(Path(__file__).resolve().parent))

from rows import Row, write_results

BLOCK_BYTES = 2 << 20
SEGMENT_BYTES = 256 << 20
REPLAY_BAR_S = 3.0
MEMORY_BAR_BYTES = 250.0
LOOKUP_BAR_S = 300e-6
PREFIX_BLOCKS = 256


def key_of(number: int) -> bytes:
    """The key of block `number`."""
    return hashlib.sha256(number.to_bytes(8, "little")).digest()[:16]


def values(num_bytes: int) -> bytes:
    """bfloat16 numbers from a normal distribution: about as hard to compress as KV blocks."""
    numbers = np.random.default_rng(7).normal(size=num_bytes // 2).astype(np.float32)
    return (numbers.view(np.uint32) >> 16).astype(np.uint16).tobytes()


class RawLoop:
    """The same I/O with nothing around it: O_DIRECT where possible, a preallocated file, memory like an arena's."""

    def __init__(self, folder: Path, num_blocks: int) -> None:
        direct = getattr(os, "O_DIRECT", 0)
        self._fd = os.open(folder / "raw", os.O_RDWR | os.O_CREAT | direct, 0o600)
        self._num_blocks = num_blocks
        os.posix_fallocate(self._fd, 0, num_blocks * BLOCK_BYTES)
        self._arena = memoryview(mmap.mmap(-1, num_blocks * BLOCK_BYTES))
        self._arena[:] = values(BLOCK_BYTES) * num_blocks

    def run(self, call: Callable[..., int], num_threads: int) -> float:
        """GB/s of a pass over the file, each thread its part."""

        def work(thread: int) -> None:
            for block in range(thread, self._num_blocks, num_threads):
                offset = block * BLOCK_BYTES
                call(self._fd, [self._arena[offset : offset + BLOCK_BYTES]], offset)

        threads = [threading.Thread(target=work, args=(thread,)) for thread in range(num_threads)]
        start_s = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self._num_blocks * BLOCK_BYTES / (time.perf_counter() - start_s) / 1e9

    def close(self) -> None:
        """Ends it."""
        os.close(self._fd)


def pass_s(num_blocks: int, depth: int, submit: Callable[[int], Future[object]]) -> float:
    """Seconds for all blocks with `depth` of them under way."""
    room = threading.Semaphore(depth)
    futures = []
    start_s = time.perf_counter()
    for block in range(num_blocks):
        room.acquire()
        future = submit(block)
        future.add_done_callback(lambda _: room.release())
        futures.append(future)
    for future in futures:
        future.result()
    return time.perf_counter() - start_s


class Store:
    """A log with memory to write from and read into, as an arena has it: more than the caches."""

    def __init__(self, folder: Path, num_blocks: int, codec: ShuffledZstd | None = None) -> None:
        self.num_blocks = num_blocks
        capacity_bytes = (3 * num_blocks * record_bytes(BLOCK_BYTES)) + 8 * SEGMENT_BYTES
        options = LogOptions(codec=codec, min_payload_bytes=1 << 20, checkpoint_interval_s=3600)
        self.log = SegmentLog(folder, capacity_bytes, SEGMENT_BYTES, 30.0, options=options)
        self._arena = memoryview(mmap.mmap(-1, num_blocks * BLOCK_BYTES))
        block = values(BLOCK_BYTES)
        for number in range(num_blocks):
            self._slot(number)[:] = block
            self._slot(number)[:8] = number.to_bytes(8, "little")

    def write(self, depth: int, first: int) -> float:
        """GB/s of writing every block, under keys from `first` on."""

        def submit(block: int) -> Future[object]:
            metadata = RecordMetadata(key_of(first + block), bytes(16), b"benchmark", "tenant", BLOCK_BYTES)
            return self.log.write(Record(metadata, self._slot(block)))  # type: ignore[return-value]

        return self.num_blocks * BLOCK_BYTES / pass_s(self.num_blocks, depth, submit) / 1e9

    def read(self, depth: int, first: int) -> float:
        """GB/s of reading them back."""

        def submit(block: int) -> Future[object]:
            location = self.log.find(key_of(first + block))
            assert location is not None
            return self.log.read(location, self._slot(block))  # type: ignore[return-value]

        return self.num_blocks * BLOCK_BYTES / pass_s(self.num_blocks, depth, submit) / 1e9

    def _slot(self, number: int) -> memoryview:
        return self._arena[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]


def measure_blocks(folder: Path, num_blocks: int, num_repeats: int) -> list[Row]:
    """Writing and reading, the raw loop and the log in turn."""
    (folder / "loop").mkdir()
    raw = RawLoop(folder / "loop", num_blocks)
    raw.run(os.pwritev, 1)
    rows = []
    for depth in (1, 4):
        ours: dict[str, list[float]] = {"write": [], "read": []}
        loops: dict[str, list[float]] = {"write": [], "read": []}
        store = Store(folder / f"log-{depth}", num_blocks)
        store.write(depth, 10**9)  # the first writes to fresh files cost the file system more
        for number in range(num_blocks):
            store.log.remove(key_of(10**9 + number))
        for repeat in range(num_repeats):
            first = repeat * num_blocks
            loops["write"].append(raw.run(os.pwritev, depth))
            ours["write"].append(store.write(depth, first))
            loops["read"].append(raw.run(os.preadv, depth))
            ours["read"].append(store.read(depth, first))
            for number in range(first, first + num_blocks):
                store.log.remove(key_of(number))
        store.log.close()
        shutil.rmtree(folder / f"log-{depth}")
        for what in ("write", "read"):
            value, peer = statistics.median(ours[what]), statistics.median(loops[what])
            rows.append(Row(f"disk_{what}_qd{depth}", value, "GB/s", peer, value / peer))
    raw.close()
    return rows


def measure_codec(folder: Path, num_blocks: int) -> list[Row]:
    """The codec alone in one thread, and what the tier does with it."""
    codec, data = ShuffledZstd(2), values(BLOCK_BYTES)
    stored = codec.encode(memoryview(data))
    assert stored is not None
    encode_s = median_s(lambda: codec.encode(memoryview(data)), 9)
    decode_s = median_s(lambda: codec.decode(memoryview(stored), BLOCK_BYTES), 9)
    store = Store(folder / "codec", num_blocks, codec)
    write, read = store.write(4, 0), store.read(4, 0)
    ratio = store.log.stats().compression_ratio
    store.log.close()
    return [
        Row("codec_ratio", ratio, "x", None, None),
        Row("codec_encode", BLOCK_BYTES / encode_s / 1e9, "GB/s", None, None),
        Row("codec_decode", BLOCK_BYTES / decode_s / 1e9, "GB/s", None, None),
        Row("disk_write_qd4_codec", write, "GB/s", None, None),
        Row("disk_read_qd4_codec", read, "GB/s", None, None),
    ]


def measure_index(folder: Path, num_records: int) -> list[Row]:
    """The index alone: records that are said to be there, without their bytes."""
    options = LogOptions(min_payload_bytes=4096, checkpoint_interval_s=3600)
    per_segment = SEGMENT_BYTES // 8192 - 1
    capacity_bytes = (num_records // per_segment + 8) * SEGMENT_BYTES * 2
    log = SegmentLog(folder, capacity_bytes, SEGMENT_BYTES, 30.0, options=options)
    fill(log, num_records, per_segment)
    rows = []
    memory = log.stats().index_bytes / num_records
    rows.append(Row("index_memory", memory, "bytes/block", MEMORY_BAR_BYTES, MEMORY_BAR_BYTES / memory))
    prefixes = [[key_of(start + i) for i in range(PREFIX_BLOCKS)] for start in range(0, num_records - 300, 9973)]
    times = [median_s(partial(log.num_leading, keys), 1) for keys in prefixes]
    lookup_s = statistics.median(times)
    rows.append(Row("index_lookup_256", lookup_s * 1e6, "us", LOOKUP_BAR_S * 1e6, LOOKUP_BAR_S / lookup_s))
    log.checkpoint()  # the log may be at one by itself
    start_s = time.perf_counter()
    assert log.checkpoint()
    rows.append(Row("index_checkpoint", time.perf_counter() - start_s, "s", None, None))
    log.close()
    open_times, replay_times = [], []
    for _ in range(3):
        start_s = time.perf_counter()
        log = SegmentLog(folder, capacity_bytes, SEGMENT_BYTES, 30.0, options=options)
        open_times.append(time.perf_counter() - start_s)
        num_replayed = sum(1 for _ in log.replay())
        replay_times.append(time.perf_counter() - start_s)
        log.close()
        assert num_replayed == num_records
    replay_s = statistics.median(replay_times)
    rows.append(Row("index_open", statistics.median(open_times), "s", None, None))
    rows.append(Row("index_replay", replay_s, "s", REPLAY_BAR_S, REPLAY_BAR_S / replay_s))
    return rows


def fill(log: SegmentLog, num_records: int, per_segment: int) -> None:
    """Publishes records of 4 KiB in as many segments as they need; nothing but segment headers is written."""
    volume = log._volume
    number = 0
    while number < num_records:
        volume.pool.submit(
            lambda context: volume.settle(*volume.reserve(context, SEGMENT_BYTES - 4096)), "write"
        ).result()
        segment = volume.segments.open
        assert segment is not None
        with volume.lock:
            for position in range(min(per_segment, num_records - number)):
                metadata = RecordMetadata(key_of(number), key_of(number - 1) if number else bytes(16), b"f", "t", 4096)
                volume.publish(Entry(metadata, segment.slot, 4096 + position * 8192, 4096, 0), segment)
                number += 1
            segment.state = SegmentState.OPEN


def median_s(call: Callable[[], object], num_repeats: int) -> float:
    """Median duration."""
    times = []
    for _ in range(num_repeats):
        start_s = time.perf_counter()
        call()
        times.append(time.perf_counter() - start_s)
    return statistics.median(times)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="a folder on the disk to measure; a temporary one by default")
    parser.add_argument("--num-blocks", type=int, default=256, help="of a pass")
    parser.add_argument("--num-repeats", type=int, default=5)
    parser.add_argument("--num-records", type=int, default=1_000_000, help="in the index")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        rows = measure_blocks(folder, options.num_blocks, options.num_repeats)
        rows += measure_codec(folder, options.num_blocks)
        rows += measure_index(folder / "index", options.num_records)
    for row in rows:
        ratio = "" if row.ratio is None or row.peer is None else f"   (peer {row.peer:.4g}, ratio {row.ratio:.2f})"
        print(f"{row.name:24} {row.value:10.4g} {row.unit}{ratio}")
    if options.json:
        settings = {"num_blocks": options.num_blocks, "num_repeats": options.num_repeats}
        write_results(options.json, rows, settings | {"num_records": options.num_records})


if __name__ == "__main__":
    main()
