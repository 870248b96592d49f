"""Sends a trace to a running endpoint at its times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from shoal.client import AsyncClient, RetryPolicy
from shoal.client.bench.backends import GrpcBackend, RequestOptions
from shoal.client.bench.driver import Load, OnRecord, drive
from shoal.client.bench.records import Prompt
from shoal.client.endpoint import parse_endpoint
from shoal.rpc.errors import InvalidArgument

MAX_CONCURRENCY: Final = 4096
"""Requests under way; later ones wait, and their clocks start when they are sent."""


class Session(Protocol):
    """What is needed of the command's session."""

    @property
    def api_key(self) -> str | None:
        """Sent as a Bearer token."""

    @property
    def timeout_s(self) -> float:
        """Deadline of a request."""

    def find_endpoint(self) -> str:
        """Where to send."""


async def replay_live(
    session: Session, prompts: Callable[[int], Sequence[Prompt]], arrivals_s: Sequence[float], on_record: OnRecord
) -> None:
    """Greedy, to the full length of each. `prompts` makes them for the vocabulary of the only model.

    Raises InvalidArgument when the mesh serves several models, and ShoalError when it cannot be reached.
    """
    endpoint = parse_endpoint(session.find_endpoint())
    retry = RetryPolicy(max_attempts=1)
    async with AsyncClient(endpoint.url, api_key=session.api_key, timeout_s=session.timeout_s, retry=retry) as client:
        models = list(await client.models())
        if len(models) != 1:
            names = ", ".join(sorted(model.name for model in models)) or "none"
            raise InvalidArgument("endpoint", f"a trace is for one model; there are {names}")
        options = RequestOptions(model=models[0].name, ignore_eos=True, timeout_s=session.timeout_s)
        load = Load(concurrency=MAX_CONCURRENCY, arrivals_s=arrivals_s)
        await drive(GrpcBackend(client, options), prompts(models[0].vocab_size), load, on_record)
