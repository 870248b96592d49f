"""The engines that `engine.py` compares: Shoal's in this process, a peer's in its own."""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from shoal.artifacts import resolve
from shoal.blocks import namespace_key
from shoal.model_worker.config import WorkerConfig
from shoal.model_worker.engine import Engine
from shoal.model_worker.engine_setup import set_up
from shoal.model_worker.messages import Add, Command, StepFrame, Stop
from shoal.model_worker.request import Request
from shoal.model_worker.sampling.params import SamplingParams

PEERS = Path(__file__).resolve().parent / "peers"
MAX_MODEL_LEN = 2048
KV_CACHE_BYTES = 2 << 30

Prompts = Sequence[Sequence[int]]


class Side(Protocol):
    """One of the engines compared."""

    def generate(self, prompts: Prompts, num_tokens: int) -> tuple[float, list[list[int]]]:
        """Seconds for the whole batch, and the tokens of each prompt."""


class ShoalSide:
    """Shoal's engine, driven in this thread."""

    def __init__(self, config: WorkerConfig) -> None:
        self._parts = set_up(config, lambda stage, fraction: None)
        self._next_stream = 0
        gc.collect()
        gc.freeze()  # as the engine process does
        info = self._parts.info
        self.vocab_size = info.vocab_size
        self._namespace = namespace_key(info.model_digest, info.kv_layout, "", b"")

    def generate(self, prompts: Prompts, num_tokens: int) -> tuple[float, list[list[int]]]:
        """See `Side.generate`."""
        first = self._next_stream
        tokens: list[list[int]] = [[] for _ in prompts]

        def emit(frame: StepFrame) -> None:
            if frame.failed:
                raise RuntimeError(f"the engine refused a request: {frame.failed[0]}")
            streams = np.frombuffer(frame.stream_ids, np.int64).tolist()
            for stream, token in zip(streams, np.frombuffer(frame.token_ids, np.int32).tolist(), strict=True):
                tokens[stream - first].append(token)

        start_s = self.drive(prompts, num_tokens, emit)
        return time.perf_counter() - start_s, tokens

    def drive(self, prompts: Prompts, num_tokens: int, emit: Callable[[StepFrame], None]) -> float:
        """Hands a batch to the engine and runs it to the end; returns when (time.perf_counter()) it was handed over."""
        first = self._next_stream
        self._next_stream += len(prompts)
        sampling = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
        start_s = time.perf_counter()
        requests = [
            Request(first + i, f"bench-{first + i}", tuple(prompt), sampling, 0, self._namespace, time.monotonic())
            for i, prompt in enumerate(prompts)
        ]
        parts = self._parts
        Engine(parts.scheduler, parts.cache, parts.runner, OneBatch([Add(each) for each in requests]), emit).run()
        return start_s


class OneBatch:
    """An inbox that holds a batch, and then the end."""

    def __init__(self, commands: list[Command]) -> None:
        self._commands = commands

    def receive(self, *, wait: bool) -> Iterable[Command]:
        """See `engine.Inbox`."""
        commands, self._commands = self._commands, []
        return commands or ([Stop()] if wait else [])

    def wait(self, timeout_s: float) -> None:
        """See `engine.Inbox`. Without a KV store nobody calls it."""


class PeerSide:
    """Another engine in a process group of its own, which runs only while it is asked something."""

    def __init__(self, python: Path, model: Path, max_num_seqs: int) -> None:
        script = PEERS / "vllm_cpu.py"
        options = {"max-model-len": MAX_MODEL_LEN, "max-num-seqs": max_num_seqs, "kv-cache-bytes": KV_CACHE_BYTES}
        arguments = [f"--{name}={value}" for name, value in options.items()]
        self.process = subprocess.Popen(
            [str(python), str(script), str(model), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._requests: IO[str] = self.process.stdin
        self._answers: IO[str] = self.process.stdout
        self.description = self._answer()

    def generate(self, prompts: Prompts, num_tokens: int) -> tuple[float, list[list[int]]]:
        """See `Side.generate`."""
        request = {"prompts": prompts, "max_tokens": num_tokens, "return_tokens": True}
        os.killpg(self.process.pid, signal.SIGCONT)
        print(json.dumps(request), file=self._requests, flush=True)
        answer = self._answer()
        return answer["elapsed_s"], answer["token_ids"]

    def _answer(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line:
            raise RuntimeError(f"the peer ended with code {self.process.wait()}; its messages are above")
        os.killpg(self.process.pid, signal.SIGSTOP)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Ends the whole group."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def load_sides(options: argparse.Namespace, stack: ExitStack) -> tuple[ShoalSide, PeerSide | None]:
    """Both engines, loaded; with a peer from one Hugging Face copy of the model."""
    model = resolve(options.model)
    if options.peer and model.suffix == ".gguf":
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shoal-bench-")))
        subprocess.run([sys.executable, str(PEERS / "gguf_to_hf.py"), str(model), str(folder)], check=True)
        model = folder
    peer = None
    if options.peer:
        peer = PeerSide(options.peer_python, model, options.max_num_seqs)
        stack.callback(peer.close)
    config = WorkerConfig(
        model=str(model),
        device=options.device,
        dtype="bfloat16",
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        kv_cache_memory_bytes=KV_CACHE_BYTES,
    )
    return ShoalSide(config), peer
