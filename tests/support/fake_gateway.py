"""A gateway that does what a test says: real gRPC on loopback, no model. One token is one UTF-8 byte."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NoReturn, Self

import grpc

from shoal.api.gateway.v1 import explain_pb2, gateway_pb2, gateway_pb2_grpc
from shoal.api.generation.v1 import generation_pb2
from shoal.rpc.errors import InvalidArgument, NotFound, ShoalError
from shoal.rpc.status import to_status

MODEL = "fake"
WAIT_S = 10.0
"""Longest a fake waits for a test."""


@dataclass(frozen=True)
class Reply:
    """Answers with `text`, a few bytes a message, for each of the n choices; a resumed request with the rest of it."""

    text: str = "Hello from the mesh."
    bytes_per_chunk: int = 4
    hold: threading.Event | None = None
    """Waited for after the first message."""
    fail_after: ShoalError | None = None
    """Raised after the first message of each choice."""
    seed: int | None = None
    """Told in the first message, by a server that can resume."""
    finish: bool = True
    """Without it the last message is left out, as a broken server might."""
    cached_tokens: int = 0


@dataclass(frozen=True)
class Fail:
    """Answers with an error before any message."""

    error: ShoalError


@dataclass(frozen=True)
class Messages:
    """Answers with these very messages."""

    messages: Sequence[gateway_pb2.GenerateResponse]


@dataclass
class Call:
    """One Generate call as it arrived."""

    request: gateway_pb2.GenerateRequest
    metadata: dict[str, Any]
    time_remaining_s: float
    ended: threading.Event = field(default_factory=threading.Event)
    """Set when the call is over, cancelled or not."""


class FakeGateway(gateway_pb2_grpc.GatewayServiceServicer):
    """Serves while the `with` block lasts. `script` says how the next Generate calls go; `otherwise` the ones after."""

    def __init__(self, *script: Reply | Fail | Messages, otherwise: Reply | Fail | Messages | None = None) -> None:
        self.script = deque(script)
        self.otherwise = otherwise or Reply()
        self.unary_errors: deque[ShoalError] = deque()
        """Raised by the next unary calls, one each."""
        self.calls: list[Call] = []
        self.explanations: list[explain_pb2.Explanation] = []
        self.unary_metadata: list[dict[str, Any]] = []
        self.port = 0
        self._server: grpc.Server | None = None

    @property
    def endpoint(self) -> str:
        """For a client."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._server = grpc.server(ThreadPoolExecutor(max_workers=32), options=[("grpc.so_reuseport", 0)])
        gateway_pb2_grpc.add_GatewayServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.stop(0).wait(WAIT_S)

    def Generate(self, request: gateway_pb2.GenerateRequest, context: Any) -> Iterator[gateway_pb2.GenerateResponse]:
        call = Call(request, dict(context.invocation_metadata()), context.time_remaining())
        context.add_callback(call.ended.set)
        self.calls.append(call)
        behaviour = self.script.popleft() if self.script else self.otherwise
        if isinstance(behaviour, Fail):
            _abort(context, behaviour.error)
        if isinstance(behaviour, Messages):
            yield from behaviour.messages
            return
        yield from self._reply(request, behaviour, context)

    def Tokenize(self, request: gateway_pb2.TokenizeRequest, context: Any) -> gateway_pb2.TokenizeResponse:
        self._begin_unary(context)
        text = request.text or "".join(f"{m.role}:{m.content}\n" for m in request.chat.messages)
        start = [] if request.without_special_tokens else [1]
        return gateway_pb2.TokenizeResponse(token_ids=[*start, *text.encode()])

    def Detokenize(self, request: gateway_pb2.DetokenizeRequest, context: Any) -> gateway_pb2.DetokenizeResponse:
        self._begin_unary(context)
        if max(request.token_ids) > 255:
            _abort(context, InvalidArgument("token_ids[0]", f"{max(request.token_ids)} is not below 256"))
        return gateway_pb2.DetokenizeResponse(text=bytes(request.token_ids).decode(errors="replace"))

    def ListModels(self, request: gateway_pb2.ListModelsRequest, context: Any) -> gateway_pb2.ListModelsResponse:
        self._begin_unary(context)
        return gateway_pb2.ListModelsResponse(models=[_model()])

    def GetModel(self, request: gateway_pb2.GetModelRequest, context: Any) -> gateway_pb2.GetModelResponse:
        self._begin_unary(context)
        if request.name != MODEL:
            _abort(context, NotFound(f"no model {request.name!r}; there is {MODEL!r}"))
        return gateway_pb2.GetModelResponse(model=_model())

    def Explain(self, request: explain_pb2.ExplainRequest, context: Any) -> explain_pb2.ExplainResponse:
        self._begin_unary(context)
        found = [explanation for explanation in self.explanations if explanation.request_id == request.request_id]
        if not found:
            _abort(context, NotFound(f"no request {request.request_id!r} of yours is known"))
        return explain_pb2.ExplainResponse(explanations=found)

    def _begin_unary(self, context: Any) -> None:
        self.unary_metadata.append(dict(context.invocation_metadata()))
        if self.unary_errors:
            _abort(context, self.unary_errors.popleft())

    def _reply(
        self, request: gateway_pb2.GenerateRequest, reply: Reply, context: Any
    ) -> Iterator[gateway_pb2.GenerateResponse]:
        limit = request.sampling.max_tokens if request.sampling.HasField("max_tokens") else len(reply.text.encode())
        tokens = (reply.text.encode() * (limit // max(1, len(reply.text)) + 1))[:limit]
        num_choices = max(1, request.sampling.n)
        usage = generation_pb2.Usage(
            prompt_tokens=len(request.tokens.ids) or len(request.text), cached_tokens=reply.cached_tokens
        )
        begin = min((len(had.token_ids) for had in request.resume.completions), default=0)
        for start in range(begin, limit, reply.bytes_per_chunk):
            part = tokens[start : start + reply.bytes_per_chunk]
            last = start + len(part) == limit
            if last and not reply.finish:
                return
            for choice in range(num_choices):
                message = _chunk(request, choice, start, part)
                if start < _num_had(request, choice):
                    continue
                if start == begin and choice == 0:
                    message.request_id = request.request_id or "request-1"
                    message.worker, message.model = "worker-0", MODEL
                    if reply.seed is not None:
                        message.seed = reply.seed
                    if not request.HasField("resume"):
                        message.usage.CopyFrom(usage)
                if last:
                    message.finish_reason = generation_pb2.FINISH_REASON_LENGTH
                    usage.completion_tokens = limit * num_choices
                    message.usage.CopyFrom(usage)
                yield message
            if start == begin:
                if reply.hold is not None:
                    _wait(reply.hold, context)
                if reply.fail_after is not None:
                    _abort(context, reply.fail_after)


def _num_had(request: gateway_pb2.GenerateRequest, choice: int) -> int:
    completions = request.resume.completions
    if not completions:
        return 0
    return 1 << 32 if completions[choice].finished else len(completions[choice].token_ids)


def _chunk(request: gateway_pb2.GenerateRequest, choice: int, start: int, part: bytes) -> gateway_pb2.GenerateResponse:
    message = gateway_pb2.GenerateResponse(choice=choice, first_token_index=start)
    if request.output_format != gateway_pb2.OUTPUT_FORMAT_TOKEN_IDS:
        message.text = part.decode()
    if request.output_format != gateway_pb2.OUTPUT_FORMAT_TEXT:
        message.token_ids.extend(part)
    if request.sampling.HasField("logprobs"):
        for token in part:
            entry = generation_pb2.TokenLogprob(token_id=token, logprob=-0.5, rank=1)
            message.logprobs.append(generation_pb2.PositionLogprobs(token=entry, top=[entry]))
    return message


def _wait(event: threading.Event, context: Any) -> None:
    """Until `event`, or the end of the call, whichever comes first."""
    context.add_callback(event.set)
    assert event.wait(WAIT_S), "the test never let the reply go on"


def _model() -> gateway_pb2.Model:
    return gateway_pb2.Model(
        name=MODEL, max_model_len=2048, vocab_size=256, created_unix_s=1, has_chat_template=True, ready_workers=2
    )


def _abort(context: Any, error: ShoalError) -> NoReturn:
    context.abort_with_status(to_status(error, "request-1"))
    raise AssertionError("abort returned")


def recorder() -> tuple[list[float], Callable[[float], None]]:
    """A `sleep` that returns at once, and the list of what it was asked for."""
    waits: list[float] = []
    return waits, waits.append
