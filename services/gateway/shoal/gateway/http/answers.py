"""The messages of one HTTP answer, which may come from several generations (one a prompt)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Final

from shoal.api.gateway.v1 import gateway_pb2
from shoal.gateway.generation import Generation
from shoal.gateway.http.shapes import usage_of
from shoal.gateway.journal import Message
from shoal.gateway.pipeline import Caller, Pipeline
from shoal.gateway.relay import TextRelay

_QUEUED_MESSAGES: Final = 64


class Answers:
    """Opened generations, read as one. Choices are numbered prompt by prompt. Use as an async context manager."""

    def __init__(self, generations: Sequence[Generation], relays: Sequence[TextRelay]) -> None:
        self.first = generations[0]
        self.num_choices = sum(len(g.completions) for g in generations)
        self._generations = generations
        self._relays = relays
        self._completion_tokens = [0] * len(relays)
        self._running = len(relays)
        self._queue: asyncio.Queue[tuple[int, Message] | BaseException | None] = asyncio.Queue(_QUEUED_MESSAGES)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Answers:
        if len(self._relays) > 1:
            self._tasks = [asyncio.create_task(self._pump(i)) for i in range(len(self._relays))]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for generation in self._generations:
            generation.__exit__(kind, error, trace)

    async def read(self) -> tuple[int, Message] | None:
        """A choice's number and its next message; None after the last of all."""
        if not self._tasks:  # one prompt: no queue, no second task
            message = await self._relays[0].read()
            return None if message is None else self._noted(0, message)
        while self._running:
            item = await self._queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is not None:
                return item
            self._running -= 1
        return None

    def usage(self) -> dict[str, Any]:
        """Token counts over all prompts; complete after `read` gave None."""
        return usage_of(
            sum(g.num_prompt_tokens for g in self._generations),
            sum(self._completion_tokens),
            sum(g.num_cached_tokens for g in self._generations),
        )

    async def _pump(self, index: int) -> None:
        try:
            while (message := await self._relays[index].read()) is not None:
                await self._queue.put(self._noted(index, message))
        except Exception as error:
            await self._queue.put(error)
        else:
            await self._queue.put(None)

    def _noted(self, index: int, message: Message) -> tuple[int, Message]:
        if message.HasField("usage"):
            self._completion_tokens[index] = message.usage.completion_tokens
        return index * len(self.first.completions) + message.choice, message


async def open_answers(pipeline: Pipeline, requests: Sequence[gateway_pb2.GenerateRequest], caller: Caller) -> Answers:
    """Opens every request at once; when one is refused, the others are ended and its error is raised."""
    if len(requests) == 1:
        generations = [await pipeline.open(requests[0], caller)]
    else:
        results = await asyncio.gather(*(pipeline.open(r, caller) for r in requests), return_exceptions=True)
        generations = [r for r in results if isinstance(r, Generation)]
        errors = [r for r in results if isinstance(r, BaseException)]
        if errors:
            with ExitStack() as stack:
                for generation in generations:
                    stack.enter_context(generation)
                raise errors[0]
    return Answers(generations, [pipeline.open_text(r, g) for r, g in zip(requests, generations, strict=True)])
