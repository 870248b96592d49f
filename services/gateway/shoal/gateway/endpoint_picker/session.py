"""One request of a proxy: its parts as they come, the pick when they are complete, and its share of a worker's load."""

from __future__ import annotations

from typing import Final

import structlog

from shoal.api.envoy.v1 import ext_proc_pb2
from shoal.blocks import KeyChain
from shoal.gateway.endpoint_picker import messages
from shoal.gateway.endpoint_picker.prompts import PublicPrompt, WorkerPrompt, read_prompt
from shoal.gateway.picking import Picker, Prompt
from shoal.gateway.routing.load import LoadTracker, Ticket
from shoal.gateway.routing.router import Pick
from shoal.gateway.tenants import Authenticator
from shoal.gateway.tokenizing import Tokenizer
from shoal.gateway.workers.fleet import Fleet, ServedModel
from shoal.rpc.errors import NotFound, ShoalError, Unavailable

TOKENIZE_TIMEOUT_S: Final = 2.0
"""After that the pick goes by load alone. A proxy waits less by default (Envoy 0.2 s), but may be told otherwise."""
Responses = list[ext_proc_pb2.ProcessingResponse]
_log = structlog.get_logger("shoal.gateway.endpoint_picker")


class PickSession:
    """`answer` each message in turn, then `close`."""

    def __init__(
        self,
        fleet: Fleet,
        picker: Picker,
        loads: LoadTracker,
        tokenizer: Tokenizer,
        authenticator: Authenticator,
        max_body_bytes: int,
    ) -> None:
        """max_body_bytes: of a request; larger ones are refused."""
        self._fleet = fleet
        self._picker = picker
        self._loads = loads
        self._tokenizer = tokenizer
        self._authenticator = authenticator
        self._max_body_bytes = max_body_bytes
        self._headers: dict[str, str] = {}
        self._subset: frozenset[str] | None = None
        self._body = bytearray()
        self._waits_for_body = False
        self._returns_body = False
        """A proxy may stream responses through here as well; some do for every picker."""
        self._ticket: Ticket | None = None
        self._picked: tuple[Pick, KeyChain] | None = None
        """Until the response's headers say who has the request."""

    async def answer(self, request: ext_proc_pb2.ProcessingRequest) -> Responses:
        """What to tell the proxy now; nothing while the body is still coming."""
        match request.WhichOneof("request"):
            case "request_headers":
                return await self._begin(request)
            case "request_body" if self._waits_for_body:
                return await self._read(request.request_body)
            case "request_trailers" if self._waits_for_body:
                return [*await self._pick(ends=False), messages.passed("request_trailers")]
            case "response_headers":
                self._settle(messages.served_endpoint(request))
                return [messages.passed("response_headers")]
            case "response_body" if self._returns_body:
                return [messages.returned_body(request.response_body)]
            case None:
                return []
            case other:
                return [messages.passed(other)]

    def close(self) -> None:
        """The request is over, or the proxy does not tell any more."""
        if self._ticket is not None:
            self._ticket.close()

    def _settle(self, worker: str | None) -> None:
        """The first token is here. A proxy that could not follow the pick, or would not, has the prompt elsewhere.

        One that ends before that has told nothing: the expectation then ends by itself.
        """
        if self._ticket is not None:
            self._ticket.answered(worker)
        picked, self._picked = self._picked, None
        if picked is not None and worker and worker != picked[0].endpoints[0]:
            self._picker.correct(*picked, worker)

    async def _begin(self, request: ext_proc_pb2.ProcessingRequest) -> Responses:
        self._headers = messages.header_values(request.request_headers)
        self._subset = messages.subset_hint(request)
        modes = request.protocol_config
        self._returns_body = modes.response_body_mode == messages.BODY_FULL_DUPLEX
        if modes.request_body_mode == messages.BODY_FULL_DUPLEX and not request.request_headers.end_of_stream:
            self._waits_for_body = True
            return []
        return [await self._choose()]

    async def _read(self, piece: ext_proc_pb2.HttpBody) -> Responses:
        self._body += piece.body
        if len(self._body) > self._max_body_bytes:
            self._waits_for_body = False
            return [messages.refused(413, 8, f"the request is larger than {self._max_body_bytes:,} bytes")]
        return await self._pick(ends=True) if piece.end_of_stream else []

    async def _pick(self, *, ends: bool) -> Responses:
        """The decision, and the body behind it."""
        self._waits_for_body = False
        decision = await self._choose()
        if decision.HasField("immediate_response"):
            return [decision]
        return [decision, *messages.body_pieces(bytes(self._body), ends=ends)]

    async def _choose(self) -> ext_proc_pb2.ProcessingResponse:
        try:
            prompt, endpoints = await self._candidates()
        except NotFound as error:
            return messages.refused(404, 5, str(error))
        except Unavailable as error:
            return messages.refused(503, 14, str(error))
        pick, chain = self._picker.pick(prompt, endpoints, must_pin=True)
        self._picked = (pick, chain)
        num_tokens = len(prompt.token_ids)
        self._ticket = self._loads.admit(
            pick.endpoints[0], num_tokens - pick.predicted_cached_tokens, num_prompt_tokens=num_tokens
        )
        return messages.picked(pick.endpoints)

    async def _candidates(self) -> tuple[Prompt, list[str]]:
        """The prompt, and the workers that may take it. Raises NotFound or Unavailable."""
        body = read_prompt(self._headers.get(":path", ""), bytes(self._body))
        named = body.message.model if isinstance(body, PublicPrompt) else ""
        models = [self._fleet.model(named)] if named or len(self._fleet.models) == 1 else self._fleet.models
        endpoints = [endpoint for model in models for endpoint in self._fleet.ready_endpoints(model.name)]
        if self._subset is not None:
            endpoints = [endpoint for endpoint in endpoints if endpoint in self._subset]
        if not endpoints:
            where = "" if self._subset is None else f" among the {len(self._subset)} that may be picked"
            raise Unavailable(f"no worker is ready{where}")
        if body is None or len(models) > 1:
            return Prompt(), endpoints
        return await self._tokens(body, models[0]), endpoints

    async def _tokens(self, body: WorkerPrompt | PublicPrompt, model: ServedModel) -> Prompt:
        if isinstance(body, WorkerPrompt):
            known = [*body.message.token_ids, *body.message.resume_token_ids]
            return Prompt(model, known, body.message.cache_salt, body.message.priority)
        try:
            tenant = self._authenticator.authenticate(self._headers.get("authorization"))
            ids = await self._tokenizer.prompt_ids(body.message, timeout_s=TOKENIZE_TIMEOUT_S)
        except ShoalError as error:
            _log.info("picked by load alone", problem=str(error))
            return Prompt()
        return Prompt(model, ids, tenant.cache_salt, body.message.priority)
