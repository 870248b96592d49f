"""Brings the model's files to this machine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from shoal.artifacts import ArtifactError, resolve
from shoal.operator.api import Model, format_bytes
from shoal.operator.planner.model_uri import source_uri
from shoal.operator.substrate.events import Event, OnEvent, State
from shoal.operator.substrate.failures import MeshError

COMPONENT = "model"
_T = TypeVar("_T")


async def fetch_model(model: Model, on_event: OnEvent) -> Path:
    """The model's file or folder, downloaded if need be. Raises MeshError; cancelling abandons the download."""
    loop = asyncio.get_running_loop()

    def report(received_bytes: int, total_bytes: int | None) -> None:
        loop.call_soon_threadsafe(on_event, _progress(received_bytes, total_bytes))

    on_event(Event(COMPONENT, State.PREPARING, model.uri))
    try:
        path = await _run_in_daemon(lambda: resolve(source_uri(model), sha256=model.sha256, progress=report))
    except ArtifactError as error:
        on_event(Event(COMPONENT, State.FAILED, str(error)))
        raise MeshError(f"cannot get the model: {error}") from error
    on_event(Event(COMPONENT, State.READY, str(path), 1.0))
    return path


def _progress(received_bytes: int, total_bytes: int | None) -> Event:
    if not total_bytes:
        return Event(COMPONENT, State.PREPARING, format_bytes(received_bytes))
    detail = f"{format_bytes(received_bytes)} of {format_bytes(total_bytes)}"
    return Event(COMPONENT, State.PREPARING, detail, received_bytes / total_bytes)


async def _run_in_daemon(function: Callable[[], _T]) -> _T:
    """Like asyncio.to_thread, but Ctrl-C does not wait for it: the loop joins its own threads before it ends."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def settle(result: _T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # None only if _T allows it

    def run() -> None:
        result, error = None, None
        try:
            result = function()
        except BaseException as raised:  # handed to whoever awaits
            error = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="fetch model", daemon=True).start()
    return await future
