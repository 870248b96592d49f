"""The course of one streamed answer: messages in, chunks out, over all the calls that it takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import grpc

from shoal.api.gateway.v1 import gateway_pb2, resume_token_pb2
from shoal.client.calls import ClientSettings
from shoal.client.collecting import Collector
from shoal.client.decoding import decode_chunk, encode_completion
from shoal.client.delivered import Delivered
from shoal.client.options import Options
from shoal.client.requests import MessageLike, build_generate
from shoal.client.results import Chunk
from shoal.client.resume_tokens import decode_token, encode_token
from shoal.rpc.errors import Internal, InvalidArgument, ResourceExhausted, StreamLost, Unavailable
from shoal.rpc.status import from_rpc_error, has_details

_LOSSES: Final = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
)
"""What gRPC calls a connection or a stream that broke; only if no service of ours said it."""


class StreamCourse:
    """Retries until the first message; after it, goes on with what is missing. Does no input or output itself."""

    def __init__(
        self,
        settings: ClientSettings,
        request: gateway_pb2.GenerateRequest,
        timeout_s: float | None,
        *,
        is_resumable: bool,
        hides_token_ids: bool = False,
    ) -> None:
        """A resumable stream asks for token ids in every message; hides_token_ids: they are not what was asked for."""
        self.course = settings.start(timeout_s)
        self.request = request
        """What to send next."""
        self.num_resumes = 0
        """How often a lost call was followed by another one for the rest."""
        self.closed = False
        """Set once the caller gave the stream up; its end is then no error."""
        self.collector = Collector(max(1, request.sampling.n), self.course.start_s)
        self._settings = settings
        self._first_request = request
        self._delivered = Delivered(request) if is_resumable else None
        self._hides_token_ids = hides_token_ids
        self._skipped: dict[int, int] = {}
        """Completions whose last messages had nothing to show, and where these began."""
        self._started = False
        self._has_resumed = False
        """Whether the next message is the first of a resumed call."""

    @property
    def is_complete(self) -> bool:
        """Whether every choice is here to its end."""
        return self.collector.finished

    def on_message(self, message: gateway_pb2.GenerateResponse) -> Chunk | None:
        """Takes one message in. None when it has nothing for the caller."""
        now_s = self._settings.clock()
        if not self._started:
            self._started = True
            self.course.succeeded()
        if self._has_resumed:
            self._has_resumed = False
            for name in ("request_id", "worker", "model", "seed"):  # the caller has those of the first call
                message.ClearField(name)
        if self._delivered is not None:
            self._delivered.note(message)
        if self._hides_token_ids and not self._hide_token_ids(message):
            return None
        chunk = decode_chunk(message)
        self.collector.add(chunk, now_s)
        return chunk

    def on_error(self, error: grpc.RpcError) -> float | None:
        """Seconds to wait before asking for what is missing; None when nothing is. Raises the typed error when tokens
        may be out and cannot be resumed, or asking again is no use."""
        if self.is_complete:
            return None
        if not self._started:
            return self.course.wait_after(error)
        wait_s = None
        if self._delivered is not None and self._delivered.can_go_on and _is_loss(error):
            wait_s = self.course.resumes.wait_after(from_rpc_error(error), self._delivered.progress)
        if self._delivered is None or wait_s is None:
            raise self.course.typed(error) from error
        self.request = self._delivered.rest()
        self._has_resumed = True
        self.num_resumes += 1
        return wait_s

    def on_end(self) -> None:
        """The server ended the stream in order. Raises Internal if a choice is unfinished."""
        if not self.is_complete:
            raise Internal("the server ended the stream before every choice was finished")

    def resume_token(self) -> bytes:
        """See `Stream.resume_token`."""
        delivered = self._delivered
        if delivered is None or (self._started and not delivered.can_go_on):
            problem = "the stream was opened with resumable=False" if delivered is None else "the server cannot resume"
            raise InvalidArgument("resumable", f"{problem}, so there is no token for it")
        token = resume_token_pb2.ResumeToken(request=self._first_request, hides_token_ids=self._hides_token_ids)
        if self._started:
            token.received.extend(encode_completion(self.collector.completion(), delivered.token_ids))
        return encode_token(token)

    def restore(self, received: Iterable[gateway_pb2.GenerateResponse]) -> None:
        """Takes in what another process had read. Raises InvalidArgument when it contradicts itself."""
        assert self._delivered is not None
        for message in received:
            self._started = True
            self._delivered.note(message)
            num_tokens = len(message.token_ids)
            if self._hides_token_ids:
                message.ClearField("token_ids")
            self.collector.restore(decode_chunk(message), num_tokens)
        if self._started:
            if not self._delivered.can_go_on:
                raise InvalidArgument("token", "holds an answer without its seed")
            self.request = self._delivered.rest()
            self._has_resumed = True

    def _hide_token_ids(self, message: gateway_pb2.GenerateResponse) -> bool:
        """Makes the message what it were without token ids; whether there would be one at all."""
        choice = message.choice
        message.ClearField("token_ids")
        start = self._skipped.setdefault(choice, message.first_token_index)
        if not (message.text or message.finish_reason or message.logprobs or message.HasField("usage")):
            return False
        message.first_token_index = start
        del self._skipped[choice]
        return True


def start_stream(
    settings: ClientSettings,
    prompt: str | None,
    token_ids: Sequence[int] | None,
    messages: Iterable[MessageLike] | None,
    options: Options,
) -> StreamCourse:
    """The stream that the arguments of `generate` ask for. Raises InvalidArgument."""
    request = build_generate(prompt, token_ids, messages, options)
    is_resumable = options.get("resumable", True) and settings.retry.max_resumes > 0
    hides_token_ids = is_resumable and request.output_format == gateway_pb2.OUTPUT_FORMAT_TEXT
    if hides_token_ids:
        request.output_format = gateway_pb2.OUTPUT_FORMAT_TEXT_AND_TOKEN_IDS
    return StreamCourse(
        settings, request, options.get("timeout_s"), is_resumable=is_resumable, hides_token_ids=hides_token_ids
    )


def resume_stream(settings: ClientSettings, token: bytes, timeout_s: float | None) -> StreamCourse:
    """The rest of the stream that gave `token`. Raises InvalidArgument."""
    held = decode_token(token)
    course = StreamCourse(settings, held.request, timeout_s, is_resumable=True, hides_token_ids=held.hides_token_ids)
    course.restore(held.received)
    return course


def _is_loss(error: grpc.RpcError) -> bool:
    """Whether another gateway, or the same one later, could go on where this call ended."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    if has_details(error):
        typed = from_rpc_error(error)
        return isinstance(typed, Unavailable | ResourceExhausted) and not isinstance(typed, StreamLost)
    return error.code() in _LOSSES
