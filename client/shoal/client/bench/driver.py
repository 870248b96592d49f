"""Sends a workload: a fixed number of requests at once, or at given times."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from shoal.client.bench.backends import Backend
from shoal.client.bench.records import Prompt, Record

OnRecord = Callable[[Record], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How hard to press."""

    concurrency: int
    """Most requests at once. Later arrivals wait for a free place, and their clocks start when they are sent."""
    arrivals_s: Sequence[float] | None = None
    """When to send each request, from the start; None sends the next as soon as a place is free."""


async def drive(
    backend: Backend,
    prompts: Sequence[Prompt],
    load: Load,
    on_record: OnRecord = lambda record: None,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Sends every prompt and reports each record as its request ends. Cancelling it cancels the requests under way."""
    start_s = clock()
    pending = iter(enumerate(prompts))

    async def send_next() -> None:
        for i, prompt in pending:  # shared by all places: each prompt is taken once, in order
            if load.arrivals_s is not None:
                wait_s = start_s + load.arrivals_s[i] - clock()
                if wait_s > 0:
                    await sleep(wait_s)
            on_record(await backend.send(prompt))

    async with asyncio.TaskGroup() as places:
        for _ in range(min(load.concurrency, len(prompts))):
            places.create_task(send_next())
