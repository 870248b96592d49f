from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from shoal.client import AsyncClient, DeadlineExceeded, Internal, ResourceExhausted, Unavailable
from support.fake_gateway import WAIT_S, Fail, FakeGateway, Reply


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with FakeGateway() as fake:
        yield fake


async def test_completions_and_streams_agree(gateway: FakeGateway) -> None:
    async with AsyncClient(gateway.endpoint) as client:
        whole = await client.chat([{"role": "user", "content": "x"}], n=2)
        async with client.chat_stream([{"role": "user", "content": "x"}], n=2) as stream:
            texts = [chunk.text async for chunk in stream if chunk.choice == 1]
            streamed = await stream.completion()
    assert "".join(texts) == whole.text == "Hello from the mesh."
    assert streamed.choices == whole.choices


async def test_leaving_the_block_cancels_the_request(gateway: FakeGateway) -> None:
    gateway.script.append(Reply(hold=threading.Event()))
    async with AsyncClient(gateway.endpoint) as client:
        async with client.stream("x") as stream:
            assert (await anext(stream)).text == "Hell"
        assert await asyncio.to_thread(gateway.calls[0].ended.wait, WAIT_S)
        assert (await stream.completion()).text == "Hell"


async def test_closing_from_another_task_ends_the_iteration(gateway: FakeGateway) -> None:
    gateway.script.append(Reply(hold=threading.Event()))
    async with AsyncClient(gateway.endpoint) as client:
        stream = client.stream("x")
        await anext(stream)
        reading = asyncio.create_task(stream.completion())
        await asyncio.sleep(0)  # lets the task begin to read
        stream.close()
        assert (await asyncio.wait_for(reading, WAIT_S)).finish_reason is None


async def test_cancelling_the_task_cancels_the_request(gateway: FakeGateway) -> None:
    gateway.script.append(Reply(hold=threading.Event()))
    async with AsyncClient(gateway.endpoint) as client:
        stream = client.stream("x")
        await anext(stream)
        reading = asyncio.create_task(stream.completion())
        await asyncio.sleep(0)  # lets the task begin to read
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert await asyncio.to_thread(gateway.calls[0].ended.wait, WAIT_S)


async def test_retries_honour_retry_info(gateway: FakeGateway) -> None:
    gateway.script.extend([Fail(ResourceExhausted("full", retry_after_s=2)), Fail(Unavailable("draining"))])
    waits: list[float] = []

    async def sleep(wait_s: float) -> None:
        waits.append(wait_s)

    async with AsyncClient(gateway.endpoint, sleep=sleep) as client:
        assert (await client.generate("x")).text == "Hello from the mesh."
        gateway.unary_errors.append(Unavailable("starting", retry_after_s=4))
        assert await client.tokenize("a") == (1, 97)
    assert len(waits) == 3
    assert waits[0] >= 2
    assert waits[2] >= 4


async def test_deadlines_and_broken_streams_are_typed(gateway: FakeGateway) -> None:
    gateway.script.extend([Reply(hold=threading.Event()), Reply(finish=False), Reply(fail_after=Unavailable("gone"))])
    async with AsyncClient(gateway.endpoint) as client:
        with pytest.raises(DeadlineExceeded):
            await client.generate("x", timeout_s=0.3)
        with pytest.raises(Internal, match="before every choice"):
            await client.generate("x")
        with pytest.raises(Unavailable, match="gone"):
            await client.generate("x")
    assert len(gateway.calls) == 3


async def test_unary_calls(gateway: FakeGateway) -> None:
    client = AsyncClient(gateway.endpoint, api_key="key")
    async with client:
        assert await client.detokenize([97]) == "a"
        assert (await client.models())[0].ready_workers == 2
        assert (await client.model("fake")).vocab_size == 256
    assert gateway.unary_metadata[0]["authorization"] == "Bearer key"
