"""Turns a generation's tokens into text, message by message, and ends it at the first stop string."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from shoal.api.gateway.v1 import gateway_pb2
from shoal.api.generation.v1 import generation_pb2
from shoal.gateway.generation import Generation
from shoal.gateway.journal import Message
from shoal.gateway.text.detokenizer import Detokenizer
from shoal.gateway.text.stop import StopMatcher, StopStrings
from shoal.gateway.text.vocabulary import Vocabulary
from shoal.rpc.errors import Internal, InvalidArgument

_GOES_ON: Final = generation_pb2.FINISH_REASON_UNSPECIFIED
_REPLAYED_AT_ONCE: Final = 256
"""Tokens; with 64 stop strings some 10 ms of work, which other requests wait for."""


class TextRelay:
    """Reads a generation to its end. `read` gives public messages: text set, token ids only if they were asked for."""

    def __init__(self, generation: Generation, request: gateway_pb2.GenerateRequest, vocabulary: Vocabulary) -> None:
        self._generation = generation
        self._keeps_ids = request.output_format == gateway_pb2.OUTPUT_FORMAT_TEXT_AND_TOKEN_IDS
        stops = StopStrings.of(request.stop) if request.stop else None
        self._texts: Sequence[_CompletionText] = [
            _CompletionText(request, vocabulary, stops) for _ in generation.completions
        ]
        self._vocabulary = vocabulary
        self._num_running = len(self._texts)
        self._stopped = False
        self._is_first = True

    async def replay(self, resume: gateway_pb2.Resume) -> None:
        """Brings every completion's text to where the client has it. Call at most once, before `read`.

        Text is a function of the ids so far, however they were cut into messages. Raises InvalidArgument when these ids
        cannot have been an unfinished answer to this request.
        """
        for index, (text, had) in enumerate(zip(self._texts, resume.completions, strict=True)):
            field = f"resume.completions[{index}].token_ids"
            if had.finished:
                text.finished = True
                text.num_tokens = len(had.token_ids)
                self._num_running -= 1
                continue
            if had.token_ids and (largest := max(had.token_ids)) >= len(self._vocabulary):
                raise InvalidArgument(field, f"{largest} is outside [0, {len(self._vocabulary) - 1}]")
            for start in range(0, len(had.token_ids), _REPLAYED_AT_ONCE):
                text.feed(Message(token_ids=had.token_ids[start : start + _REPLAYED_AT_ONCE]))
                if text.stopped:
                    raise InvalidArgument(field, f"a stop text ended it with token {text.num_tokens - 1}: set finished")
                await asyncio.sleep(0)

    async def read(self) -> Message | None:
        """The next message worth sending, or None after the last. The first one names request, worker and model."""
        generation = self._generation
        while True:
            if self._stopped and not self._num_running:
                generation.cancel()  # a stop string ended what the worker would go on with
                return None
            message = await generation.read()
            if message is None:
                return None
            text = self._texts[message.choice]
            if text.finished:
                continue
            text.feed(message)
            if message.finish_reason != _GOES_ON:
                self._finish(text, message)
            if self._is_first:
                self._is_first = False
                message.request_id = generation.admitted.request_id
                message.worker = generation.worker
                message.model = generation.admitted.model.name
                message.seed = generation.seed
            elif not (message.text or message.finish_reason or message.logprobs or self._keeps_ids):
                text.skip(message)
                continue
            text.unskip(message)
            if not self._keeps_ids:
                message.ClearField("token_ids")
            return message

    def _finish(self, text: _CompletionText, message: Message) -> None:
        text.finished = True
        self._num_running -= 1
        if text.stopped:
            self._stopped = True
            self._generation.abandon(message.choice)
        if self._stopped and not self._num_running:  # the worker's counts include what came after, or never come
            message.usage.prompt_tokens = self._generation.num_prompt_tokens
            message.usage.completion_tokens = sum(t.num_tokens for t in self._texts)
            message.usage.cached_tokens = self._generation.num_cached_tokens


class _CompletionText:
    """The text of one completion."""

    __slots__ = (
        "_detokenizer", "_keeps_special", "_keeps_stop", "_matcher", "_min_tokens", "_skipped", "_special_ids",
        "finished", "num_tokens", "stopped",
    )  # fmt: skip

    def __init__(self, request: gateway_pb2.GenerateRequest, vocabulary: Vocabulary, stops: StopStrings | None) -> None:
        self.finished = False
        self.stopped = False
        """Whether a stop string ended it."""
        self.num_tokens = 0
        """Tokens that count: up to the one that completed a stop string."""
        self._detokenizer = Detokenizer(vocabulary, include_special_tokens=request.include_special_tokens)
        self._keeps_special = request.include_special_tokens
        self._keeps_stop = request.include_stop_text
        self._special_ids = vocabulary.special_ids
        self._matcher = StopMatcher(stops, include_stop_text=request.include_stop_text) if stops else None
        self._min_tokens = request.sampling.min_tokens
        self._skipped: int | None = None

    def feed(self, message: Message) -> None:
        """Sets `message.text`; at a stop string, cuts the message there and finishes it."""
        ids: Sequence[int] = message.token_ids
        start = self.num_tokens
        self.num_tokens += len(ids)
        if message.HasField("stop_token_id") and ids and not self._shows(message.stop_token_id):
            ids = ids[:-1]
        try:
            if self._matcher is None:
                message.text = self._detokenizer.feed(ids)
                if message.finish_reason != _GOES_ON:
                    message.text += self._detokenizer.flush()
            else:
                self._feed_matching(message, ids, start, self._matcher)
        except IndexError:
            raise Internal("the worker sent a token id outside the tokenizer's vocabulary") from None

    def skip(self, message: Message) -> None:
        """`message` is not sent; the next one starts where it does."""
        if self._skipped is None:
            self._skipped = message.first_token_index

    def unskip(self, message: Message) -> None:
        """`message` is sent and stands for the skipped ones as well."""
        if self._skipped is not None:
            message.first_token_index = self._skipped
            self._skipped = None

    def _shows(self, stop_token_id: int) -> bool:
        """Whether a stop token's text is part of the output. As in vLLM, the stop text's flag decides."""
        return self._keeps_special if stop_token_id in self._special_ids else self._keeps_stop

    def _feed_matching(self, message: Message, ids: Sequence[int], start: int, matcher: StopMatcher) -> None:
        shown: list[str] = []
        for offset, token_id in enumerate(ids):
            text = self._detokenizer.feed((token_id,))
            if start + offset < self._min_tokens:
                shown.append(text)
            elif text:
                shown.append(matcher.feed(text))
                if matcher.matched is not None:
                    self._cut(message, offset + 1, start, matcher.matched)
                    break
        if message.finish_reason != _GOES_ON and matcher.matched is None:
            shown.append(matcher.feed(self._detokenizer.flush()))
            if matcher.matched is None:
                shown.append(matcher.flush())
            else:
                self._cut(message, len(message.token_ids), start, matcher.matched)
        message.text = "".join(shown)

    def _cut(self, message: Message, num_tokens: int, start: int, stop_text: str) -> None:
        self.stopped = True
        self.num_tokens = start + num_tokens
        del message.token_ids[num_tokens:]
        del message.logprobs[num_tokens:]
        message.stop_text = stop_text
        message.finish_reason = generation_pb2.FINISH_REASON_STOP
        message.ClearField("stop_token_id")
