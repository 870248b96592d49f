"""Real workers on the simulated device behind a real Envoy and a gateway, to be killed, stopped and drained at will."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import psutil

from shoal.api.gateway.v1 import gateway_pb2
from shoal.operator.envoy import Endpoint
from support.envoy_running import RunningEnvoy, running_envoy
from support.eventually import eventually
from support.fake_worker import FakeWorker
from support.gateway_running import RunningGateway, run_gateway
from support.worker_process import WorkerProcess, launch_worker

SIMULATED = ("--device=simulated", "--simulated-vocab-size=257", "--num-blocks=2000", "--max-model-len=1000")
"""The fake tokenizer's ids: bytes, and 256 to end with."""


@dataclass
class FailoverMesh:
    """Made by `failover_mesh`."""

    envoy: RunningEnvoy
    running: RunningGateway
    flags: tuple[str, ...]
    """Of the workers."""
    workers: dict[str, WorkerProcess] = field(default_factory=dict)
    """Alive, by address."""
    _ended: list[WorkerProcess] = field(default_factory=list)

    async def add_worker(self, *flags: str, fault: str = "") -> str:
        """Starts one and waits until requests can go there; its address. flags: for this one only."""
        worker = await launch_worker(*self.flags, *flags, fault=fault)
        self._ended.append(worker)
        await worker.wait_logged("serving")
        await self.envoy.join({"worker": [_endpoint(worker.address)]})
        fleet = self.running.gateway.fleet
        await eventually(lambda: worker.address in _ready(fleet), "the gateway knows the worker")
        self.workers[worker.address] = worker
        return worker.address

    def num_moving(self) -> int:
        """Streams between two workers."""
        return self.running.gateway.gate.num_moving

    def take(self, address: str) -> WorkerProcess:
        """The worker, no longer counted among those alive."""
        return self.workers.pop(address)

    async def kill(self, address: str) -> None:
        """SIGKILL to both of its processes at once, and what a supervisor does then: no more calls to it."""
        worker = self.take(address)
        family = [psutil.Process(worker.process.pid), *psutil.Process(worker.process.pid).children()]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        await worker.wait_ended()
        self.envoy.membership.leave({"worker": _endpoint(address)})

    async def close(self) -> None:
        """Kills what is left."""
        for worker in self._ended:
            worker.signal(signal.SIGCONT)
            worker.signal(signal.SIGKILL)
            await worker.wait_ended()


def _endpoint(address: str) -> Endpoint:
    host, _, port = address.rpartition(":")
    return Endpoint(host, int(port))


def _ready(fleet: Any) -> list[str]:
    return [address for model in fleet.models for address in fleet.ready_endpoints(model.name)]


@asynccontextmanager
async def failover_mesh(run_dir: Path, num_workers: int, *flags: str, **settings: Any) -> AsyncIterator[FailoverMesh]:
    """A mesh that serves. flags: of the workers; settings: of the gateway."""
    async with AsyncExitStack() as stack:
        envoy = await stack.enter_async_context(running_envoy(run_dir, num_workers=3))
        mesh_settings = {"mesh_address": str(envoy.options.mesh), "workers_file": f"{run_dir}/xds/eds-worker.json"}
        running = await stack.enter_async_context(run_gateway(FakeWorker(), wait=False, **(mesh_settings | settings)))
        mesh = FailoverMesh(envoy, running, flags)
        stack.push_async_callback(mesh.close)
        await asyncio.gather(*(mesh.add_worker() for _ in range(num_workers)))
        await eventually(lambda: not running.gateway.not_ready(), "the gateway is ready")
        yield mesh


@dataclass
class Answer:
    """What a client has in the end, however it was cut into messages."""

    texts: dict[int, str] = field(default_factory=lambda: defaultdict(str))
    token_ids: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    logprobs: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    ends: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    num_tokens: tuple[int, int] = (0, 0)
    """Of the prompt and of all completions, as told at the end."""
    num_prompt_logprobs: int = 0
    likely: dict[int, list[list[tuple[int, float]]]] = field(default_factory=lambda: defaultdict(list), compare=False)
    """(token id, log-probability) of each token and the most likely ones: to tell a tie from a mistake."""

    def difference_from(self, other: Answer) -> str:
        """Where the tokens part, and how likely each was thought there."""
        for choice, token_ids in self.token_ids.items():
            for at, (mine, its) in enumerate(zip(token_ids, other.token_ids[choice], strict=False)):
                if mine != its:
                    here, there = self.likely[choice][at : at + 1], other.likely[choice][at : at + 1]
                    return f"token {at} of completion {choice} is {mine}, was {its}; now {here}, then {there}"
        return "the tokens are the same, as far as they are known"


OnMessage = Callable[[], None]
Ask = Callable[[RunningGateway, OnMessage], Awaitable[Answer]]


