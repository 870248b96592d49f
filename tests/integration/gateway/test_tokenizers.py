"""Several tokenizers behind one target: who gets calls, and what a lost one costs."""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

from shoal.gateway.tokenizing import Tokenizer, open_tokenizer_channel
from shoal.rpc.server import Registration, Server, ServerOptions, start_server
from support.eventually import eventually
from support.fake_tokenizer import FakeTokenizer

SERVICE = "shoal.api.tokenizer.v1.TokenizerService"


class Counting(FakeTokenizer):
    """Counts its calls in a shared counter."""

    def __init__(self, name: str, calls: Counter[str]) -> None:
        super().__init__()
        self._name, self._calls = name, calls

    async def Encode(self, request: Any, context: Any) -> Any:
        self._calls[self._name] += 1
        return await super().Encode(request, context)


async def start(name: str, calls: Counter[str], *, serving: bool = True) -> Server:
    fake = Counting(name, calls)
    registration = Registration(lambda _, server: fake.add_to_server(server), fake, SERVICE)
    server = await start_server(ServerOptions("127.0.0.1", 0), [registration])
    await server.set_serving(serving)
    return server


async def test_calls_take_turns_and_skip_who_is_not_serving_or_gone() -> None:
    calls: Counter[str] = Counter()
    async with AsyncExitStack() as stack:
        servers = {name: await start(name, calls, serving=name != "c") for name in "abc"}
        for name in "ac":
            stack.push_async_callback(servers[name].stop, 0)
        target = "ipv4:" + ",".join(f"127.0.0.1:{server.port}" for server in servers.values())
        channel = await stack.enter_async_context(open_tokenizer_channel(target))
        tokenizer = Tokenizer(channel)

        async def both_answer() -> bool:
            await tokenizer.encode("x", timeout_s=20)
            return calls["a"] > 0 and calls["b"] > 0

        await eventually(both_answer, "both connections stand")
        calls.clear()
        for _ in range(10):
            await tokenizer.encode("x", timeout_s=20)
        assert calls == {"a": 5, "b": 5}

        await servers["b"].stop(0)
        calls.clear()
        for _ in range(10):
            assert await tokenizer.encode("x", timeout_s=20) == [ord("x")]
        assert calls == {"a": 10}

        await servers["a"].set_serving(False)
        await servers["c"].set_serving(True)

        async def third_answers() -> bool:
            await tokenizer.encode("x", timeout_s=20)
            return calls["c"] > 0

        await eventually(third_answers, "the third one is found serving")
