"""One pick, for whoever asks: the gateway's own requests, and other people's proxies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.blocks import KeyChain
from shoal.gateway import metrics
from shoal.gateway.peers.board import LoadBoard
from shoal.gateway.routing.policy import Ranking
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
        chain = _chain(prompt)
        request = self._request(prompt, chain, endpoints, must_pin=must_pin)
        pick = self._router.pick(request)
        metrics.PICKS.labels(pick.reason).inc()
        if pick.expectation and request.block_size:
            self._board.expect(pick.endpoints[0], chain, pick.predicted_cached_tokens // request.block_size)
        return pick, chain

    def rank(self, prompt: Prompt, endpoints: Sequence[str], chain: KeyChain | None) -> Ranking:
        """What a pick would find, without making it. chain: of the same prompt, if it is at hand."""
        return self._router.rank(self._request(prompt, chain or _chain(prompt), endpoints, must_pin=True))

    def _request(self, prompt: Prompt, chain: KeyChain, endpoints: Sequence[str], *, must_pin: bool) -> PickRequest:
        return PickRequest(
            endpoints=endpoints,
            block_keys=chain,
            block_size=0 if prompt.model is None else prompt.model.block_size,
            prompt_tokens=len(prompt.token_ids),
            priority=prompt.priority,
            must_pin=must_pin,
            kv_tokens=self._fleet.kv_tokens,
        )

    def correct(self, pick: Pick, chain: KeyChain, worker: str | None) -> None:
        """Another worker than the first endpoint has the request, or none (None): the prompt is expected there."""
        self._router.correct(pick, chain, worker)


def _chain(prompt: Prompt) -> KeyChain:
    model = prompt.model
    if model is None:
        return KeyChain.of(())
    return KeyChain(model.namespace(prompt.cache_salt), prompt.token_ids, model.block_size)
