"""Those who use the mesh meanwhile: streams of all kinds whose answers are known, over and over."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from shoal.client import AsyncClient, Client, Completion, RetryPolicy, ShoalError

TIMEOUT_S = 120.0
# An edge that is away refuses everybody, here several times in a row: clients ask again for some 40 s, once a second,
# where the default is 25 s with up to 5 s between attempts.
PATIENT = RetryPolicy(max_attempts=40, max_resumes=40, max_backoff_s=1.0, budget_tokens=1e6)
LONG: dict[str, Any] = {"max_tokens": 200, "ignore_eos": True}
SEEDED: dict[str, Any] = {**LONG, "seed": 7, "temperature": 0.9, "top_p": 0.95}
PENALTIES = {"frequency_penalty": 0.5, "presence_penalty": 0.2, "repetition_penalty": 1.1}
_TEXT = "The tide comes in twice a day because the moon pulls at the sea, and the sea follows it around the earth. " * 4

ASKS: dict[str, dict[str, Any]] = {
    "greedy": {"prompt": "The sea is", "temperature": 0, "seed": 1, **LONG},
    "seeded": {"prompt": "The sea is", **SEEDED},
    "text": {"prompt": _TEXT + "Far away", "output": "text", **SEEDED},
    "token ids": {"token_ids": list(range(100, 260)), "output": "token_ids", **SEEDED, "logprobs": 2},
    "penalties": {"prompt": _TEXT + "And so", **SEEDED, **PENALTIES},
    "n": {"prompt": "Once", **SEEDED, "n": 2, "logprobs": 0},
    "eos": {"prompt": _TEXT, "max_tokens": 300, "seed": 11, "min_tokens": 60},
    "prompt": {"prompt": "A short prompt", **SEEDED, "prompt_logprobs": 1},
    "chat": {"messages": [{"role": "user", "content": "Hello"}], **SEEDED},
}
STOPPED: dict[str, Any] = {"prompt": "The sea is", **SEEDED, "n": 2}
"""To be stopped by something that its first completion says about half way."""
BODY: dict[str, Any] = {"prompt": "The sea is", "max_tokens": 150, "ignore_eos": True, "seed": 5, "stream": True}


class RefusedError(Exception):
    """An HTTP request was told to come back later."""


@dataclass(slots=True, eq=False)
class Active:
    """A stream under way."""

    began_s: float
    num_choices: int = 1
    longest_gap_s: float = 0.0
    _last_s: float = 0.0
    _running: dict[int, float] = field(init=False)
    """When each choice that goes on had its last chunk; 0 before the first."""

    def __post_init__(self) -> None:
        self._running = dict.fromkeys(range(self.num_choices), 0.0)

    def took(self, choice: int = 0, *, is_last: bool = False) -> None:
        """A chunk came."""
        now_s = time.monotonic()
        if self._last_s:
            self.longest_gap_s = max(self.longest_gap_s, now_s - self._last_s)
        self._last_s = self._running[choice] = now_s
        if is_last:
            del self._running[choice]

    def goes_on_since(self, since_s: float) -> bool:
        """Whether each choice has had a chunk since then, or its end."""
        return all(last_s > since_s for last_s in list(self._running.values()))


@dataclass
class Tally:
    """What came of the streams."""

    answers: Counter[str] = field(default_factory=Counter)
    """Right ones, by kind."""
    num_resumes: int = 0
    num_resumed: int = 0
    num_refused: int = 0
    """HTTP requests that were answered 503 or 429 before they began, which the SDK would repeat by itself."""
    num_cut_off: int = 0
    """HTTP streams that ended with their gateway or Envoy, for which nobody can go on."""
    failures: list[str] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    """Longest silence within each stream."""


class Load:
    """Belongs to one event loop; `run` ends after `over` was set, when every stream is at its end."""

    def __init__(self, endpoint: str, was_edge_hurt: Callable[[float, float], bool]) -> None:
        """was_edge_hurt: whether a gateway or Envoy was, between two times of `time.monotonic()`."""
        self.tally = Tally()
        self.over = False
        self.active: set[Active] = set()
        self._endpoint = endpoint
        self._was_edge_hurt = was_edge_hurt
        self._asks: dict[str, dict[str, Any]] = dict(ASKS)
        self._expected: dict[str, tuple[Any, ...]] = {}

    async def learn(self) -> None:
        """Asks everything in peace. Twice: answers must not depend on what is cached."""
        async with self._client() as client:
            whole = await client.generate(**STOPPED)
            text = whole.text
            stop = next(
                text[at : at + 3] for at in range(len(text) // 2, len(text)) if "\ufffd" not in text[at : at + 3]
            )
            self._asks["stop"] = {**STOPPED, "stop": ["nowhere to be found", stop]}
            for _ in range(2):
                answers = await asyncio.gather(*(client.generate(**ask) for ask in self._asks.values()))
                found = {name: facts(answer) for name, answer in zip(self._asks, answers, strict=True)}
                assert self._expected in ({}, found), "two answers in peace differ"
                self._expected = found
            self._expected["http"] = (await self._read_http(Active(0)),)

    async def run(self, num_streams: int, num_threads: int) -> None:
        """Streams at once: of the asynchronous client, of the synchronous one in threads, and some over HTTP."""
        names = list(self._asks)
        with ThreadPoolExecutor(num_threads) as pool:
            loop = asyncio.get_running_loop()
            async with self._client() as client, asyncio.TaskGroup() as group:
                for number in range(num_streams):
                    group.create_task(self._repeat(client, names[number % len(names)]))
                for number in range(num_threads):
                    group.create_task(self._repeat_in_thread(loop, pool, names[number % len(names)]))
                for _ in range(2):
                    group.create_task(self._repeat_http())

    def is_calm(self, since_s: float) -> bool:
        """Whether every stream has had a token since then: nobody is on the way from one worker to another."""
        return all(active.goes_on_since(since_s) for active in self.active)

    def _client(self) -> AsyncClient:
        return AsyncClient(self._endpoint, timeout_s=TIMEOUT_S, retry=PATIENT)

    async def _repeat(self, client: AsyncClient, name: str) -> None:
        while not self.over:
            active = self._begin(self._asks[name].get("n", 1))
            try:
                async with client.stream(**self._asks[name]) as stream:
                    async for chunk in stream:
                        active.took(chunk.choice, is_last=chunk.finish_reason is not None)
                    self._judge(name, await stream.completion(), stream.num_resumes, active)
            except ShoalError as error:
                self._fail(name, error, active)
            finally:
                self.active.discard(active)

    async def _repeat_in_thread(self, loop: asyncio.AbstractEventLoop, pool: ThreadPoolExecutor, name: str) -> None:
        def read(active: Active) -> tuple[Completion, int]:
            with (
                Client(self._endpoint, timeout_s=TIMEOUT_S, retry=PATIENT) as client,
                client.stream(**self._asks[name]) as stream,
            ):
                for chunk in stream:
                    active.took(chunk.choice, is_last=chunk.finish_reason is not None)
                return stream.completion(), stream.num_resumes

        while not self.over:
            active = self._begin(self._asks[name].get("n", 1))
            try:
                answer, num_resumes = await loop.run_in_executor(pool, read, active)
                self._judge(f"{name} (thread)", answer, num_resumes, active, self._expected[name])
            except ShoalError as error:
                self._fail(f"{name} (thread)", error, active)
            finally:
                self.active.discard(active)

    async def _repeat_http(self) -> None:
        while not self.over:
            active = self._begin()
            try:
                text = await self._read_http(active)
            except RefusedError:
                self.tally.num_refused += 1
                await asyncio.sleep(0.2)
            except (OSError, EOFError, TimeoutError) as error:
                if self._was_edge_hurt(active.began_s, time.monotonic()):
                    self.tally.num_cut_off += 1
                    await asyncio.sleep(0.2)
                else:
                    self._fail("http", error, active)
            else:
                self._compare("http", (text,), self._expected["http"], active)
            finally:
                self.active.discard(active)

    async def _read_http(self, active: Active) -> str:
        """The text of one stream over the OpenAI API. Raises EOFError when it is cut off, RefusedError before that."""
        host, _, port = self._endpoint.rpartition(":")
        body = json.dumps(BODY).encode()
        lines = ["POST /v1/completions HTTP/1.1", "host: x", "content-type: application/json", "connection: close"]
        texts: list[str] = []
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                writer.write("\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body)
                status = await reader.readline()
                if status.split()[1:2] in ([b"429"], [b"503"]):
                    raise RefusedError
                while line := await reader.readline():
                    if line.startswith(b"data: [DONE]"):
                        return "".join(texts)
                    if line.startswith(b"data: "):
                        active.took()
                        event = json.loads(line[6:])
                        if "error" in event:
                            raise EOFError(str(event["error"]))
                        texts += [choice["text"] for choice in event["choices"]]
            finally:
                writer.close()
        raise EOFError(f"cut off after {len(texts)} events: {status!r}")

    def _begin(self, num_choices: int = 1) -> Active:
        active = Active(time.monotonic(), num_choices)
        self.active.add(active)
        return active

    def _judge(
        self, name: str, answer: Completion, num_resumes: int, active: Active, expected: tuple[Any, ...] | None = None
    ) -> None:
        self.tally.num_resumes += num_resumes
        self.tally.num_resumed += num_resumes > 0
        self._compare(name, facts(answer), expected or self._expected[name], active)

    def _compare(self, name: str, got: tuple[Any, ...], expected: tuple[Any, ...], active: Active) -> None:
        if got == expected:
            self.tally.answers[name] += 1
            self.tally.gaps_s.append(active.longest_gap_s)
        else:
            self.tally.failures.append(f"{name}: another answer; {first_difference(got, expected)}")

    def _fail(self, name: str, error: Exception, active: Active) -> None:
        age_s = time.monotonic() - active.began_s
        self.tally.failures.append(f"{name}: {type(error).__name__} after {age_s:.1f} s: {error}")


def facts(answer: Completion) -> tuple[Any, ...]:
    """All of an answer that must not depend on where it came from."""
    return answer.choices, answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.prompt_logprobs


def first_difference(got: tuple[Any, ...], expected: tuple[Any, ...]) -> str:
    """Where two answers part, in a line."""
    for mine, its in zip(got, expected, strict=True):
        if mine != its:
            a, b = str(mine), str(its)
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            return f"at {at}: {a[max(0, at - 40) : at + 40]!r} in place of {b[max(0, at - 40) : at + 40]!r}"
    return "equal"


def counts(tally: Tally) -> Mapping[str, int]:
    """Right answers by kind, in order."""
    return dict(sorted(tally.answers.items()))
