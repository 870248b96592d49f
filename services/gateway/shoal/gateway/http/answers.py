"""The messages of one HTTP answer, which may come from several generations (one a prompt)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final

from shoal.api.gateway.v1 import gateway_pb2
from shoal.gateway.generation import Generation
from shoal.gateway.http.shapes import usage_of
from shoal.gateway.journal import Message
from shoal.gateway.pipeline import Caller, Pipeline
from shoal.gateway.relay import TextRelay

_QUEUED_MESSAGES: Final = 64
_Item = tuple[int, Message] | BaseException | None


class Answers:
    """Generations of one or several prompts, read as one. Choices are numbered prompt by prompt.

    Made by `open_answers`. Use as an async context manager.
    """

    def __init__(self, pipeline: Pipeline, requests: Sequence[gateway_pb2.GenerateRequest], caller: Caller) -> None:
        self.first: Generation
        self._num_completions = requests[0].sampling.n or 1
        self.num_choices = self._num_completions * len(requests)
        self._pipeline = pipeline
        self._requests = requests
        self._caller = caller
        self._generations: dict[int, Generation] = {}
        self._relay: TextRelay
        self._completion_tokens = [0] * len(requests)
        self._running = len(requests)
        self._queue: asyncio.Queue[_Item] = asyncio.Queue()
        self._space = asyncio.Event()
        self._is_open = False
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Returns once every prompt has its first message. Raises the first error of any; nothing is under way then.

        Several prompts are read from the moment each is opened: one that waits for room at the workers must not hold
        up those that take it. What comes meanwhile is kept, at most all of it.
        """
        if len(self._requests) == 1:
            self.first = self._generations[0] = await self._pipeline.open(self._requests[0], self._caller)
            self._relay = self._pipeline.open_text(self._requests[0], self.first)
            return
        opened: list[asyncio.Future[None]] = [asyncio.get_running_loop().create_future() for _ in self._requests]
        self._tasks = [asyncio.create_task(self._serve(index, future)) for index, future in enumerate(opened)]
        try:
            await asyncio.gather(*opened)
        except BaseException as error:
            for future in opened:
                future.cancel()
            await self.__aexit__(type(error), error, None)
            raise
        self.first = self._generations[0]
        self._is_open = True

    async def __aenter__(self) -> Answers:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for generation in self._generations.values():
            generation.__exit__(kind, error, trace)

    async def read(self) -> tuple[int, Message] | None:
        """A choice's number and its next message; None after the last of all."""
        if not self._tasks:  # one prompt: no queue, no second task
            message = await self._relay.read()
            return None if message is None else self._noted(0, message)
        while self._running:
            item = await self._queue.get()
            self._space.set()
            if isinstance(item, BaseException):
                raise item
            if item is not None:
                return item
            self._running -= 1
        return None

    def usage(self) -> dict[str, Any]:
        """Token counts over all prompts; complete after `read` gave None."""
        generations = self._generations.values()
        return usage_of(
            sum(g.num_prompt_tokens for g in generations),
            sum(self._completion_tokens),
            sum(g.num_cached_tokens for g in generations),
        )

    async def _serve(self, index: int, opened: asyncio.Future[None]) -> None:
        request = self._requests[index]
        try:
            generation = await self._pipeline.open(request, self._caller)
        except Exception as error:
            if not opened.done():
                opened.set_exception(error)
            return
        self._generations[index] = generation
        relay = self._pipeline.open_text(request, generation)
        if not opened.done():
            opened.set_result(None)
        try:
            while (message := await relay.read()) is not None:
                await self._put(self._noted(index, message))
        except Exception as error:
            await self._put(error)
        else:
            await self._put(None)

    async def _put(self, item: _Item) -> None:
        while self._is_open and self._queue.qsize() >= _QUEUED_MESSAGES:
            self._space.clear()
            await self._space.wait()
        self._queue.put_nowait(item)

    def _noted(self, index: int, message: Message) -> tuple[int, Message]:
        if message.HasField("usage"):
            self._completion_tokens[index] = message.usage.completion_tokens
        return index * self._num_completions + message.choice, message


async def open_answers(pipeline: Pipeline, requests: Sequence[gateway_pb2.GenerateRequest], caller: Caller) -> Answers:
    """Opens every request at once; when one is refused, the others are ended and its error is raised."""
    answers = Answers(pipeline, requests, caller)
    await answers.open()
    return answers
