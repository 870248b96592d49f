"""Measures the KV store on one machine: payloads through shared memory, control calls, and the index.

Run: python benchmarks/kv_store.py --json OUT. The store runs in a process of its own; each figure has what it is
compared with measured right beside it, alternating.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from kv_million import measure_million
from kv_remote import measure_remote
from rows import Row, write_results
from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.api.kv_store.v1 import kv_store_pb2_grpc
from shoal.blocks import join_keys
from shoal.checksum import crc32c_at
from shoal.kv_client import KvClient, KvClientOptions

BLOCK_BYTES = 2 << 20
NUM_BLOCKS = 128
ROUNDS = 15
ROOT = b"n" * 16


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, _running_store(Path(folder)) as (path, address):
        client = KvClient(_options(path))
        keys = [os.urandom(16) for _ in range(NUM_BLOCKS)]
        rows += _measure_put(client, keys)
        rows += _measure_get(client, keys, arguments.rounds)
        rows += _measure_control(client, address, keys, arguments.rounds)
        client.close()
    rows += measure_remote(arguments.rounds)
    rows += measure_million()
    for row in rows:
        print(f"{row.name:48} {row.value:10.3f} {row.unit:8} {row.peer or 0:10.3f} {row.ratio or 0:7.2f}")
    if arguments.json:
        settings = {"block_bytes": BLOCK_BYTES, "num_blocks": NUM_BLOCKS, "rounds": arguments.rounds}
        write_results(arguments.json, rows, settings)


def _measure_put(client: KvClient, keys: list[bytes]) -> list[Row]:
    source = _touched_memory(NUM_BLOCKS * BLOCK_BYTES)
    source[:] = np.random.default_rng(0).integers(0, 256, source.nbytes, dtype=np.uint8)
    payloads = [source.data[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES] for at in range(NUM_BLOCKS)]
    start_s = time.perf_counter()
    result = client.put(keys, payloads, parent_key=ROOT, namespace_key=ROOT)
    seconds = time.perf_counter() - start_s
    if result.num_visible != NUM_BLOCKS:
        raise SystemExit(f"stored {result.num_visible} of {NUM_BLOCKS} blocks: {result.problem}")
    return [Row("put, 2 MiB, fresh memory", NUM_BLOCKS * BLOCK_BYTES / seconds / 1e9, "GB/s", None, None)]


def _measure_get(client: KvClient, keys: list[bytes], rounds: int) -> list[Row]:
    rows = []
    target = _touched_memory(64 * BLOCK_BYTES)
    source = _touched_memory(NUM_BLOCKS * BLOCK_BYTES)
    for batch, bar in ((64, 0.6), (8, 0.4), (1, None)):
        addresses = [target.ctypes.data + at * BLOCK_BYTES for at in range(batch)]
        # Prefixes only, so that every batch starts at the root: what lies between two of them pushes it out of caches.
        got, copied = [], []
        for _ in range(rounds):
            _flush(source)
            start_s = time.perf_counter()
            num = client.get_at(keys[:batch], addresses)
            got.append(time.perf_counter() - start_s)
            if num != batch:
                raise SystemExit(f"got {num} of {batch}: {client.problem}")
            _flush(source)
            start_s = time.perf_counter()
            for at in range(batch):
                ctypes.memmove(addresses[at], source.ctypes.data + at * BLOCK_BYTES, BLOCK_BYTES)
            copied.append(time.perf_counter() - start_s)
        size = batch * BLOCK_BYTES / 1e9
        value, peer = size / statistics.median(got), size / statistics.median(copied)
        ratio = value / peer / bar if bar else None
        rows.append(Row(f"same-host get with checksum, 2 MiB, batch {batch}", value, "GB/s", peer, ratio))
    views = [_time(lambda: _view(client, keys[:64])) / 64 * 1e6 for _ in range(rounds)]
    rows.append(_at_most("zero-copy view, batch 64", statistics.median(views), "us/block", 10))
    return rows


def _view(client: KvClient, keys: list[bytes]) -> None:
    with client.view(keys) as lease:
        if len(lease.blocks) != len(keys) or lease.count_valid() != len(keys):
            raise SystemExit("a view is not whole")


def _measure_control(client: KvClient, address: str, keys: list[bytes], rounds: int) -> list[Row]:
    rows = []
    for batch in (64, 1):
        asked = keys[:batch]
        times = [_time(lambda: client.lookup(asked)) for _ in range(20 * rounds)]  # noqa: B023
        rows += _control_rows(f"socket lookup, batch {batch}", times, batch)
        times = [_time(lambda: client.view(asked).close()) for _ in range(20 * rounds)]  # noqa: B023
        rows += _control_rows(f"socket acquire and release, batch {batch}", times, batch)
    for name, target in (("gRPC", address), ("gRPC over a Unix socket", f"unix:{client.options.socket_path}.grpc")):
        rows += _measure_grpc(name, target, keys, 20 * rounds)
    return rows


def _measure_grpc(name: str, target: str, keys: list[bytes], num: int) -> list[Row]:
    """Lookups beside calls that do nothing, in turn: what gRPC itself takes between two processes is their floor."""
    scope = pb.Scope(tenant="a", fingerprint=b"f")
    with grpc.insecure_channel(target) as channel:
        stub, health = kv_store_pb2_grpc.KvStoreServiceStub(channel), health_pb2_grpc.HealthStub(channel)
        asked = {batch: pb.LookupRequest(scope=scope, keys=join_keys(keys[:batch])) for batch in (1, 64)}
        calls: dict[str, Callable[[], object]] = {
            "empty": lambda: health.Check(health_pb2.HealthCheckRequest(), timeout=10),
            "one": lambda: stub.Lookup(asked[1], timeout=10),
            "many": lambda: stub.Lookup(asked[64], timeout=10),
        }
        times: dict[str, list[float]] = {kind: [] for kind in calls}
        for _ in range(num):
            for kind, call in calls.items():
                times[kind].append(_time(call))
    floor_us, one_us = (1e6 * statistics.median(times[kind]) for kind in ("empty", "one"))
    return [
        *_control_rows(f"{name} lookup, batch 64", times["many"], 64),
        _at_most(f"{name} lookup, batch 1: p50", one_us, "us", 300),
        Row(f"{name} lookup, batch 1, beside an empty call: p50", one_us, "us", floor_us, floor_us / one_us),
    ]


def _control_rows(name: str, times: list[float], batch: int) -> list[Row]:
    median_us = 1e6 * statistics.median(times)
    if batch == 1:
        return [_at_most(f"{name}: p50", median_us, "us", 300)]
    return [_at_most(name, median_us / batch, "us/block", 8)]


def _at_most(name: str, value: float, unit: str, bar: float) -> Row:
    return Row(name, value, unit, bar, bar / value)


def _time(call: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    call()
    return time.perf_counter() - start_s


def _touched_memory(num_bytes: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    mapping = mmap.mmap(-1, num_bytes)
    mapping.madvise(mmap.MADV_HUGEPAGE)
    memory = np.frombuffer(mapping, np.uint8)
    memory[:] = 1
    return memory


def _flush(memory: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> None:
    """Reads 256 MiB, far more than the caches hold, so that what is copied next is cold."""
    crc32c_at(memory.ctypes.data + memory.nbytes // 2, memory.nbytes // 2)


def _options(path: str) -> KvClientOptions:
    return KvClientOptions(
        socket_path=path, tenant="a", fingerprint=b"f", block_bytes=BLOCK_BYTES, num_staging_blocks=32, timeout_s=30
    )


@contextmanager
def _running_store(folder: Path) -> Iterator[tuple[str, str]]:
    import json

    path = folder / "kv.sock"
    command = [sys.executable, "-P", "-m", "shoal.kv_store.main", "--port=0", "--metrics-port=0"]
    command += [f"--socket-path={path}", f"--memory-bytes={(NUM_BLOCKS + 32) * BLOCK_BYTES}"]
    store = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        if store.stderr is None:
            raise SystemExit("no log")
        for line in store.stderr:
            entry = json.loads(line) if line.startswith("{") else {"event": line}
            if entry["event"] == "serving":
                yield str(path), entry["address"]
                return
        raise SystemExit("the store did not start")
    finally:
        store.terminate()
        store.wait(timeout=30)


if __name__ == "__main__":
    main()
