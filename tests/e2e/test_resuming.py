"""Gateways are killed under streams, and client processes too: whoever goes on has every token once."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoal.client import AsyncClient, Completion
from support.failover_mesh import num_kills
from support.slow_mesh import kill, slow_mesh, wait_ready

GATEWAYS = ("gateway-0", "gateway-1")
LONG: dict[str, Any] = {"max_tokens": 200, "ignore_eos": True, "seed": 7, "temperature": 0.9}
ASKS: dict[str, dict[str, Any]] = {
    "both": {"prompt": "The sea", **LONG},
    "text": {"prompt": "The sea", "output": "text", **LONG},
    "token ids": {"token_ids": [1, 2, 3], "output": "token_ids", **LONG, "logprobs": 2},
    "n": {"prompt": "Once", **LONG, "n": 2, "logprobs": 0},
    "penalties": {"prompt": "Once", **LONG, "frequency_penalty": 0.5, "repetition_penalty": 1.1},
    "chat": {"messages": [{"role": "user", "content": "Hello"}], **LONG, "prompt_logprobs": 1},
    "drawn seed": {"prompt": "Far away", "max_tokens": 200, "ignore_eos": True},
}

CLIENT = """
import os, sys
from shoal.client import Client
endpoint, place = sys.argv[1:]
with Client(endpoint) as client:
    if os.path.exists(place):
        stream = client.resume(open(place, "rb").read())
    else:
        stream = client.stream("The sea", max_tokens=200, ignore_eos=True, seed=7, temperature=0.9, n=2, logprobs=1)
    with stream:
        for chunk in stream:
            with open(place + ".part", "wb") as file:
                file.write(stream.resume_token)
            os.replace(place + ".part", place)
            print(chunk.choice, chunk.first_token_index, flush=True)
        print(repr(stream.completion().choices))
"""


def facts(answer: Completion) -> tuple[Any, ...]:
    return answer.choices, answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.prompt_logprobs


class Storm:
    """Clients that ask without end and compare."""

    def __init__(
        self, client: AsyncClient, asks: Mapping[str, dict[str, Any]], expected: Mapping[str, Completion]
    ) -> None:
        self.over = False
        self.num_answers = dict.fromkeys(asks, 0)
        self._client = client
        self._asks = asks
        self._expected = expected
        self._num_chunks = 0
        self._chunk = asyncio.Event()

    async def ask(self, name: str) -> None:
        """Until it is over."""
        while not self.over:
            async with self._client.stream(**self._asks[name]) as stream:
                async for _ in stream:
                    self._num_chunks += 1
                    self._chunk.set()
                assert facts(await stream.completion()) == facts(self._expected[name]), name
            self.num_answers[name] += 1

    async def wait_chunks(self, number: int) -> None:
        """Returns when so many more have come to anybody."""
        until = self._num_chunks + number
        while self._num_chunks < until:
            self._chunk.clear()
            await asyncio.wait_for(self._chunk.wait(), 30)


async def test_streams_outlive_their_gateways_byte_for_byte(tmp_path: Path) -> None:
    count = num_kills(4)
    draw = random.Random(count)
    async with (
        slow_mesh(tmp_path, num_workers=2, num_gateways=2, step_ms=5) as mesh,
        AsyncClient(mesh.endpoint) as client,
    ):
        asks = dict(ASKS)
        whole = await client.generate(**asks["both"])
        stop = next(whole.text[at : at + 2] for at in range(len(whole.text) // 2, len(whole.text)))
        asks["stop"] = {"prompt": "The sea", **LONG, "n": 2, "stop": ["nowhere to be found", stop]}
        expected = {name: await client.generate(**ask) for name, ask in asks.items()}
        asks["drawn seed"]["seed"] = expected["drawn seed"].seed
        storm = Storm(client, asks, expected)

        async def kill_gateways() -> None:
            for number in range(count):
                await storm.wait_chunks(draw.randint(1, 1500))
                await kill(mesh, GATEWAYS[number % 2])
                await wait_ready(mesh, *GATEWAYS)
            storm.over = True

        async with asyncio.TaskGroup() as group:
            group.create_task(kill_gateways())
            for name in asks:
                group.create_task(storm.ask(name))
        assert all(storm.num_answers.values())


async def test_a_client_process_that_is_killed_goes_on_in_another(tmp_path: Path) -> None:
    place = tmp_path / "token"
    async with slow_mesh(tmp_path, num_workers=1, num_gateways=2, step_ms=5) as mesh:
        command = [sys.executable, "-P", "-c", CLIENT, mesh.endpoint]

        def read_to_the_end(place: Path) -> list[str]:
            output = subprocess.run([*command, str(place)], capture_output=True, check=True, timeout=60)
            return output.stdout.decode().splitlines()

        def read_and_die(num_chunks: int) -> None:
            with subprocess.Popen([*command, str(place)], stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                assert all(process.stdout.readline() for _ in range(num_chunks))
                process.send_signal(signal.SIGKILL)

        whole = await asyncio.to_thread(read_to_the_end, tmp_path / "another token")
        for num_chunks in (1, 40, 80):
            await asyncio.to_thread(read_and_die, num_chunks)
        rest = await asyncio.to_thread(read_to_the_end, place)
        assert rest[-1] == whole[-1]
        assert 1 < len(rest) < len(whole) - 100, "only the rest was read again"
