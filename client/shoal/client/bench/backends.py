"""Sends one prompt over gRPC or the OpenAI API and takes the times."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx
import msgspec

from shoal.client import AsyncClient, Options, ShoalError
from shoal.client.bench.records import Prompt, Record


class Backend(Protocol):
    """A way to reach the endpoint."""

    async def send(self, prompt: Prompt) -> Record:
        """Sends one request and reads its answer to the end. Errors become the record's `error_code`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOptions:
    """What all requests of a run share."""

    model: str = ""
    temperature: float = 0.0
    ignore_eos: bool = False
    timeout_s: float = 300.0


@dataclass(slots=True)
class _Watch:
    """Takes the times of one request."""

    clock: Callable[[], float]
    start_s: float = field(init=False)
    output_times_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.start_s = self.clock()

    def on_output(self) -> None:
        self.output_times_s.append(self.clock())

    def failed(self, code: str) -> Record:
        return Record(
            start_s=self.start_s, end_s=self.clock(), output_times_s=tuple(self.output_times_s), error_code=code
        )

    def succeeded(self, prompt_tokens: int, output_tokens: int, cached_tokens: int) -> Record:
        return Record(
            start_s=self.start_s,
            end_s=self.clock(),
            output_times_s=tuple(self.output_times_s),
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            cached_tokens=cached_tokens,
        )


class GrpcBackend:
    """Through the SDK, which must not retry: a refused request is a result."""

    def __init__(
        self, client: AsyncClient, options: RequestOptions, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._client = client
        self._options = options
        self._clock = clock

    async def send(self, prompt: Prompt) -> Record:
        """See `Backend`."""
        watch = _Watch(self._clock)
        try:
            async with self._client.stream(
                prompt.text, token_ids=prompt.token_ids, messages=prompt.messages, **self._sampling(prompt)
            ) as stream:
                async for chunk in stream:
                    if chunk.token_ids or chunk.text:
                        watch.on_output()
                usage = (await stream.completion()).usage
        except ShoalError as error:
            return watch.failed(error.code.name)
        return watch.succeeded(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)

    def _sampling(self, prompt: Prompt) -> Options:
        return {
            "model": self._options.model,
            "temperature": self._options.temperature,
            "ignore_eos": self._options.ignore_eos,
            "max_tokens": prompt.max_tokens,
            "timeout_s": self._options.timeout_s,
        }


class OpenAiBackend:
    """Server-sent events of `/v1/completions` and `/v1/chat/completions`, of any OpenAI-compatible server."""

    def __init__(
        self, client: httpx.AsyncClient, options: RequestOptions, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """`client` has the base URL and the key; its connection pool must be as wide as the load."""
        self._client = client
        self._options = options
        self._clock = clock

    async def send(self, prompt: Prompt) -> Record:
        """See `Backend`."""
        path, body = openai_request(prompt, self._options)
        watch = _Watch(self._clock)
        usage: dict[str, Any] = {}
        try:
            async with self._client.stream("POST", path, json=body, timeout=self._options.timeout_s) as response:
                if response.status_code != httpx.codes.OK:
                    await response.aread()
                    return watch.failed(f"HTTP {response.status_code}")
                async for event in server_sent_events(response):
                    if "error" in event:
                        return watch.failed(str(event["error"].get("code") or "error event"))
                    if any(output_of(choice) for choice in event.get("choices", ())):
                        watch.on_output()
                    usage = event.get("usage") or usage
        except (httpx.HTTPError, msgspec.DecodeError) as error:
            return watch.failed(type(error).__name__)
        if not usage:
            return watch.failed("no usage")
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return watch.succeeded(usage["prompt_tokens"], usage["completion_tokens"], cached)


def openai_request(prompt: Prompt, options: RequestOptions) -> tuple[str, dict[str, Any]]:
    """Path and body of a streamed request. `ignore_eos` is vLLM's extension and left out when off."""
    body: dict[str, Any] = {
        "model": options.model,
        "max_tokens": prompt.max_tokens,
        "temperature": options.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if options.ignore_eos:
        body["ignore_eos"] = True
    if prompt.messages is not None:
        return "/v1/chat/completions", body | {"messages": list(prompt.messages)}
    return "/v1/completions", body | {"prompt": prompt.text if prompt.token_ids is None else list(prompt.token_ids)}


async def server_sent_events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of an OpenAI event stream, up to its `[DONE]`."""
    async for line in response.aiter_lines():
        if line.startswith("data:"):
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                return
            yield msgspec.json.decode(data)


def output_of(choice: dict[str, Any]) -> str:
    """The text in one choice of an event, of either API."""
    return choice.get("text") or (choice.get("delta") or {}).get("content") or ""