def over_grpc(**fields: Any) -> Ask:
    """A call of GatewayService.Generate. Checks that no token is missing or repeated on the way."""

    async def ask(running: RunningGateway, on_message: OnMessage) -> Answer:
        answer = Answer()
        num_usages = 0
        has_ids = fields.get("output_format", 0) >= gateway_pb2.OUTPUT_FORMAT_TOKEN_IDS
        async for message in running.stub.Generate(gateway_pb2.GenerateRequest(**fields), timeout=120):
            on_message()
            choice = message.choice
            assert choice not in answer.ends, "nothing follows an end"
            if has_ids:
                assert message.first_token_index == len(answer.token_ids[choice])
            answer.texts[choice] += message.text
            answer.token_ids[choice] += message.token_ids
            answer.logprobs[choice] += [entry.token.token_id for entry in message.logprobs]
            for entry in message.logprobs:
                answer.likely[choice].append([(t.token_id, t.logprob) for t in (entry.token, *entry.top)])
            answer.num_prompt_logprobs += len(message.prompt_logprobs)
            if message.finish_reason:
                stop_id = message.stop_token_id if message.HasField("stop_token_id") else None
                answer.ends[choice] = (message.finish_reason, message.stop_text, stop_id)
            if message.HasField("usage"):
                num_usages += 1
                answer.num_tokens = (message.usage.prompt_tokens, message.usage.completion_tokens)
        assert num_usages == 2
        return answer

    return ask


def over_http(path: str, **body: Any) -> Ask:
    """The OpenAI API, streamed or not."""
    if body.get("stream"):
        body["stream_options"] = {"include_usage": True}

    async def ask(running: RunningGateway, on_message: OnMessage) -> Answer:
        answer = Answer()
        if not body.get("stream"):
            response = await running.http.post(path, json=body, timeout=120)
            assert response.status_code == 200, response.text
            _add_chunk(answer, response.json())
            return answer
        async with running.http.stream("POST", path, json=body, timeout=120) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    on_message()
                    _add_chunk(answer, msgspec.json.decode(line[6:]))
        return answer

    return ask


def _add_chunk(answer: Answer, chunk: dict[str, Any]) -> None:
    assert "error" not in chunk, chunk
    for choice in chunk["choices"]:
        index = choice["index"]
        shown = choice.get("message") or choice.get("delta") or {}
        answer.texts[index] += shown.get("content") or choice.get("text") or ""
        if choice["finish_reason"]:
            answer.ends[index] = (choice["finish_reason"], choice.get("stop_reason"))
    if usage := chunk.get("usage"):
        answer.num_tokens = (usage["prompt_tokens"], usage["completion_tokens"])


@dataclass
class Storm:
    """Clients that ask without end, and a killer that strikes after a random number of messages."""

    mesh: FailoverMesh
    asks: dict[str, Ask]
    expected: dict[str, Answer]
    random: random.Random
    num_answers: int = 0
    num_kills: int = 0
    _num_messages: int = 0
    _message: asyncio.Event = field(default_factory=asyncio.Event)
    _over: bool = False

    def on_message(self) -> None:
        """A client got one."""
        self._num_messages += 1
        self._message.set()

    async def client(self, name: str) -> None:
        """Asks the same again and again, until the storm is over."""
        while not self._over:
            answer = await self.asks[name](self.mesh.running, self.on_message)
            expected = self.expected[name]
            assert answer == expected, f"{name}, {self.num_kills} kills: {answer.difference_from(expected)}"
            self.num_answers += 1

    async def killer(self, num_kills: int, max_gap: int) -> None:
        """Kills one worker after the other and replaces each; never the last one."""
        replacements: set[asyncio.Task[str]] = set()
        while self.num_kills < num_kills:
            await eventually(lambda: len(self.mesh.workers) >= 2, "a second worker is there")
            # Two kills that catch a request before any token are how poison looks: everybody is on the way first.
            await eventually(lambda: not self.mesh.num_moving(), "every stream goes on")
            strike = self._num_messages + self.random.randint(1, max_gap)
            while self._num_messages < strike:
                self._message.clear()
                await asyncio.wait_for(self._message.wait(), 30)
            self.num_kills += 1
            await self.mesh.kill(self.random.choice(sorted(self.mesh.workers)))
            replacements.add(asyncio.create_task(self.mesh.add_worker()))
        self._over = True
        await asyncio.gather(*replacements)

    async def rage(self, num_kills: int, max_gap: int = 400) -> None:
        """Returns when all is over and every answer was right. max_gap: most messages from one kill to the next."""
        async with asyncio.TaskGroup() as group:
            for name in self.asks:
                group.create_task(self.client(name))
            group.create_task(self.killer(num_kills, max_gap))


async def make_storm(mesh: FailoverMesh, asks: dict[str, Ask], seed: int) -> Storm:
    """Asks everything once in peace, to know the answers."""
    answers = await asyncio.gather(*(ask(mesh.running, lambda: None) for ask in asks.values()))
    return Storm(mesh, asks, dict(zip(asks, answers, strict=True)), random.Random(seed))


def num_kills(default: int) -> int:
    """SHOAL_TEST_KILLS asks for more."""
    return int(os.environ.get("SHOAL_TEST_KILLS", default))
