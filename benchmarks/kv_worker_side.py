"""One engine in this process, driven by a benchmark: with its KV store, or as if it had none."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from shoal.blocks import namespace_key
from shoal.model_worker.config import WorkerConfig
from shoal.model_worker.engine import Engine
from shoal.model_worker.engine_setup import EngineParts, set_up
from shoal.model_worker.kv_cache import KVCacheManager
from shoal.model_worker.kv_offload.setup import make_offload
from shoal.model_worker.messages import Add, Command, EngineInfo, StepFrame
from shoal.model_worker.request import Request
from shoal.model_worker.runner.cpu_kv_memory import CpuKvMemory
from shoal.model_worker.sampling.params import SamplingParams
from shoal.model_worker.scheduler import FcfsPolicy, Scheduler, SchedulerConfig
from shoal.model_worker.step import StepPlan, StepResult, SynchronousRunner


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of some requests that began together."""

    token_ids: dict[int, list[int]]
    first_token_s: float
    end_s: float
    num_cached: int


class Side:
    """One engine, driven from here."""

    def __init__(self, parts: EngineParts) -> None:
        self.parts = parts
        self._woken = threading.Event()
        self._frames: list[StepFrame] = []
        if self.parts.offload is not None:
            self.parts.offload.wake = self._woken.set
        self._engine = Engine(parts.scheduler, parts.cache, parts.runner, self, self._emit, offload=parts.offload)
        self._first_token_s = 0.0
        self._offload = parts.offload

    def use_store(self, is_used: bool) -> None:
        """Ties the engine to its store, or unties it: it goes the ways of one that never had any. Between requests.

        Blocks of before are forgotten, once they are stored, so that neither way sees what the other did.
        """
        self.forget()
        self._offload = self.parts.offload if is_used else None
        self._engine._offload = self._offload
        self.parts.scheduler._retrievals._source = self._offload

    def _emit(self, frame: StepFrame) -> None:
        """What the front gets at this moment; the engine's own work after that keeps no client waiting."""
        self._frames.append(frame)
        if frame.token_ids and not self._first_token_s:
            self._first_token_s = time.perf_counter()

    def receive(self, *, wait: bool) -> list[Command]:
        """See `engine.Inbox`: requests are added here, not by an inbox."""
        return []

    def wait(self, timeout_s: float) -> None:
        """See `engine.Inbox`."""
        self._woken.wait(max(timeout_s, 0.0))
        self._woken.clear()

    @property
    def is_tied(self) -> bool:
        """Whether the engine uses its store."""
        return self._offload is not None

    def run(self, prompts: Sequence[Sequence[int]], num_tokens: int, *, rests: bool = True) -> Outcome:
        """Answers prompts that come at once. rests: nothing comes after them."""
        self._frames.clear()
        start_s, self._first_token_s = time.perf_counter(), 0.0
        for stream_id, prompt in enumerate(prompts, 1):
            self._engine.handle(Add(_request(stream_id, prompt, num_tokens)))
        tokens: dict[int, list[int]] = {}
        while self.parts.scheduler.has_work:
            self._engine.turn()
        end_s = time.perf_counter() - start_s
        if rests and self._offload is not None:
            self._offload.rest()  # as an engine without work does
        num_cached = 0
        for frame in self._frames:
            ids = memoryview(frame.stream_ids).cast("q")
            for stream_id, token_id in zip(ids, memoryview(frame.token_ids).cast("i"), strict=True):
                tokens.setdefault(stream_id, []).append(token_id)
            num_cached += sum(cached for _, cached in frame.started)
        return Outcome(tokens, self._first_token_s - start_s, end_s, num_cached)

    def forget(self) -> None:
        """Empties the device's prefix cache, once everything in it is stored."""
        if self.parts.offload is not None and not self.parts.offload.writer.flush(60.0):
            raise SystemExit("the store does not take what it is given")
        self.parts.cache.clear()


def load(config: WorkerConfig) -> Side:
    """A ready engine."""
    return Side(set_up(config.with_device_defaults(), lambda stage, fraction: None))


class NoModel(SynchronousRunner):
    """Computes nothing: what is left is what the engine itself takes."""

    num_blocks = 512

    def execute(self, plan: StepPlan) -> StepResult:
        """See `SynchronousRunner`."""
        slots = plan.slots[plan.samples]
        return StepResult(slots, np.ones(len(slots), np.int32), {}, {})


def without_model(socket: str) -> Side:
    """An engine that computes nothing, with blocks as large as SmolLM2's; with a store if there is a socket."""
    config = WorkerConfig(model="none", kv_store_socket=socket).with_device_defaults()
    runner = NoModel()
    cache = KVCacheManager(runner.num_blocks, config.block_size)
    memory = CpuKvMemory(torch.zeros((runner.num_blocks, 2 * 30 * 3 * 16 * 64), dtype=torch.bfloat16))
    offload = make_offload(config, memory, cache, "none", "none") if socket else None
    if offload is not None:  # or it would learn that computing is quicker than asking
        offload.rate.observe = lambda num_tokens, step_s: None  # type: ignore[method-assign]
    limits = SchedulerConfig(config.max_num_seqs, config.max_num_batched_tokens, 4096, 256, 1 << 20)
    scheduler = Scheduler(limits, cache, FcfsPolicy(), block_source=offload)
    info = EngineInfo("none", "none", config.block_size, runner.num_blocks, 4096, 64, 50_000, (), "cpu", "bfloat16")
    return Side(EngineParts(scheduler, cache, runner, info, offload))


def make_prompt(randomness: random.Random, num_tokens: int) -> list[int]:
    """Tokens that no prompt before began with."""
    return [randomness.randrange(1000, 40_000) for _ in range(num_tokens)]


def _request(stream_id: int, prompt: Sequence[int], num_tokens: int) -> Request:
    sampling = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
    return Request(
        stream_id=stream_id,
        request_id=str(stream_id),
        prompt_token_ids=tuple(prompt),
        sampling=sampling,
        seed=0,
        namespace_key=namespace_key("benchmark", "benchmark"),
        arrival_s=time.monotonic(),
    )


@contextmanager
def running_store(folder: Path, memory_bytes: int) -> Iterator[str]:
    """A store process; the path of its socket."""
    socket = folder / "kv.sock"
    flags = (f"--memory-bytes={memory_bytes}", "--port=0", "--metrics-port=0", "--log-level=warning")
    command = (sys.executable, "-P", "-m", "shoal.kv_store.main", f"--socket-path={socket}", *flags)
    process = subprocess.Popen(command)
    try:
        end_s = time.monotonic() + 30
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > end_s:
                raise SystemExit("the store does not start")
            time.sleep(0.05)
        yield str(socket)
    finally:
        process.terminate()
        process.wait(30)
