"""When a token leaves at once, and when it waits for others to share a message with.

A message costs the front and the gateway about 25 us each, whatever it holds; with hundreds of streams at tens of
tokens a second that, not the engine, becomes the limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from shoal.model_worker.streams import ChoiceOutput


class Coalescer:
    """Few streams: every token is sent at once. Many: up to `max_tokens` or `max_delay_s`, whichever comes first.

    The first token of a completion and its end never wait. Belongs to one event loop.
    """

    def __init__(self, *, above_streams: int, max_tokens: int, max_delay_s: float) -> None:
        self._above_streams = above_streams
        self._max_tokens = max_tokens
        self._max_delay_s = max_delay_s
        self._held: set[ChoiceOutput] = set()
        self._timer: asyncio.TimerHandle | None = None

    def for_streams(self, num_streams: int) -> Callable[[ChoiceOutput], None]:
        """What to call for each completion that got a token, while there are so many streams."""
        return self._hold if num_streams > self._above_streams else _send

    def _hold(self, output: ChoiceOutput) -> None:
        if not output.sent_any or len(output.token_ids) >= self._max_tokens:
            output.stream.wake()
            return
        self._held.add(output)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._max_delay_s, self._flush)

    def _flush(self) -> None:
        self._timer = None
        held, self._held = self._held, set()
        for output in held:
            if output.token_ids:
                output.stream.wake()


def _send(output: ChoiceOutput) -> None:
    output.stream.wake()
