"""What a worker would do with a request, foreseen from what this gateway sent it and when it answered."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from shoal.gateway.routing.backlog import Backlog, Standing
from shoal.gateway.routing.block_table import Tier
from shoal.gateway.routing.rates import Coefficients, Rates, Work

if TYPE_CHECKING:
    from shoal.gateway.routing.load import Load

PREFILL_PRIOR: Final[Coefficients] = (20e-3, 20e-6, 1e-9)
"""Seconds for a prompt, for each token computed, for each pair of those and a token attended to: Llama-3.1-8B on an
H100, in round numbers."""
DECODE_PRIOR: Final[Coefficients] = (6e-3, 12e-6, 43e-9)
"""Seconds of a decoding step, for each sequence in it, for each token of their context: the same model."""
TIER_TOKENS_PER_S: Final[Mapping[Tier, float]] = MappingProxyType({Tier.MEMORY: 200_000.0, Tier.DISK: 20_000.0})
"""Prior for blocks loaded from the KV store: 128 KiB a token at 26 and at 2.6 GB/s."""
_FIRST_OUTPUT_TOKENS: Final = 256.0
_FIRST_ANSWER_S: Final = 5.0
_LEARNING: Final = 0.02
_MAX_WORKERS: Final = 4096


class Held(NamedTuple):
    """Prompt tokens that a worker can find in lower tiers, each number counting those above it."""

    memory: int
    disk: int


class Outlook(NamedTuple):
    """What one worker would do with one request. Seconds, but for the numbers."""

    queue_s: float = 0.0
    """Until it would begin with the prompt."""
    prefill_s: float = 0.0
    """To compute what is cached nowhere, or is not worth loading."""
    load_s: float = 0.0
    """To load the rest from the tiers below the device."""
    num_ahead: int = 0
    """Prompts before it, of all gateways, without an answer yet."""
    tokens_ahead: int = 0
    """Tokens that they have to compute."""
    token_s: float = 0.0
    """For a prompt token, without attention."""
    computed_tokens: int = 0
    """Prompt tokens that `prefill_s` is for."""
    room_s: float = 0.0
    """Until enough of its running sequences have ended to leave room for the prompt's KV."""
    decode_s: float = 0.0
    """By how much the worker's other sequences slow this one down, and this one them, over its whole answer."""


