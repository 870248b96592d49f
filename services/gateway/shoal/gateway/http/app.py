"""The routes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from shoal.gateway.http.completions import CompletionHandlers
from shoal.gateway.http.errors import error_body
from shoal.gateway.http.exchange import Endpoint, Exchange
from shoal.gateway.pipeline import Pipeline
from shoal.gateway.tenants import Authenticator
from shoal.gateway.workers.fleet import ServedModel
from shoal.rpc.errors import NotFound, ShoalError, Unavailable


class MethodNotAllowed(ShoalError):
    """A path that exists, asked in the wrong way."""

    http_status = 405
    reason = "METHOD_NOT_ALLOWED"


class StatusHandlers:
    """Models and health."""

    def __init__(self, pipeline: Pipeline, authenticator: Authenticator, not_ready: Callable[[], str]) -> None:
        self._pipeline = pipeline
        self._authenticator = authenticator
        self._not_ready = not_ready

    async def models(self, exchange: Exchange) -> None:
        """GET /v1/models."""
        self._authenticator.authenticate(exchange.headers.get("authorization"))
        models = [_model(m) for m in self._pipeline.fleet.models]
        await exchange.answer(200, msgspec.json.encode({"object": "list", "data": models}))

    async def model(self, exchange: Exchange) -> None:
        """GET /v1/models/{id}."""
        self._authenticator.authenticate(exchange.headers.get("authorization"))
        model = self._pipeline.fleet.model(exchange.path_params["name"])
        await exchange.answer(200, msgspec.json.encode(_model(model)))

    async def embeddings(self, exchange: Exchange) -> None:
        """POST /v1/embeddings: refused in words."""
        raise NotFound("embeddings are not served here; use /v1/chat/completions or /v1/completions", field="path")

    async def healthz(self, exchange: Exchange) -> None:
        """The process lives."""
        await exchange.answer(200, b'{"status":"ok"}')

    async def readyz(self, exchange: Exchange) -> None:
        """The process can serve."""
        if problem := self._not_ready():
            raise Unavailable(problem)
        await exchange.answer(200, b'{"status":"ready"}')

    async def metrics(self, exchange: Exchange) -> None:
        """Prometheus."""
        await exchange.answer(200, generate_latest(), CONTENT_TYPE_LATEST.encode())


def make_app(completions: CompletionHandlers, status: StatusHandlers) -> Starlette:
    """The ASGI application."""
    routes = [
        _route("POST", "/v1/chat/completions", completions.chat),
        _route("POST", "/v1/completions", completions.completion),
        _route("POST", "/v1/embeddings", status.embeddings),
        _route("GET", "/v1/models", status.models),
        _route("GET", "/v1/models/{name:path}", status.model),
        _route("GET", "/healthz", status.healthz),
        _route("GET", "/readyz", status.readyz),
        _route("GET", "/metrics", status.metrics),
    ]
    handlers: dict[Any, Any] = {HTTPException: _refuse}
    return Starlette(routes=routes, exception_handlers=handlers)


def _route(method: str, path: str, handle: Callable[[Exchange], Awaitable[None]]) -> Route:
    return Route(path, Endpoint(f"{method} {path}", handle), methods=[method])


async def _refuse(request: Request, error: HTTPException) -> Response:
    problem: ShoalError
    if error.status_code == 405:
        problem = MethodNotAllowed(f"{request.method} is not answered at {request.url.path}", field="method")
    else:
        problem = NotFound(f"there is nothing at {request.url.path}", field="path")
    return Response(error_body(problem), problem.http_status, error.headers, "application/json")


def _model(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created_unix_s,
        "owned_by": "shoal",
        "max_model_len": model.max_model_len,
    }
