"""The gRPC side of the public API: gRPC <-> domain, nothing else."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc
import grpc.aio
import structlog

from shoal.api.gateway.v1 import explain_pb2, gateway_pb2
from shoal.gateway.explain.explainer import Explainer
from shoal.gateway.generation import Generation
from shoal.gateway.journal import Message
from shoal.gateway.pipeline import Caller, Pipeline
from shoal.gateway.tenants import Authenticator
from shoal.gateway.validation import check_size, parse_request
from shoal.gateway.workers.fleet import ServedModel
from shoal.rpc.errors import InvalidArgument
from shoal.rpc.interceptor import request_id_of
from shoal.rpc.server import Registration

SERVICE: Final = gateway_pb2.DESCRIPTOR.services_by_name["GatewayService"].full_name
Context = Any  # the stubs of grpc.aio.ServicerContext lack what grpcio has


class GatewayServicer:
    """Implements GatewayService. Generate takes and writes bytes: a relayed message is never rebuilt (ADR 0005)."""

    def __init__(
        self,
        pipeline: Pipeline,
        authenticator: Authenticator,
        explainer: Explainer,
        *,
        max_request_bytes: int,
        max_request_s: float,
    ) -> None:
        self._pipeline = pipeline
        self._explainer = explainer
        self._authenticator = authenticator
        self._max_request_bytes = max_request_bytes
        self._max_request_s = max_request_s

    def registration(self) -> Registration:
        """What `start_server` needs."""
        return Registration(_add_to_server, self, SERVICE)

    async def generate(self, data: bytes, context: Context) -> None:
        """A GenerateRequest's bytes in; writes GenerateResponses' bytes."""
        caller = self._caller(context)
        request = parse_request(data, self._max_request_bytes)
        generation = await self._pipeline.open(request, _named(caller, request.request_id))
        with generation:
            if request.output_format == gateway_pb2.OUTPUT_FORMAT_TOKEN_IDS:
                await _relay_bytes(generation, context.write)
            else:
                relay = self._pipeline.open_text(request, generation)
                if request.HasField("resume"):
                    await relay.replay(request.resume)
                write = context.write
                while (message := await relay.read()) is not None:
                    await write(message.SerializeToString())

    async def tokenize(self, request: gateway_pb2.TokenizeRequest, context: Context) -> gateway_pb2.TokenizeResponse:
        """See the proto."""
        caller = self._caller(context)
        check_size(request.ByteSize(), self._max_request_bytes)
        self._pipeline.fleet.model(request.model)
        tokenizer, kind = self._pipeline.tokenizer, request.WhichOneof("input")
        if kind is None:
            raise InvalidArgument("input", "missing; set one of text and chat")
        if kind == "text":
            ids = await tokenizer.encode(
                request.text, add_special_tokens=not request.without_special_tokens, timeout_s=caller.remaining_s()
            )
        else:
            ids = await tokenizer.render(request.chat, timeout_s=caller.remaining_s())
        return gateway_pb2.TokenizeResponse(token_ids=ids)

    async def detokenize(
        self, request: gateway_pb2.DetokenizeRequest, context: Context
    ) -> gateway_pb2.DetokenizeResponse:
        """See the proto."""
        caller = self._caller(context)
        check_size(request.ByteSize(), self._max_request_bytes)
        self._pipeline.fleet.model(request.model)
        if not request.token_ids:
            return gateway_pb2.DetokenizeResponse()
        text = await self._pipeline.tokenizer.decode(
            request.token_ids, skip_special_tokens=not request.include_special_tokens, timeout_s=caller.remaining_s()
        )
        return gateway_pb2.DetokenizeResponse(text=text)

    async def list_models(
        self, request: gateway_pb2.ListModelsRequest, context: Context
    ) -> gateway_pb2.ListModelsResponse:
        """See the proto."""
        self._caller(context)
        return gateway_pb2.ListModelsResponse(models=[self._describe(m) for m in self._pipeline.fleet.models])

    async def get_model(self, request: gateway_pb2.GetModelRequest, context: Context) -> gateway_pb2.GetModelResponse:
        """See the proto."""
        self._caller(context)
        return gateway_pb2.GetModelResponse(model=self._describe(self._pipeline.fleet.model(request.name)))

    async def explain(self, request: explain_pb2.ExplainRequest, context: Context) -> explain_pb2.ExplainResponse:
        """See the proto."""
        caller = self._caller(context)
        found = await self._explainer.explain(caller.tenant.name, request.request_id, caller.remaining_s())
        return explain_pb2.ExplainResponse(explanations=found)

    def _caller(self, context: Context) -> Caller:
        authorization = None
        for key, value in context.invocation_metadata() or ():
            if key == "authorization":
                authorization = value
        tenant = self._authenticator.authenticate(authorization)
        # The interceptor put the id it uses in errors and logs here; a fresh one would be another.
        request_id = structlog.contextvars.get_contextvars().get("request_id") or request_id_of(context)
        left_s = context.time_remaining()
        timeout_s = self._max_request_s if left_s is None else min(left_s, self._max_request_s)
        return Caller(tenant, request_id, time.monotonic() + timeout_s)

    def _describe(self, model: ServedModel) -> gateway_pb2.Model:
        return gateway_pb2.Model(
            name=model.name,
            max_model_len=model.max_model_len,
            vocab_size=model.vocab_size,
            created_unix_s=model.created_unix_s,
            has_chat_template=self._pipeline.tokenizer.has_chat_template,
            ready_workers=len(self._pipeline.fleet.ready_endpoints(model.name)),
        )


async def _relay_bytes(generation: Generation, write: Callable[[bytes], Awaitable[None]]) -> None:
    """The worker's bytes as they came; the first message gets the gateway's own fields appended, which merges them."""
    await generation.read()
    admitted = generation.admitted
    header = Message(
        request_id=admitted.request_id, worker=generation.worker, model=admitted.model.name, seed=generation.seed
    )
    await write(generation.raw + header.SerializeToString())
    while await generation.read() is not None:
        await write(generation.raw)


def _named(caller: Caller, request_id: str) -> Caller:
    return Caller(caller.tenant, request_id, caller.deadline_s) if request_id else caller


def _add_to_server(servicer: Any, server: grpc.aio.Server) -> None:
    """In place of the generated function, which would parse and serialize every streamed message."""
    methods = gateway_pb2.DESCRIPTOR.services_by_name["GatewayService"].methods_by_name
    unary: dict[str, tuple[Any, Any]] = {
        "Tokenize": (servicer.tokenize, gateway_pb2.TokenizeRequest),
        "Detokenize": (servicer.detokenize, gateway_pb2.DetokenizeRequest),
        "ListModels": (servicer.list_models, gateway_pb2.ListModelsRequest),
        "GetModel": (servicer.get_model, gateway_pb2.GetModelRequest),
        "Explain": (servicer.explain, explain_pb2.ExplainRequest),
    }
    handlers: dict[str, Any] = {
        name: grpc.unary_unary_rpc_method_handler(
            method, request_deserializer=kind.FromString, response_serializer=lambda m: m.SerializeToString()
        )
        for name, (method, kind) in unary.items()
    }
    handlers["Generate"] = grpc.unary_stream_rpc_method_handler(servicer.generate)
    assert set(handlers) == set(methods), "every RPC of the contract has a handler"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
