"""One pick, for whoever asks: the gateway's own requests, and other people's proxies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.blocks import KeyChain
from shoal.gateway import metrics
from shoal.gateway.peers.board import LoadBoard
from shoal.gateway.routing.router import Pick, PickRequest, Router
from shoal.gateway.workers.fleet import Fleet, ServedModel


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the caches may hold of a request."""

    model: ServedModel | None = None
    """None: the prompt is not known, and the pick goes by load alone."""
    token_ids: Sequence[int] = ()
    """A list is the quickest to read."""
    cache_salt: bytes = b""
    priority: int = 0


class Picker:
    """Asks the router, counts, and tells the other gateways. Belongs to the event loop."""

    def __init__(self, fleet: Fleet, router: Router, board: LoadBoard) -> None:
        self._fleet = fleet
        self._router = router
        self._board = board

    def pick(self, prompt: Prompt, endpoints: Sequence[str], *, must_pin: bool) -> tuple[Pick, KeyChain]:
        """Workers for a prompt, best first, and the keys that `correct` wants. must_pin: also without any opinion."""
        model, token_ids = prompt.model, prompt.token_ids
        chain = KeyChain.of(()) if model is None else _chain(model, prompt)
        block_size = 0 if model is None else model.block_size
        pick = self._router.pick(
            PickRequest(
                endpoints=endpoints,
                block_keys=chain,
                block_size=block_size,
                prompt_tokens=len(token_ids),
                priority=prompt.priority,
                must_pin=must_pin,
                kv_tokens=self._fleet.kv_tokens,
            )
        )
        metrics.PICKS.labels(pick.reason).inc()
        if pick.expectation and block_size:
            self._board.expect(pick.endpoints[0], chain, pick.predicted_cached_tokens // block_size)
        return pick, chain

    def correct(self, pick: Pick, chain: KeyChain, worker: str | None) -> None:
        """Another worker than the first endpoint has the request, or none (None): the prompt is expected there."""
        self._router.correct(pick, chain, worker)


def _chain(model: ServedModel, prompt: Prompt) -> KeyChain:
    return KeyChain(model.namespace(prompt.cache_salt), prompt.token_ids, model.block_size)
