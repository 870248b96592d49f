"""What a runner without a model knows of its slots: hashes of their histories, from which tokens are made."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from shoal.model_worker.sampling.params import SamplingParams
from shoal.model_worker.simulated_timing import StepWork
from shoal.model_worker.step import Admission, Fork, IntArray, StepPlan, StepResult, TokenLogprobs

END_ONE_IN: Final = 64
"""About one token in this many ends the output."""
_NEVER: Final = 1 << 62
_RADIX: Final = 0x5851F42D4C957F2D
_MODULUS: Final = 1 << 64
_CHUNK: Final = 8192


class SimulatedSequences:
    """Histories as flat arrays: a step touches the decoding slots by a few numpy operations, 20 us for any number.

    A history's hash is the polynomial of its tokens modulo 2**64, so it does not depend on how a prompt was cut into
    steps. The next token is a mix (splitmix64) of that hash, the seed and the choice.
    """

    def __init__(self, num_slots: int, vocab_size: int) -> None:
        self._eos_token_id = vocab_size - 1
        self._filling: dict[int, Admission] = {}
        """Slots whose admitted tokens are not all computed."""
        self._params: dict[int, SamplingParams] = {}
        """Of slots that want logprobs."""
        self._hashes = np.zeros(num_slots, np.uint64)
        """Of the computed tokens."""
        self._last = np.zeros(num_slots, np.uint64)
        """The token to compute next, of slots that decode."""
        self._seeds = np.zeros(num_slots, np.uint64)
        self._choice_seeds = np.zeros(num_slots, np.uint64)
        self._num_computed = np.zeros(num_slots, np.int64)
        self._ends_from = np.zeros(num_slots, np.int64)
        """Computed tokens from which on the sampled one may end the output."""
        self._is_filling = np.zeros(num_slots, np.bool_)

    def apply(self, plan: StepPlan) -> StepWork:
        """Empties and fills slots. Returns what the step will compute."""
        for slot in plan.released:
            self._filling.pop(slot, None)
            self._is_filling[slot] = False
            self._params.pop(slot, None)
        for admission in plan.admitted:
            self._admit(admission)
        decoding, prefills = self._split(plan)
        num_kv_tokens = int(self._num_computed[decoding].sum()) + len(decoding)
        return StepWork(len(decoding), num_kv_tokens, [(num, int(self._num_computed[slot])) for slot, num in prefills])

    def compute(self, plan: StepPlan) -> StepResult:
        """Runs the tokens of a plan that was applied, and samples."""
        decoding, prefills = self._split(plan)
        self._hashes[decoding] = self._hashes[decoding] * np.uint64(_RADIX) + self._last[decoding]
        self._num_computed[decoding] += 1
        prompt_logprobs = {}
        for slot, num_tokens in prefills:
            entries = self._fill(slot, num_tokens)
            if entries is not None:
                prompt_logprobs[slot] = entries
        sampled = plan.slots[plan.samples]
        if plan.forks:
            for fork in plan.forks:
                self._fork(fork)
            sampled = np.concatenate((sampled, np.array([fork.target for fork in plan.forks], np.int32)))
        token_ids = self._sample(sampled)
        logprobs = {}
        if self._params:
            rows = zip(sampled.tolist(), token_ids.tolist(), strict=True)
            logprobs = {s: _logprobs(t) for s, t in rows if s in self._params and self._params[s].logprobs is not None}
        return StepResult(sampled, token_ids, logprobs, prompt_logprobs)

    def _split(self, plan: StepPlan) -> tuple[IntArray, list[tuple[int, int]]]:
        """The decoding slots, and (slot, number of tokens) of those that are being filled."""
        if not self._filling:
            return plan.slots, []
        filling = self._is_filling[plan.slots]
        rows = zip(plan.slots[filling].tolist(), plan.num_tokens[filling].tolist(), strict=True)
        return plan.slots[~filling], list(rows)

    def _admit(self, admission: Admission) -> None:
        slot, sampling = admission.slot, admission.sampling
        num_computed = admission.num_computed_tokens
        self._filling[slot] = admission
        self._is_filling[slot] = True
        self._hashes[slot] = extend_hash(0, admission.token_ids[:num_computed])
        self._num_computed[slot] = num_computed
        self._seeds[slot] = admission.seed % _MODULUS
        self._choice_seeds[slot] = _choice_seed(admission.seed, admission.choice)
        self._ends_from[slot] = _NEVER if sampling.ignore_eos else admission.num_prompt_tokens + sampling.min_tokens
        if sampling.logprobs is not None or sampling.prompt_logprobs is not None:
            self._params[slot] = sampling

    def _fill(self, slot: int, num_tokens: int) -> tuple[TokenLogprobs, ...] | None:
        """Computes admitted tokens. Returns the prompt's logprobs if they are asked for."""
        admission = self._filling[slot]
        token_ids = admission.token_ids
        start = int(self._num_computed[slot])
        end = start + num_tokens
        self._hashes[slot] = extend_hash(int(self._hashes[slot]), token_ids[start:end])
        self._num_computed[slot] = end
        if end == len(token_ids):
            del self._filling[slot]
            self._is_filling[slot] = False
        params = self._params.get(slot)
        if params is None or params.prompt_logprobs is None:
            return None
        stop = min(end + 1, admission.num_prompt_tokens)
        return tuple(_logprobs(token_id) for token_id in token_ids[start + 1 : stop].tolist())

    def _fork(self, fork: Fork) -> None:
        source, target = fork.source, fork.target
        for array in (self._hashes, self._num_computed, self._seeds, self._ends_from):
            array[target] = array[source]
        self._choice_seeds[target] = _choice_seed(int(self._seeds[source]), fork.choice)
        if (params := self._params.get(source)) is not None:
            self._params[target] = params

    def _sample(self, slots: IntArray) -> IntArray:
        draws = _mix(self._hashes[slots] ^ self._choice_seeds[slots])
        token_ids = ((draws >> np.uint64(6)) % np.uint64(max(1, self._eos_token_id))).astype(np.int32)
        ends = (draws % np.uint64(END_ONE_IN) == 0) & (self._num_computed[slots] >= self._ends_from[slots])
        token_ids[ends] = self._eos_token_id
        self._last[slots] = token_ids
        return token_ids


def extend_hash(history_hash: int, token_ids: IntArray) -> int:
    """The hash of a history and of the tokens after it."""
    for start in range(0, len(token_ids), _CHUNK):
        chunk = token_ids[start : start + _CHUNK].astype(np.uint64)
        history_hash = history_hash * pow(_RADIX, len(chunk), _MODULUS) + int((chunk * _POWERS[-len(chunk) :]).sum())
    return history_hash % _MODULUS


def _powers() -> NDArray[np.uint64]:
    """_RADIX to the powers _CHUNK - 1 down to 0."""
    factors = np.full(_CHUNK, _RADIX, np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)[::-1].copy()


_POWERS: Final = _powers()


def _choice_seed(seed: int, choice: int) -> np.uint64:
    return np.uint64(_mix(np.array([(seed + (choice + 1) * 0x9E3779B97F4A7C15) % _MODULUS], np.uint64))[0])


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _logprobs(token_id: int) -> TokenLogprobs:
    return TokenLogprobs(token_id, -1.0, 1, ())