class Forecast:
    """Owned by the load tracker; fed by tickets. Pure arithmetic but for the clock that it is given."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._backlogs: dict[str, Backlog] = {}
        self.prefill = Rates(PREFILL_PRIOR)
        self.decode = Rates(DECODE_PRIOR)
        self.tier_tokens_per_s = dict(TIER_TOKENS_PER_S)
        self.output_tokens = _FIRST_OUTPUT_TOKENS
        """Of an answer, on average."""
        self.num_answers = 0
        """First tokens so far, over all gateways."""
        self.answer_s = _FIRST_ANSWER_S
        """From an answer's first token to its last, on average."""

    def outlook(
        self,
        worker: str,
        prompt_tokens: int,
        cached_tokens: int,
        load: Load,
        held: Held | None = None,
        kv_tokens: int | None = None,
    ) -> Outlook:
        """For a prompt of which `cached_tokens` are on the worker's device. `load` is over all gateways; `kv_tokens`:
        how many tokens' KV the device holds, if that is known."""
        factor, decode_factor = self.prefill.factor(worker), self.decode.factor(worker)
        a, b, c = self.prefill.coefficients
        tokens, load_s = prompt_tokens - cached_tokens, 0.0
        prefill_s = factor * (a + tokens * (b + c * (cached_tokens + 0.5 * tokens)))
        if held is not None and held.disk > cached_tokens:
            prefill_s, load_s, tokens = self._cheapest(factor, prompt_tokens, cached_tokens, held, prefill_s)
        _, sequence_s, context_s = self.decode.coefficients
        num_running, context_tokens = load.num_requests, load.num_prompt_tokens
        slowdown_s = num_running * (2 * sequence_s + context_s * prompt_tokens) + context_s * context_tokens
        decode_s = decode_factor * slowdown_s * self.output_tokens
        backlog = self._backlogs.get(worker)
        queue_s, num_ahead, tokens_ahead, token_s = 0.0, 0, 0, factor * b
        if backlog is not None:
            num_ahead, tokens_ahead = len(backlog), backlog.num_tokens
            queue_s = backlog.wait_s(self._clock())
        room_s = 0.0
        if kv_tokens is not None and (excess := context_tokens + prompt_tokens - cached_tokens - kv_tokens) > 0:
            room_s = self.answer_s * excess / max(context_tokens, 1)
        return Outlook(queue_s, prefill_s, load_s, num_ahead, tokens_ahead, token_s, tokens, room_s, decode_s)

    def admitted(self, worker: str, tokens: int, cached: int) -> int:
        """A prompt goes to `worker`; the entry to name later."""
        backlog = self._backlogs.get(worker)
        if backlog is None:
            if len(self._backlogs) >= _MAX_WORKERS:
                self._forget_idle()
            backlog = self._backlogs[worker] = Backlog()
        work = prefill_work(tokens, cached)
        return backlog.add(work, self.prefill.seconds(worker, work), self._clock())

    def answered(self, worker: str, entry: int) -> None:
        """The first token of an entry is here."""
        self.num_answers += 1
        backlog = self._backlogs[worker]
        observed = backlog.answer(entry, self._clock())
        if observed is not None:
            self.prefill.observe(worker, *observed)

    def withdrawn(self, worker: str, entry: int, *, was_slow: bool = False) -> None:
        """An entry ended without an answer, or another worker answered. was_slow: it was taken away for that."""
        self._backlogs[worker].withdraw(entry, self._clock(), was_slow=was_slow)

    def standings(self, worker: str) -> dict[int, Standing]:
        """How every entry of `worker` stands."""
        backlog = self._backlogs.get(worker)
        return {} if backlog is None else backlog.standings(self._clock())

    def step_s(self, load: Load) -> float:
        """What a decoding step takes beside `load` at an average worker."""
        base_s, sequence_s, context_s = self.decode.coefficients
        return base_s + sequence_s * load.num_requests + context_s * load.num_prompt_tokens

    def decoded(self, worker: str, num_tokens: int, seconds: float, num_running: float, context_tokens: float) -> None:
        """An answer of `num_tokens` after its first took `seconds` beside so many others."""
        self.decode.observe(worker, Work(1, num_running, context_tokens), seconds / num_tokens)
        self.output_tokens += _LEARNING * (num_tokens + 1 - self.output_tokens)
        self.answer_s += _LEARNING * (seconds - self.answer_s)

    def loaded(self, tier: Tier, num_tokens: int, seconds: float) -> None:
        """Blocks of `num_tokens` came from `tier` in `seconds`."""
        old = self.tier_tokens_per_s[tier]
        self.tier_tokens_per_s[tier] = old + 10 * _LEARNING * (num_tokens / seconds - old)

    def _forget_idle(self) -> None:
        """Workers come and go, under addresses that never come back."""
        for worker in [worker for worker, backlog in self._backlogs.items() if not backlog]:
            del self._backlogs[worker]
            self.prefill.forget(worker)
            self.decode.forget(worker)

    def _cheapest(
        self, factor: float, prompt_tokens: int, cached_tokens: int, held: Held, prefill_s: float
    ) -> tuple[float, float, int]:
        """(prefill_s, load_s, tokens computed) for the depth of loading that takes the least time."""
        a, b, c = self.prefill.coefficients
        best = (prefill_s, 0.0, prompt_tokens - cached_tokens)
        load_s, depth = 0.0, cached_tokens
        for tier, reach in ((Tier.MEMORY, held.memory), (Tier.DISK, held.disk)):
            load_s += max(0, reach - depth) / self.tier_tokens_per_s[tier]
            depth = max(depth, reach)
            tokens = prompt_tokens - depth
            computing_s = factor * (a + tokens * (b + c * (depth + 0.5 * tokens)))
            if computing_s + load_s < best[0] + best[1]:
                best = (computing_s, load_s, tokens)
        return best


def prefill_work(tokens: int, cached: int) -> Work:
    """Computing `tokens` of a prompt after `cached` ones."""
    return Work(1, tokens, tokens * (cached + 0.5 * tokens))
