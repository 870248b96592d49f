"""Says in one line what went wrong and what to do about it."""

from __future__ import annotations

from typing import Any

from shoal.rpc.errors import NotFound, ResourceExhausted, ShoalError, Unauthenticated, Unavailable


class CommandFailed(Exception):
    """A command cannot go on; the message says why and what to do."""


_HINTS: tuple[tuple[type[ShoalError], str], ...] = (
    (Unavailable, "is the mesh running? Start one with `shoal up -f FILE`, or name one with --endpoint"),
    (ResourceExhausted, "the mesh is full: try again later, or with fewer requests at once"),
    (Unauthenticated, "give a key with --api-key or SHOAL_API_KEY"),
    (NotFound, "`shoal models` lists what there is"),
)


def explain(error: BaseException) -> str:
    """The line to show for an error."""
    while isinstance(error, ExceptionGroup):  # a task group's; the first one tells the story
        error = error.exceptions[0]
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    if isinstance(error, ShoalError):
        hint = next((f"; {text}" for kind, text in _HINTS if isinstance(error, kind)), "")
        return f"error: {error.message}{notes}{hint}"
    if isinstance(error, (CommandFailed, OSError)) or _is_told(error):
        return f"error: {error}{notes}"
    return f"error: {type(error).__name__}: {error}{notes}; this is a bug, --debug shows where"


def _is_told(error: BaseException) -> bool:
    """Whether an error of the operator, which may not be installed, is written for people."""
    return type(error).__module__.startswith("shoal.operator")


def require_operator() -> Any:
    """The modules `shoal.operator.api` and `.substrate`. Raises CommandFailed when they are not installed."""
    try:
        from shoal.operator import api, substrate
    except ImportError as error:
        raise CommandFailed(
            f"running a mesh on this machine needs more than the client ({error}): pip install 'shoal[local]'"
        ) from error
    return api, substrate
