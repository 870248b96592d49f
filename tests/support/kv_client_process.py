"""A client of the KV store in a process of its own, to be killed: does one thing, says so, and waits for its end."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal.kv_client import KvClient, KvClientOptions
from support.kv_store_running import BLOCK_BYTES, ROOT, key, payload


@contextmanager
def client_process(path: Path, doing: str) -> Iterator[subprocess.Popen[str]]:
    """Runs until killed; yields once the process is in the middle of what it does."""
    command = [sys.executable, "-P", "-m", "support.kv_client_process", str(path), doing]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": ":".join(sys.path)})
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait(timeout=10)
        assert process.stdout is not None
        process.stdout.close()


def main() -> None:
    """Command line entry."""
    path, doing = sys.argv[1:]
    client = KvClient(
        KvClientOptions(
            socket_path=path, tenant="a", fingerprint=b"f", block_bytes=BLOCK_BYTES, num_staging_blocks=8, timeout_s=10
        )
    )
    keys = [key(number) for number in range(1, 5)]
    if doing == "holding":
        lease = client.view(keys)
        assert len(lease) == 4
        say_ready()
        time.sleep(60)
    elif doing == "reserving":
        reserved = client.reserve(keys, parent_key=ROOT, namespace_key=ROOT)
        assert reserved is not None
        assert len(reserved.addresses) == 4
        ctypes.memmove(reserved.addresses[0], payload(1), BLOCK_BYTES)
        say_ready()
        time.sleep(60)
    elif doing == "reading":
        target = ctypes.create_string_buffer(4 * BLOCK_BYTES)
        addresses = [ctypes.addressof(target) + at * BLOCK_BYTES for at in range(4)]
        for round_number in range(1_000_000):
            assert client.get_at(keys, addresses) == 4
            if round_number == 10:
                say_ready()
    elif doing == "writing":
        for number in range(100, 1_000_000):
            client.put([key(number)], [payload(number)], parent_key=ROOT, namespace_key=ROOT)
            if number == 110:
                say_ready()


def say_ready() -> None:
    print("ready", flush=True)


if __name__ == "__main__":
    main()
