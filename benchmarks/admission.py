"""What admission costs a gateway for each request, with an empty queue and with long ones, on one core.

    python benchmarks/admission.py --json admission.json

The gateway's own admission, without gRPC. `pass` is a request that finds room: a permit taken and closed. `wait` is one
that joins the queue of the given length while another leaves it, in the queue's state alone and, as `wait task`, with a
task and a future for each request as in the gateway. `leave` is a client that goes away in the middle of the queue,
`refuse` a request that finds the queue full. Tenants have different weights, requests different priorities.

`peer` is the same with an empty queue (for `wait`, with ten requests in it): `ratio` is how many times cheaper that is,
so 1 is flat. Medians over the repeats.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import uvloop

from shoal.gateway.admission.admission import Admission
from shoal.gateway.admission.entry import Entry
from shoal.gateway.admission.fair_queue import FairQueue, QueueFull
from shoal.gateway.admission.lane import Lane
from shoal.gateway.admission.limits import QueueLimits, TenantPolicy
from shoal.gateway.admission.permit import Ask
from shoal.gateway.admission.room import Capacity, Room

sys.path.insert(0, str(Path(__file__).resolve().parent))

from rows import Row, write_results

MODEL = "m"
LENGTHS = (10, 1_000, 100_000)
AGE_S = 1e9


class Load:
    """Requests of many tenants."""

    def __init__(self, num_tenants: int, max_requests: int) -> None:
        self._random = random.Random(7)
        self._names = [f"tenant-{number}" for number in range(num_tenants)]
        weights = {name: TenantPolicy(weight=self._random.choice([0.5, 1, 4])) for name in self._names}
        self.limits = QueueLimits(max_requests, 1 << 40, AGE_S, tenants=weights)
        self._number = 0

    def entry(self) -> Entry:
        """A request that comes now."""
        self._number += 1
        rng = self._random
        return Entry(
            rng.choice(self._names),
            priority=rng.choice([-1, 0, 0, 0, 1]),
            num_tokens=1000,
            cost=rng.uniform(500, 2000),
            arrived_s=float(self._number),
            expires_s=AGE_S + self._number,
        )

    def queue(self, length: int) -> FairQueue:
        """A queue in which so many wait."""
        queue = FairQueue(self.limits)
        for _ in range(length):
            queue.offer(self.entry())
        return queue

    def ask(self) -> Ask:
        """The same for an admission."""
        rng = self._random
        return Ask(MODEL, rng.choice(self._names), rng.choice([-1, 0, 0, 0, 1]), 1000, 1, 100, AGE_S)


def per_call_s(work: Callable[[], object], num_calls: int) -> float:
    """Seconds that one call takes, the loop included."""
    gc.collect()
    start_s = time.perf_counter()
    for _ in range(num_calls):
        work()
    return (time.perf_counter() - start_s) / num_calls


def measure_pass(load: Load, num_calls: int) -> float:
    """A request that finds room, and its end."""
    admission = Admission(load.limits, lambda model: Capacity(1 << 30, 1 << 60))

    def work() -> None:
        permit = admission.enter_now(Ask(MODEL, "tenant-1", 0, 1000, 1, 100, AGE_S))
        assert permit is not None, "there is room"
        permit.dispatched(500)
        permit.close(num_cached_tokens=500, num_output_tokens=100)

    return per_call_s(work, num_calls)


def measure_wait(load: Load, length: int, num_calls: int) -> float:
    """One joins and one leaves, in the state of the queue."""
    lane = Lane(MODEL, load.limits, Room())
    lane.room.resize(Capacity(1, 1 << 60))
    for _ in range(length):
        lane.offer(load.entry(), 0.0)
    entries = iter([load.entry() for _ in range(num_calls)])

    def work() -> None:
        new = next(entries)
        lane.offer(new, new.arrived_s)
        taken = lane.next(new.arrived_s)
        assert taken is not None, "there is room for one"
        lane.release(taken.tenant, 1, 1000, taken.cost, taken.cost)

    return per_call_s(work, num_calls)


async def measure_wait_task(load: Load, length: int, num_calls: int) -> float:
    """One joins and one leaves, each a task that waits for its turn."""
    admission = Admission(replace(load.limits, max_age_s=1e6), lambda model: Capacity(1, 1 << 60))
    first = admission.enter_now(load.ask())
    assert first is not None, "nobody waits yet"
    done = asyncio.Event()
    num_left = num_calls

    async def client() -> None:
        nonlocal num_left
        permit = await admission.enter(load.ask())
        num_left -= 1
        if num_left <= 0:
            done.set()
            return
        start()
        await asyncio.sleep(0)
        permit.close(num_output_tokens=100)

    tasks: set[asyncio.Task[None]] = set()

    def start() -> None:
        task = asyncio.get_running_loop().create_task(client())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    for _ in range(length):
        start()
    await asyncio.sleep(0)
    assert admission.num_waiting == length, "each has begun, and waits"
    gc.collect()
    start_s = time.perf_counter()
    first.close()
    await done.wait()
    took_s = time.perf_counter() - start_s
    admission.drain()
    await asyncio.gather(*tasks, return_exceptions=True)
    return took_s / num_calls


def measure_leave(load: Load, length: int, num_calls: int) -> float:
    """One joins and leaves again, from the middle of its tenant's requests."""
    queue = load.queue(length)
    entries = iter([load.entry() for _ in range(num_calls)])

    def work() -> None:
        new = next(entries)
        queue.offer(new)
        queue.take(new)

    return per_call_s(work, num_calls)


