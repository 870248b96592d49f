"""Workers of SmolLM2 on two hosts, each with its own store, as processes: what one computes the other loads."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from support.eventually import eventually
from support.kv_store_process import launch_kv_store
from support.logged_process import LoggedProcess
from support.model import smollm2_path
from support.worker_process import WorkerProcess, greedy_tokens, start_worker

PROMPT = [1000 + 7 * number % 20_000 for number in range(200)]
NUM_CACHED = 192
SIZES = ("--memory-bytes=134217728", "--chunk-bytes=33554432")


@asynccontextmanager
async def host(folder: Path, number: int) -> AsyncIterator[tuple[LoggedProcess, WorkerProcess]]:
    """A store that shares, on an address of its own, and a worker that uses it."""
    own = folder / f"host-{number}"
    own.mkdir()
    address = f"127.0.0.{number}"
    sharing = (f"--peers=file:{folder / 'peers'}", f"--peer-secret-file={folder / 'secret'}", "--peer-timeout-s=5")
    ports = (f"--peer-host={address}", "--peer-port=0", "--peer-data-port=0", f"--host={address}")
    worker_flags = ("--num-blocks=64", "--threads=1", "--dtype=float32", f"--host={address}")
    using = (f"--kv-store-socket={own / 'kv.sock'}", "--kv-store-lookup-wait-ms=1000", "--kv-store-peers-wait-ms=500")
    async with (
        await launch_kv_store(own, *SIZES, *sharing, *ports) as store,
        start_worker(f"--model={smollm2_path()}", *worker_flags, *using) as worker,
    ):
        await store.wait_logged("serving")
        yield store, worker


async def introduce(folder: Path, *stores: LoggedProcess) -> None:
    """Writes the list of stores, and waits until all of them have read it."""
    (folder / "fresh").write_text("\n".join(str(store.logged("sharing")["address"]) for store in stores))
    (folder / "fresh").rename(folder / "peers")
    for store in stores:
        await store.wait_logged("peers changed")


async def test_what_a_worker_computed_is_loaded_by_one_of_another_host_and_a_dead_store_costs_hits_only(
    tmp_path: Path,
) -> None:
    (tmp_path / "peers").write_text("")
    (tmp_path / "secret").write_text("a secret that all stores know")
    async with contextlib.AsyncExitStack() as hosts:
        started = await asyncio.gather(*(hosts.enter_async_context(host(tmp_path, number)) for number in (1, 2)))
        (first_store, first), (second_store, second) = started
        await introduce(tmp_path, first_store, second_store)
        computed, cached = await greedy_tokens(first, PROMPT)
        assert cached == 0
        await first.wait_metric("kv_store_stored_blocks_total", lambda value: value >= 12)
        assert await greedy_tokens(second, PROMPT) == (computed, NUM_CACHED)
        # By way of its own store, which may have been offered the chain before anybody asked.
        loaded = [f'kv_store_loaded_blocks_total{{tier="{tier}"}}' for tier in ("memory", "peer")]
        assert sum(metric_or_zero(second, name) for name in loaded) == 12

        other = [5, *PROMPT[1:]]
        expected, _ = await greedy_tokens(first, other)
        await first.wait_metric("kv_store_stored_blocks_total", lambda value: value >= 24)
        first_store.signal(signal.SIGKILL)
        start_s = time.monotonic()
        tokens, _ = await greedy_tokens(second, [6, *PROMPT[1:]])
        assert len(tokens) == len(expected)
        assert (await greedy_tokens(second, other))[0] == expected
        assert (await greedy_tokens(first, other))[0] == expected, "the worker beside the dead store serves as well"
        assert time.monotonic() - start_s < 20.0

        async def goes_on() -> bool:
            return metric_or_zero(second, "kv_store_up") == 1.0

        await eventually(goes_on, "the other store goes on")


def metric_or_zero(worker: WorkerProcess, name: str) -> float:
    try:
        return worker.metric(name)
    except KeyError:
        return 0.0
