"""Serves the webhook: HTTPS, with a certificate that is looked after while it runs."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import re
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog
from aiohttp import web

from shoal.operator.api.spec import InferenceServiceSpec
from shoal.operator.measures import (
    CERTIFICATE_EXPIRY,
    WEBHOOK_PROBLEMS,
    WEBHOOK_REVIEWS,
    WEBHOOK_SECONDS,
    WEBHOOK_UP,
    timed,
)
from shoal.operator.reconcile.api_client import ApiError
from shoal.operator.reconcile.background import repeat
from shoal.operator.webhook.certificates import Issued, expiry_of
from shoal.operator.webhook.configuration import PATH
from shoal.operator.webhook.keeping import CertificateKeeper, Place, Requests
from shoal.operator.webhook.review import BadReview, FindFacts, FindInfeasible, review

_MAX_BODY_BYTES: Final = 8 << 20
"""A request has an object and the one before it; etcd takes 1.5 MiB of each."""
_BODY_TIMEOUT_S: Final = 2.0
_REVIEW_TIMEOUT_S: Final = 2.5
"""After that it is answered without facts about the model. Both together are less than the API server waits (5 s)."""
_NUM_REVIEWS: Final = 16
"""At a time; each may wait for facts."""
_END_TIMEOUT_S: Final = 5.0
_SECTIONS: Final = frozenset(field.encode_name for field in msgspec.structs.fields(InferenceServiceSpec))
_log = structlog.get_logger("shoal.operator")


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookOptions:
    """Where it listens, and what it is called."""

    host: str
    port: int
    """0 picks a free one."""
    hosts: tuple[str, ...]
    """Names and addresses under which the API server calls it."""
    place: Place
    refresh_interval_s: float = 60.0
    """How often Secret and configuration are looked at."""
    retry_interval_s: float = 10.0
    """How soon it is tried again when it cannot serve."""


@contextlib.asynccontextmanager
async def running_webhook(
    api: Requests,
    options: WebhookOptions,
    find_facts: FindFacts = lambda model: None,
    find_infeasible: FindInfeasible = lambda service: [],
) -> AsyncIterator[int]:
    """Serves until the block ends; yields the port. Raises ApiError when there is no certificate to be had, OSError."""
    keeper = CertificateKeeper(api, options.place, options.hosts)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    served = await keeper.refresh()
    _load(context, served)
    # Its own threads: others of the process may be busy for longer than the API server waits.
    reviewers = concurrent.futures.ThreadPoolExecutor(_NUM_REVIEWS, thread_name_prefix="webhook")
    application = web.Application(client_max_size=_MAX_BODY_BYTES)
    application.router.add_post(PATH, _handler(reviewers, find_facts, find_infeasible))
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=_END_TIMEOUT_S)
    await runner.setup()
    try:
        site = web.TCPSite(runner, options.host, options.port, ssl_context=context)
        await site.start()
        port = int(runner.addresses[0][1])
        refreshing = asyncio.ensure_future(_keep_fresh(keeper, context, served, options.refresh_interval_s))
        _log.info("webhook", address=f"{options.host}:{port}", hosts=options.hosts)
        WEBHOOK_UP.set(1)
        try:
            yield port
        finally:
            WEBHOOK_UP.set(0)
            refreshing.cancel()
            await asyncio.gather(refreshing, return_exceptions=True)
    finally:
        await runner.cleanup()
        reviewers.shutdown(wait=False, cancel_futures=True)


async def serve_webhook(
    api: Requests, options: WebhookOptions, find_facts: FindFacts, find_infeasible: FindInfeasible
) -> None:
    """Until it is cancelled. What keeps it from serving is logged and tried again: the operator goes on without."""
    while True:
        try:
            async with running_webhook(api, options, find_facts, find_infeasible):
                await asyncio.Event().wait()
        except Exception as error:  # nobody else would hear of it
            _log.error(
                "no webhook", error=str(error) or type(error).__name__, again_in_s=options.retry_interval_s,
                exc_info=not isinstance(error, (ApiError, OSError)),
            )  # fmt: skip
            await asyncio.sleep(options.retry_interval_s)


async def _keep_fresh(keeper: CertificateKeeper, context: ssl.SSLContext, served: Issued, interval_s: float) -> None:
    async def refresh() -> None:
        nonlocal served
        issued = await keeper.refresh()
        if issued != served:
            _load(context, issued)  # for connections from now on
            served = issued

    await repeat("looking after the webhook's certificate", interval_s, refresh)


def _load(context: ssl.SSLContext, issued: Issued) -> None:
    """OpenSSL reads files only."""
    with tempfile.TemporaryDirectory(prefix="shoal-webhook-") as folder:
        path = Path(folder) / "tls.pem"
        path.touch(mode=0o600)
        path.write_bytes(issued.certificate + issued.key)
        context.load_cert_chain(path)
    CERTIFICATE_EXPIRY.set(expiry_of(issued).timestamp())


def _handler(
    reviewers: concurrent.futures.Executor, find_facts: FindFacts, find_infeasible: FindInfeasible
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(request: web.Request) -> web.StreamResponse:
        result = "failed"
        try:
            with timed(WEBHOOK_SECONDS):
                response, result = await _answer(request, reviewers, find_facts, find_infeasible)
            return response
        except web.HTTPException:  # such as a body that is too large
            result = "bad"
            raise
        finally:
            WEBHOOK_REVIEWS.labels(result).inc()

    return answer


async def _answer(
    request: web.Request, reviewers: concurrent.futures.Executor, find_facts: FindFacts, find_infeasible: FindInfeasible
) -> tuple[web.StreamResponse, str]:
    """And what it comes to."""
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            body = msgspec.json.decode(await request.read())
    except (msgspec.DecodeError, RecursionError) as error:
        return web.Response(status=400, text=str(error)), "bad"
    except TimeoutError:
        return web.Response(status=408, text=f"the request did not arrive within {_BODY_TIMEOUT_S:g} s"), "bad"
    try:
        answered = await _review(body, reviewers, find_facts, find_infeasible)
    except (RecursionError, BadReview) as error:
        return web.Response(status=400, text=str(error)), "bad"
    response = answered["response"]
    for cause in response.get("status", {}).get("details", {}).get("causes", ()):
        WEBHOOK_PROBLEMS.labels(_section(cause["field"])).inc()
    result = ("warned" if response.get("warnings") else "allowed") if response["allowed"] else "refused"
    return web.Response(body=msgspec.json.encode(answered), content_type="application/json"), result


async def _review(
    body: Any, reviewers: concurrent.futures.Executor, find_facts: FindFacts, find_infeasible: FindInfeasible
) -> dict[str, Any]:
    """In time, whatever facts about the model take."""
    reviewing = asyncio.get_running_loop().run_in_executor(reviewers, review, body, find_facts, find_infeasible)
    try:
        async with asyncio.timeout(_REVIEW_TIMEOUT_S):
            return await reviewing
    except TimeoutError:
        _log.warning("a manifest is checked without its model, which nothing was heard of in time")
        return review(body, lambda model: None, find_infeasible)


def _section(path: str) -> str:
    """`kvCache` of spec.kvCache.ssd; never a name that somebody made up."""
    first, _, rest = path.partition(".")
    name = re.split(r"[.\[]", rest)[0]
    if first != "spec":
        return first if first == "metadata" else "other"
    return name if name in _SECTIONS else "other"
