"""Futures whose outcome is known, or is another's."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any, TypeVar

from shoal.kv_store.disk.errors import NotAdmitted

_T = TypeVar("_T")


def done(value: _T) -> Future[_T]:
    """A future with that result."""
    future: Future[_T] = Future()
    future.set_result(value)
    return future


def failed(error: Exception) -> Future[Any]:
    """A future that failed."""
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def follow(leader: Future[_T]) -> Future[_T]:
    """A future of its own with the leader's outcome, so that cancelling one does not cancel the other."""
    follower: Future[_T] = Future()

    def finish(leader: Future[_T]) -> None:
        if not follower.set_running_or_notify_cancel():
            return
        if leader.cancelled():
            follower.set_exception(NotAdmitted("cancelled", "the other write of this block was cancelled"))
        elif (error := leader.exception()) is not None:
            follower.set_exception(error)
        else:
            follower.set_result(leader.result())

    leader.add_done_callback(finish)
    return follower
