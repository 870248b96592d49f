"""Hurts a mesh for minutes while streams run, and checks that nobody notices.

    python benchmarks/chaos.py --model /models/SmolLM2-135M-Instruct.Q4_1.gguf --minutes 10 --json chaos.json

Starts what `shoal up` would: a real Envoy, two gateways, a tokenizer and three workers on the simulated device, each
worker behind a TCP forwarder that can refuse or swallow. Clients (the SDK's, asynchronous and in threads, and plain
HTTP) ask the same again and again; what each answer must be was found out in peace. Meanwhile hands strike at random:

- at workers, up to all but one at once: SIGKILL to both processes or to the engine, SIGTERM, SIGSTOP for shorter or
  longer than the stall limit, connections refused, bytes swallowed;
- at the edge: SIGKILL, SIGTERM or SIGSTOP to a gateway or to Envoy.

Two deaths of workers without a token in between are how a request looks that workers die of, which gateways refuse to
spread (ADR 0009). So a worker is killed or cut off only once every stream has had a token since the last time.

It fails if any stream of the SDK fails or gives another answer; if an HTTP stream ends early while its edge is well;
if, once nobody asks, a request is still under way anywhere or a KV block is held; or if worker-0 or gateway-0, which
get everything but death, hold more memory or open files than before (bounds in `chaos_parts/leaks.py`). HTTP requests
that are told to come back later (503, 429) are counted: the SDK repeats such by itself. The same `--seed` draws the
same strikes at the same intervals; where the streams are then is up to the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from random import Random

# PYTHONSAFEPATH keeps a script's folder off sys.path.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from chaos_parts.faults import DEADLY, EDGE_FAULTS, WORKER_FAULTS, Fault, refuse_worker, stop_edge
from chaos_parts.leaks import Held, compare, holdings, wait_idle
from chaos_parts.load import Load
from chaos_parts.mesh import ChaosMesh, Sizes, chaos_mesh, wait_until
from rows import Row, write_results

CALM_TIMEOUT_S = 60.0
DEATH_S = 0.5
"""From the decision to kill until everybody has noticed: tokens before that may still be those of the dead."""
SURVIVORS = ("worker-0", "gateway-0")
"""Never killed, so that what they hold can be compared."""


class Chaos:
    """One run. Belongs to one event loop."""

    def __init__(self, mesh: ChaosMesh, args: argparse.Namespace) -> None:
        self.mesh = mesh
        self.num_faults: Counter[str] = Counter()
        self.problems: list[str] = []
        self.load = Load(mesh.mesh.endpoint, self._was_edge_hurt)
        self._args = args
        self._start_s = time.monotonic()
        self._end_s = 0.0
        self._hurt: set[str] = set()
        """Workers that are not well."""
        self._edge_hurts: list[tuple[float, float]] = []
        """From when to when a gateway or Envoy was; the end is inf until it is well."""
        self._death = asyncio.Lock()
        self._last_death_s = 0.0

    async def run(self) -> tuple[dict[str, Held], dict[str, Held]]:
        """What was held before and after."""
        args = self._args
        await self.load.learn()
        streams = asyncio.create_task(self.load.run(args.streams, args.threads))
        warm_s = min(15.0, args.minutes * 6)
        await asyncio.sleep(warm_s)
        before = await holdings(self.mesh)
        self.say("strikes begin")
        self._end_s = time.monotonic() + args.minutes * 60
        draws = Random(args.seed)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(len(self.mesh.names("worker")) - 1):
                    group.create_task(self._strike_workers(Random(draws.random())))
                group.create_task(self._strike_edge(Random(draws.random())))
        except* TimeoutError as errors:
            self.problems += [str(error) for error in errors.exceptions]
        self.say("strikes end")
        self.load.over = True
        await streams
        self.problems += await wait_idle(self.mesh)
        after = await holdings(self.mesh)
        survivors = {name: held for name, held in before.items() if name.partition("/")[0] in SURVIVORS}
        self.problems += [
            f"{name} is not the process it was" for name in survivors if after[name].pid != before[name].pid
        ]
        self.problems += compare(survivors, after)
        self.problems += self.load.tally.failures
        return before, after

    def say(self, what: str) -> None:
        """For people."""
        print(f"{time.monotonic() - self._start_s:7.1f} s  {what}", file=sys.stderr, flush=True)

    async def _strike_workers(self, draw: Random) -> None:
        names = self.mesh.names("worker")
        while await self._pause(draw):
            well = [name for name in names if name not in self._hurt]
            name, fault = draw.choice(
                [(n, f) for n in well for f in WORKER_FAULTS if n not in SURVIVORS or f not in DEADLY]
            )
            self._hurt.add(name)
            try:
                if fault in DEADLY or fault is refuse_worker:
                    async with self._death:
                        await self._wait_calm()
                        self._last_death_s = time.monotonic() + DEATH_S
                await self._strike(fault, name, draw)
            finally:
                self._hurt.discard(name)

    async def _strike_edge(self, draw: Random) -> None:
        names = [*self.mesh.names("gateway"), "envoy"]
        while await self._pause(draw):
            name, fault = draw.choice(
                [(n, f) for n in names for f in EDGE_FAULTS if n not in SURVIVORS or f is stop_edge]
            )
            self._edge_hurts.append((time.monotonic(), float("inf")))
            try:
                await self._strike(fault, name, draw)
            finally:
                # Envoy and the gateways find each other again within a moment of their being ready.
                self._edge_hurts[-1] = (self._edge_hurts[-1][0], time.monotonic() + 2.0)

    async def _strike(self, fault: Fault, name: str, draw: Random) -> None:
        kind = fault.__name__.replace("edge", name.partition("-")[0])
        self.say(f"{kind} {name}")
        await fault(self.mesh, name, draw)
        self.num_faults[kind] += 1

    async def _pause(self, draw: Random) -> bool:
        """Waits for the next strike; whether there is time for one."""
        await asyncio.sleep(draw.expovariate(1 / self._args.pause_s))
        return time.monotonic() < self._end_s

    async def _wait_calm(self) -> None:
        def is_calm() -> bool:
            return self.load.is_calm(self._last_death_s)

        await wait_until(is_calm, "every stream goes on after a worker's death", CALM_TIMEOUT_S)

    def _was_edge_hurt(self, from_s: float, to_s: float) -> bool:
        return any(start_s < to_s and end_s > from_s for start_s, end_s in self._edge_hurts)


async def run(args: argparse.Namespace) -> int:
    """Starts the mesh, hurts it, judges, stops it."""
    sizes = Sizes(model=args.model, vocab_size=args.vocab_size, step_ms=args.step_ms)
    async with chaos_mesh(sizes, args.log_dir) as mesh:
        chaos = Chaos(mesh, args)
        before, after = await chaos.run()
    rows = to_rows(chaos, before, after)
    for row in rows:
        print(f"{row.name:40} {row.value:10.3f} {row.unit}")
    for problem in chaos.problems:
        print(f"PROBLEM {problem}", file=sys.stderr)
    if args.json:
        settings = {key: value for key, value in vars(args).items() if key not in ("json", "model", "log_dir")}
        details = {
            name: {key: asdict(held) for key, held in view.items()}
            for name, view in (("before", before), ("after", after))
        }
        write_results(args.json, rows, settings, problems=chaos.problems, held=details)
    return 1 if chaos.problems else 0


def to_rows(chaos: Chaos, before: dict[str, Held], after: dict[str, Held]) -> list[Row]:
    """Counts of strikes and streams, the longest silence that a stream had, and what the survivors held."""
    tally = chaos.load.tally
    rows = [Row(f"strikes {kind}", number, "strikes", None, None) for kind, number in sorted(chaos.num_faults.items())]
    rows += [Row(f"streams {kind}", number, "streams", None, None) for kind, number in sorted(tally.answers.items())]
    rows += [
        Row("streams right", tally.answers.total(), "streams", None, None),
        Row("streams wrong or lost", len(tally.failures), "streams", None, None),
        Row("streams resumed by the SDK", tally.num_resumed, "streams", None, None),
        Row("resumes", tally.num_resumes, "calls", None, None),
        Row("HTTP requests told to come back", tally.num_refused, "requests", None, None),
        Row("HTTP streams cut off with their edge", tally.num_cut_off, "streams", None, None),
    ]
    gaps_s = sorted(tally.gaps_s) or [0.0]
    rows += [
        Row(
            f"longest silence of a stream, p{part}",
            round(gaps_s[int((len(gaps_s) - 1) * part / 100)], 3),
            "s",
            None,
            None,
        )
        for part in (50, 90, 99, 100)
    ]
    for name, then in before.items():
        if name.partition("/")[0] in SURVIVORS and name in after:
            memory, files = after[name].memory_mib, after[name].num_files
            rows.append(Row(f"memory {name}", memory, "MiB", then.memory_mib, round(memory / then.memory_mib, 3)))
            rows.append(Row(f"open files {name}", files, "files", then.num_files, round(files / then.num_files, 3)))
    return rows


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description="Hurts a mesh while streams run.")
    parser.add_argument("--model", type=Path, required=True, help="GGUF file or folder; only its tokenizer is used")
    parser.add_argument("--vocab-size", type=int, default=49152, help="of that tokenizer")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long strikes go on")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--streams", type=int, default=20, help="at once, of the asynchronous client")
    parser.add_argument("--threads", type=int, default=2, help="at once, of the synchronous client")
    parser.add_argument("--step-ms", type=float, default=10.0, help="of the simulated device")
    parser.add_argument("--pause-s", type=float, default=2.0, help="mean time from one strike of a hand to its next")
    parser.add_argument("--log-dir", type=Path, help="keep the logs of the mesh here")
    parser.add_argument("--json", type=Path)
    sys.exit(asyncio.run(run(parser.parse_args())))


if __name__ == "__main__":
    main()
