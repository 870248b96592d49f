"""Runs a real model worker, both of its processes, and watches it from outside."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio

from shoal.api.worker.v1 import worker_pb2_grpc
from support.eventually import eventually
from support.logged_process import LoggedProcess
from support.worker_calls import collect, generate_request


class WorkerProcess(LoggedProcess):
    """A running worker. Made by `start_worker`."""

    def engine_pid(self) -> int:
        pid = self.process.pid
        [child] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(child)

    def metric(self, name: str) -> float:
        """A sample of /metrics without labels, or with exactly the labels in `name`."""
        for line in self.read_metrics().splitlines():
            sample, _, value = line.rpartition(" ")
            if sample == f"shoal_worker_{name}":
                return float(value)
        raise KeyError(name)

    async def wait_metric(self, name: str, condition: Callable[[float], bool], timeout_s: float = 10.0) -> float:
        """Scrapes until the condition holds: metrics have no event to wait for."""
        value = float("nan")

        async def holds() -> bool:
            nonlocal value
            value = await asyncio.to_thread(self.metric, name)
            return condition(value)

        await eventually(holds, f"the awaited value of {name}", timeout_s)
        return value


async def launch_worker(*flags: str, fault: str = "") -> WorkerProcess:
    """Starts a worker and does not wait for it. The caller ends it. fault: see `faulty_engine`."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    module = "shoal.model_worker.main"
    if fault:
        module = "support.faulty_worker"
        tests = str(Path(__file__).parents[1])
        env |= {"FAULT": fault, "PYTHONPATH": os.pathsep.join(filter(None, (tests, env.get("PYTHONPATH"))))}
    return await WorkerProcess.launch(module, "--log-format=json", *flags, env=env)


@asynccontextmanager
async def start_worker(*flags: str, fault: str = "") -> AsyncIterator[WorkerProcess]:
    """A worker that serves; killed at the end if it still runs."""
    async with await launch_worker(*flags, fault=fault) as worker:
        await worker.wait_logged("serving")
        yield worker


@asynccontextmanager
async def worker_stub(
    worker: WorkerProcess, options: Sequence[tuple[str, Any]] = ()
) -> AsyncIterator[worker_pb2_grpc.ModelWorkerServiceAsyncStub]:
    """A client of the worker."""
    async with grpc.aio.insecure_channel(worker.address, options=options) as channel:
        yield worker_pb2_grpc.ModelWorkerServiceStub(channel)


async def greedy_tokens(worker: WorkerProcess, prompt: Sequence[int], **fields: Any) -> tuple[list[int], int]:
    """Eight greedy tokens, and how many of the prompt were cached. fields: of GenerateRequest."""
    request = generate_request(prompt, temperature=0)
    for name, value in fields.items():
        setattr(request, name, value)
    async with worker_stub(worker) as stub:
        completions, messages = await collect(stub.Generate(request))
    return completions[0].token_ids, messages[-1].usage.cached_tokens
