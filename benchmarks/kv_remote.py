"""Measures how fast blocks come from another store, beside reading them in the store's own memory.

Run: python benchmarks/kv_remote.py; benchmarks/kv_store.py runs it as well. Stores are processes of their own on
addresses of the loopback; all figures are of one run, alternating.

remote_floor is what is possible here: the same bytes from another process, over as many connections, by nothing but the
system calls that a transfer is made of; no store, no checksum. Its peer is the bar that remote_tcp is held to.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from rows import Row
from shoal.kv_client import KvClient, KvClientOptions

BLOCK_BYTES = 2 << 20
BATCH = 64
ROOT = b"n" * 16
BARS = {"tcp": 0.6, "grpc": 0.35}


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    for row in measure_remote(parser.parse_args().rounds):
        print(f"{row.name:48} {row.value:10.3f} {row.unit:8} {row.peer or 0:10.3f} {row.ratio or 0:7.2f}")


def measure_remote(rounds: int) -> list[Row]:
    """Rows remote_tcp and remote_grpc, compared with a same-host get of as many blocks, and remote_floor."""
    with _sender() as connections, tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stores:
        folder = Path(name)
        (folder / "secret").write_text("a secret for measurements")
        (folder / "peers").write_text("")
        owner, owner_address = stores.enter_context(_store(folder, "owner", "tcp"))
        readers = {kind: stores.enter_context(_store(folder, kind, kind)) for kind in BARS}
        (folder / "peers").write_text("\n".join([owner_address, *(address for _, address in readers.values())]))
        keys = [os.urandom(16) for _ in range(BATCH)]
        local = KvClient(_options(owner))
        _fill(local, keys)
        clients = {kind: KvClient(_options(path)) for kind, (path, _) in readers.items()}
        for client in clients.values():
            _await_peers(client, keys)
        target = np.ones(BATCH * BLOCK_BYTES, np.uint8)
        addresses = [target.ctypes.data + at * BLOCK_BYTES for at in range(BATCH)]
        times: dict[str, list[float]] = {kind: [] for kind in ("local", "floor", *BARS)}
        for _ in range(rounds):
            times["local"].append(_time_get(local, keys, addresses))
            times["floor"].append(_time_bare(connections, target.data))
            for kind, client in clients.items():
                times[kind].append(_time_pull(client, keys))
    size = BATCH * BLOCK_BYTES / 1e9
    speeds = {kind: size / statistics.median(seconds) for kind, seconds in times.items()}
    floor = Row("remote_floor", speeds["floor"], "GB/s", BARS["tcp"] * speeds["local"], None)
    return [floor] + [
        Row(f"remote_{kind}", speeds[kind], "GB/s", speeds["local"], speeds[kind] / speeds["local"] / bar)
        for kind, bar in BARS.items()
    ]


def _time_get(client: KvClient, keys: list[bytes], addresses: list[int]) -> float:
    start_s = time.perf_counter()
    if client.get_at(keys, addresses) != len(keys):
        raise SystemExit(f"a local get is not whole: {client.problem}")
    return time.perf_counter() - start_s


def _time_bare(connections: list[socket.socket], target: memoryview) -> float:
    """All blocks, a part over each connection, in a thread each as the store does it."""
    share = len(target) // len(connections)

    def receive(number: int) -> None:
        connections[number].sendall(b"g")
        for start in range(number * share, (number + 1) * share, BLOCK_BYTES):
            connections[number].recv_into(target[start : start + BLOCK_BYTES], BLOCK_BYTES, socket.MSG_WAITALL)

    start_s = time.perf_counter()
    threads = [threading.Thread(target=receive, args=(number,)) for number in range(len(connections))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start_s


_SENDER = """
import socket, sys, threading
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
size, total = int(sys.argv[1]), int(sys.argv[2])
memory = memoryview(bytearray(b"x") * total)
def serve(connection, number):
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    share = total // 2
    while connection.recv(1):
        for start in range(number * share, (number + 1) * share, size):
            connection.sendall(memory[start:start + size])
for number in range(2):
    threading.Thread(target=serve, args=(listener.accept()[0], number)).start()
"""


@contextmanager
def _sender() -> Iterator[list[socket.socket]]:
    """A process that sends as soon as it is told to, and the connections to it."""
    command = [sys.executable, "-c", _SENDER, str(BLOCK_BYTES), str(BATCH * BLOCK_BYTES)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        if process.stdout is None:
            raise SystemExit("no port")
        port = int(process.stdout.readline())
        connections = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(2)]
        for connection in connections:
            connection.settimeout(None)
        yield connections
        for connection in connections:
            connection.close()


def _time_pull(client: KvClient, keys: list[bytes]) -> float:
    """From asking for the chain until all of it is in the reader's memory, verified. It is gone again afterwards.

    Otherwise the next reader would take it from this one, by this one's way of sending.
    """
    start_s = time.perf_counter()
    num = client.prefetch(keys, timeout_s=10)
    seconds = time.perf_counter() - start_s
    if num != len(keys):
        raise SystemExit(f"{num} of {len(keys)} blocks came: {client.problem}")
    client.evict(keys[:1])
    return seconds


def _fill(client: KvClient, keys: list[bytes]) -> None:
    content = np.random.default_rng(0).integers(0, 256, BLOCK_BYTES, np.uint8)
    payloads = [np.roll(content, at).tobytes() for at in range(len(keys))]
    result = client.put(keys, payloads, parent_key=ROOT, namespace_key=ROOT)
    if result.num_visible != len(keys):
        raise SystemExit(f"stored {result.num_visible} of {len(keys)} blocks: {result.problem}")


def _await_peers(client: KvClient, keys: list[bytes]) -> None:
    deadline_s = time.monotonic() + 30
    while client.locate(keys, 1.0).num_with_peers < len(keys):
        if time.monotonic() > deadline_s:
            raise SystemExit("the stores did not find each other")
        time.sleep(0.1)


def _options(path: Path) -> KvClientOptions:
    return KvClientOptions(
        socket_path=str(path),
        tenant="a",
        fingerprint=b"f",
        block_bytes=BLOCK_BYTES,
        num_staging_blocks=32,
        timeout_s=30,
    )


@contextmanager
def _store(folder: Path, name: str, transport: str) -> Iterator[tuple[Path, str]]:
    """A store that shares; where its socket is, and its address for others."""
    path = folder / f"{name}.sock"
    command = [sys.executable, "-P", "-m", "shoal.kv_store.main", "--port=0", "--metrics-port=0"]
    command += [f"--socket-path={path}", f"--memory-bytes={(BATCH + 64) * BLOCK_BYTES}"]
    command += [f"--peers=file:{folder / 'peers'}", f"--peer-secret-file={folder / 'secret'}"]
    command += ["--peer-port=0", "--peer-data-port=0", f"--peer-transport={transport}", "--peer-timeout-s=5"]
    store = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        if store.stderr is None:
            raise SystemExit("no log")
        address = ""
        for line in store.stderr:
            entry = json.loads(line) if line.startswith("{") else {"event": line}
            if entry["event"] == "sharing":
                address = entry["address"]
            if entry["event"] == "serving":
                yield path, address
                return
        raise SystemExit("the store did not start")
    finally:
        store.terminate()
        store.wait(timeout=30)


if __name__ == "__main__":
    main()
