"""Output on its way from the engine to one gRPC call."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from shoal.model_worker.failure import Failure
from shoal.model_worker.request import FinishReason, Request
from shoal.model_worker.scheduler import Finished
from shoal.model_worker.step import TokenLogprobs


@dataclass(slots=True, eq=False)
class ChoiceOutput:
    """What one completion has produced and its call has not sent yet. At most max_model_len tokens."""

    stream: RequestStream
    choice: int
    next_index: int
    """Position in the completion of the first of `token_ids`."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    num_tokens: int = 0
    """Tokens of the completion so far, sent or not."""
    last_token_s: float = 0.0
    sent_any: bool = False
    end_sent: bool = False


@dataclass(slots=True, eq=False)
class RequestStream:
    """One request's output. Filled by `engine_client`, drained by one servicer call; both on the same event loop."""

    request: Request
    choices: list[ChoiceOutput] = field(default_factory=list)
    num_cached_tokens: int = 0
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    failure: Failure | None = None
    num_unfinished: int = 0
    """Completions that the engine still works on."""
    _awake: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    def open(cls, request: Request) -> RequestStream:
        """The empty stream of a request."""
        stream = cls(request, num_unfinished=request.sampling.n)
        num_resumed = len(request.resume_token_ids)
        for choice in range(request.sampling.n):
            stream.choices.append(ChoiceOutput(stream, choice, num_resumed, num_tokens=num_resumed))
        return stream

    @property
    def num_completion_tokens(self) -> int:
        """Tokens generated over all completions, resumed ones included."""
        return sum(choice.num_tokens for choice in self.choices)

    def finish(self, choice: int, finished: Finished) -> None:
        """Notes a completion's end."""
        output = self.choices[choice]
        output.finish_reason, output.stop_token_id = finished.reason, finished.stop_token_id
        self.num_unfinished -= 1
        self.wake()

    def fail(self, failure: Failure) -> None:
        """Ends the stream with an error once what came before it is sent."""
        self.failure = failure
        self.num_unfinished = 0
        self.wake()

    def wake(self) -> None:
        """Has the call look at the stream."""
        self._awake.set()

    async def wait(self) -> None:
        """Returns when there is something to look at. Ends with the engine at the latest, which fails all streams."""
        await self._awake.wait()
        self._awake.clear()
