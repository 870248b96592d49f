"""What the sampler remembers between steps: flat arrays by slot, changed in place, read with one index a step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shoal.model_worker.sampling.history import TokenCounts
from shoal.model_worker.sampling.params import SampledSequence

IntArray = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class LogitBias:
    """One slot's logit_bias as arrays."""

    ids: NDArray[np.int64]
    values: NDArray[np.float32]


class SamplingSlots:
    """State of up to `max_num_seqs` sequences. Arrays are indexed by slot; those of a free slot mean nothing."""

    def __init__(self, max_num_seqs: int, vocab_size: int) -> None:
        self.max_num_seqs = max_num_seqs
        self.vocab_size = vocab_size
        self.occupied = np.zeros(max_num_seqs, dtype=np.bool_)
        self.seeds = np.zeros(max_num_seqs, dtype=np.uint64)
        self.choices = np.zeros(max_num_seqs, dtype=np.uint32)
        self.num_outputs = np.zeros(max_num_seqs, dtype=np.int64)
        """Output tokens so far: the position of the next one in the random stream."""
        self.greedy = np.zeros(max_num_seqs, dtype=np.bool_)
        self.biased = np.zeros(max_num_seqs, dtype=np.bool_)
        self.penalized = np.zeros(max_num_seqs, dtype=np.bool_)
        self.filtered = np.zeros(max_num_seqs, dtype=np.bool_)
        """Whether min_p, top_k, top_p or typical_p is on."""
        self.min_tokens = np.zeros(max_num_seqs, dtype=np.int64)
        self.temperature = np.ones(max_num_seqs, dtype=np.float32)
        self.min_p = np.zeros(max_num_seqs, dtype=np.float32)
        self.top_k = np.zeros(max_num_seqs, dtype=np.int64)
        self.top_p = np.ones(max_num_seqs, dtype=np.float64)
        self.typical_p = np.ones(max_num_seqs, dtype=np.float64)
        self.frequency_penalty = np.zeros(max_num_seqs, dtype=np.float32)
        self.presence_penalty = np.zeros(max_num_seqs, dtype=np.float32)
        self.repetition_penalty = np.ones(max_num_seqs, dtype=np.float32)
        self.logprobs = np.full(max_num_seqs, -1, dtype=np.int32)
        """Most likely tokens to report; -1 for no log-probabilities at all."""
        self.biases: list[LogitBias | None] = [None] * max_num_seqs
        self.counts: list[TokenCounts | None] = [None] * max_num_seqs
        self.stop_ids: list[NDArray[np.int64] | None] = [None] * max_num_seqs
        """Forbidden until min_tokens; None once nothing is to be forbidden."""

    def admit(self, slot: int, sequence: SampledSequence) -> None:
        """Fills a free slot; see `Sampler.admit`."""
        if self.occupied[slot]:
            raise ValueError(f"slot {slot} is occupied; release it before admitting another sequence")
        params = sequence.params
        self.occupied[slot] = True
        self.seeds[slot] = sequence.seed
        self.choices[slot] = sequence.choice
        self.num_outputs[slot] = sequence.num_outputs
        self.greedy[slot] = params.greedy or params.top_k == 1
        self.filtered[slot] = params.min_p > 0 or params.top_k > 0 or params.top_p < 1 or params.typical_p < 1
        self.logprobs[slot] = -1 if params.logprobs is None else params.logprobs
        for name in ("temperature", "min_p", "top_p", "typical_p"):
            getattr(self, name)[slot] = getattr(params, name)
        self.top_k[slot] = params.top_k if params.top_k < self.vocab_size else 0
        self._admit_edits(slot, sequence)

    def _admit_edits(self, slot: int, sequence: SampledSequence) -> None:
        params = sequence.params
        for name in ("min_tokens", "frequency_penalty", "presence_penalty", "repetition_penalty"):
            getattr(self, name)[slot] = getattr(params, name)
        self.biased[slot] = bool(params.logit_bias)
        if params.logit_bias:
            ids = np.fromiter(params.logit_bias.keys(), dtype=np.int64)
            self.biases[slot] = LogitBias(ids, np.fromiter(params.logit_bias.values(), dtype=np.float32))
        self.penalized[slot] = (
            params.frequency_penalty != 0 or params.presence_penalty != 0 or params.repetition_penalty != 1
        )
        if self.penalized[slot]:
            self.counts[slot] = TokenCounts.of_sequence(sequence)
        if params.min_tokens > self.num_outputs[slot]:
            ids = np.unique(np.asarray(sequence.stop_ids, dtype=np.int64))
            self.stop_ids[slot] = ids[ids < self.vocab_size]

    def fork(self, source: int, target: int, choice: int) -> None:
        """Copies `source` to the free slot `target` as choice `choice`; both go on independently."""
        if not self.occupied[source] or self.occupied[target]:
            raise ValueError(f"cannot fork slot {source} to {target}: the first must be occupied and the second free")
        for array in self._arrays():
            array[target] = array[source]
        self.choices[target] = choice
        self.biases[target] = self.biases[source]
        self.stop_ids[target] = self.stop_ids[source]
        counts = self.counts[source]
        self.counts[target] = None if counts is None else counts.copy()

    def release(self, slot: int) -> None:
        """Frees a slot and what it held."""
        if not self.occupied[slot]:
            raise ValueError(f"slot {slot} is free already")
        self.occupied[slot] = False
        self.biases[slot] = None
        self.counts[slot] = None
        self.stop_ids[slot] = None

    def record(self, slots: IntArray, token_ids: IntArray) -> None:
        """Notes that each of `slots` produced the token beside it."""
        self.num_outputs[slots] += 1
        penalized = self.penalized[slots]
        if penalized.any():
            for slot, token_id in zip(slots[penalized].tolist(), token_ids[penalized].tolist(), strict=True):
                counts = self.counts[slot]
                assert counts is not None
                counts.add(token_id)

    def _arrays(self) -> list[NDArray[np.generic]]:
        return [value for value in vars(self).values() if isinstance(value, np.ndarray)]
