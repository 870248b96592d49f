"""On whose behalf a store is asked: for traces, and for nothing else."""

from __future__ import annotations

from typing import NamedTuple


class Origin(NamedTuple):
    """A request, where there is one and calls are traced."""

    request_id: str = ""
    traceparent: str = ""
    """W3C trace context of the span that asks; empty: of none."""


NOBODY = Origin()