def measure_refuse(load: Load, length: int, num_calls: int) -> float:
    """One that comes last finds the queue full."""
    load = Load(1, length)
    queue = load.queue(length)
    late = Entry("tenant-0", priority=2, num_tokens=1000, cost=1000, arrived_s=AGE_S, expires_s=2 * AGE_S)

    def work() -> None:
        try:
            queue.offer(late)
        except QueueFull:
            return
        raise AssertionError("it is full")

    return per_call_s(work, num_calls)


def measure(args: argparse.Namespace) -> list[Row]:
    """Every row, the repeats of all of them interleaved, so that a slow minute hits all alike."""
    kinds: dict[str, Callable[[Load, int, int], float]] = {
        "wait": measure_wait,
        "wait task": lambda load, length, calls: uvloop.run(measure_wait_task(load, length, calls)),
        "leave": measure_leave,
        "refuse": measure_refuse,
    }
    times: dict[tuple[str, int], list[float]] = {}
    for _ in range(args.repeats):
        times.setdefault(("pass", 0), []).append(measure_pass(Load(args.tenants, 1 << 20), args.calls))
        for name, kind in kinds.items():
            for length in LENGTHS:
                took_s = kind(Load(args.tenants, 1 << 20), length, args.calls)
                times.setdefault((name, length), []).append(took_s)
    rows = []
    for (name, length), all_s in times.items():
        value = statistics.median(all_s) * 1e6
        peer = None if name == "pass" else statistics.median(times[name, LENGTHS[0]]) * 1e6
        ratio = None if peer is None else round(peer / value, 3)
        label = name if name == "pass" else f"{name} {length}"
        rows.append(Row(label, round(value, 2), "us", None if peer is None else round(peer, 2), ratio))
    return rows


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description="What admission costs for each request.")
    parser.add_argument("--tenants", type=int, default=100)
    parser.add_argument("--calls", type=int, default=20_000, help="calls a run (default: 20000)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = measure(args)
    for row in rows:
        print(f"{row.name:20} {row.value:8.2f} {row.unit}  {1e6 / row.value:10.0f}/s  {row.ratio or ''}")
    if args.json:
        write_results(args.json, rows, {"tenants": args.tenants, "calls": args.calls, "repeats": args.repeats})


if __name__ == "__main__":
    main()
