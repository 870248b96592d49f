"""The sampler of runners that choose tokens on their device: `Sampler`'s meaning, with its state kept there by slot.

For a runner, in this order, all on one stream:

1. `release` and `admit` as a plan says; they change nothing on the device yet.
2. `flush()` before the step: a few copies from pinned memory that nobody waits for, of what was admitted only.
3. Forks once their source's logits are computed: `fork(source, target, choice)` copies on the device, at once.
4. `sample(logits, slots)`, eagerly or captured in a CUDA graph: all it reads lies at fixed addresses, and it counts the
   tokens on the device itself. The host learns them by reading the result.
5. Where `reports_logprobs(slots)`: `gather_logprobs` of the same logits, which `sample` leaves as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.kernels import sampling
from shoal.kernels.sampling import (
    BIASED,
    FILTERED,
    GREEDY,
    IN_PROMPT,
    MAX_BIASES,
    MAX_STOP_IDS,
    PENALIZED,
    SLOT_DTYPE,
    SamplingState,
    SamplingWorkspace,
)
from shoal.kernels.step_inputs import write_words
from shoal.kernels.transfers import upload
from shoal.model_worker.sampling.history import TokenCounts
from shoal.model_worker.sampling.logprobs import gather_logprobs
from shoal.model_worker.sampling.params import SampledSequence, SamplingParams
from shoal.model_worker.step import IntArray, TokenLogprobs

SampleFunction = Callable[[Tensor, Tensor, SamplingState, SamplingWorkspace], Tensor]

_LEAST_TEMPERATURE = 1e-30
"""Its inverse is still finite; anything below gives the same tokens."""


@dataclass(frozen=True, slots=True)
class _Admitted:
    """What a slot was admitted with and the device does not have yet."""

    scalars: NDArray[np.void]
    biases: NDArray[np.float64]
    """[N, 2] token and value, rising by token."""
    stop_ids: NDArray[np.int32]
    counts: TokenCounts | None
    """None without penalties."""


class DeviceSampler:
    """Sampling state of a runner's slots. Owned by one runner; not thread-safe."""

    def __init__(
        self,
        state: SamplingState,
        workspace: SamplingWorkspace,
        sample: SampleFunction = sampling.sample,
    ) -> None:
        """Takes over `state` and `workspace`, which are for as many slots and rows. `sample` is for tests."""
        self.state = state
        self.workspace = workspace
        self._sample = sample
        self._device = state.slots.device
        max_num_seqs, self._vocab_size = state.counts.shape
        self._occupied = np.zeros(max_num_seqs, np.bool_)
        self._flags: IntArray = np.zeros(max_num_seqs, np.int32)
        self._num_logprobs: IntArray = np.full(max_num_seqs, -1, np.int32)
        self._admitted: dict[int, _Admitted] = {}

    @classmethod
    def allocate(cls, max_num_seqs: int, vocab_size: int, device: torch.device) -> DeviceSampler:
        """For slots 0 to `max_num_seqs` - 1. Takes 6 bytes for each slot and token of the vocabulary."""
        return cls(
            SamplingState.allocate(max_num_seqs, vocab_size, device),
            SamplingWorkspace.allocate(max_num_seqs, vocab_size, device),
        )

    def admit(self, slot: int, sequence: SampledSequence) -> None:
        """Fills a free slot; see `Sampler.admit`. ValueError if it is occupied or there are too many ids."""
        if self._occupied[slot]:
            raise ValueError(f"slot {slot} is occupied; release it before admitting another sequence")
        params, num_outputs = sequence.params, sequence.num_outputs
        forbidden = np.unique(np.asarray(sequence.stop_ids if params.min_tokens > num_outputs else (), dtype=np.int32))
        forbidden = forbidden[forbidden < self._vocab_size]
        biases = np.array(sorted(params.logit_bias.items()), dtype=np.float64).reshape(-1, 2)
        if len(forbidden) > MAX_STOP_IDS or len(biases) > MAX_BIASES:
            raise ValueError(
                f"slot {slot} has {len(forbidden)} stop tokens and {len(biases)} logit biases; at most {MAX_STOP_IDS} "
                f"and {MAX_BIASES} are allowed"
            )
        scalars = _pack(params, self._vocab_size)
        scalars["seed"], scalars["choice"], scalars["num_outputs"] = sequence.seed, sequence.choice, num_outputs
        scalars["num_biases"], scalars["num_stop_ids"] = len(biases), len(forbidden)
        counts = None
        if scalars["flags"][0] & PENALIZED:
            counts = TokenCounts.of_sequence(sequence)
        self._occupied[slot] = True
        self._flags[slot] = scalars["flags"][0]
        self._num_logprobs[slot] = -1 if params.logprobs is None else params.logprobs
        self._admitted[slot] = _Admitted(scalars, biases, forbidden, counts)

    def fork(self, source: int, target: int, choice: int) -> None:
        """Copies `source` as it is on the device to the free slot `target`, which draws as `choice`."""
        if not self._occupied[source] or self._occupied[target]:
            raise ValueError(f"cannot fork slot {source} to {target}: the first must be occupied and the second free")
        self.flush()
        state = self.state
        tables = [state.slots, state.bias_ids, state.bias_values, state.stop_ids]
        for table in [*tables, state.counts] if self._flags[source] & PENALIZED else tables:
            table[target].copy_(table[source])
        state.slots[target, _word("choice")].fill_(choice)
        self._occupied[target] = True
        for known in (self._flags, self._num_logprobs):
            known[target] = known[source]

    def release(self, slot: int) -> None:
        """Empties a slot. ValueError if it is empty."""
        if not self._occupied[slot]:
            raise ValueError(f"slot {slot} is free already")
        self._occupied[slot] = False
        self._admitted.pop(slot, None)

    def flush(self) -> None:
        """Has the device take over what was admitted since the last time; returns before it has."""
        if not self._admitted:
            return
        admitted, self._admitted = self._admitted, {}
        state = self.state
        scalars = np.concatenate([each.scalars for each in admitted.values()])
        words = scalars.view(np.int32).reshape(len(admitted), -1)
        places = np.array(list(admitted), np.int32)[:, None] * words.shape[1] + np.arange(
            words.shape[1], dtype=np.int32
        )
        write_words(state.slots, upload(np.stack((places.ravel(), words.ravel())), self._device))
        if biased := {slot: each.biases for slot, each in admitted.items() if len(each.biases)}:
            values = np.concatenate([biases[:, 1] for biases in biased.values()]).astype(np.float32).view(np.int32)
            ids = [biases[:, 0] for biases in biased.values()]
            slot_of, place, id_, value = upload(np.stack((*_flatten(list(biased), ids), values)), self._device)
            state.bias_ids[slot_of, place] = id_
            state.bias_values[slot_of, place] = value.view(torch.float32)
        if stopped := {slot: each.stop_ids for slot, each in admitted.items() if len(each.stop_ids)}:
            slot_of, place, id_ = upload(np.stack(_flatten(list(stopped), list(stopped.values()))), self._device)
            state.stop_ids[slot_of, place] = id_
        if counted := {slot: each.counts for slot, each in admitted.items() if each.counts is not None}:
            self._write_counts(counted)

    def sample(self, logits: Tensor, slots: Tensor) -> Tensor:
        """[N] int32 tokens on the device; see `shoal.kernels.sampling.sample`. Not before `flush`."""
        return self._sample(logits, slots, self.state, self.workspace)

    def reports_logprobs(self, slots: IntArray) -> bool:
        """Whether any of `slots` reports log-probabilities."""
        return bool((self._num_logprobs[slots] >= 0).any())

    def gather_logprobs(self, logits: Tensor, slots: IntArray, token_ids: Tensor) -> dict[int, TokenLogprobs]:
        """Log-probabilities by slot, for those that report them; row i of `logits` chose token_ids[i]. Waits."""
        rows = np.flatnonzero(self._num_logprobs[slots] >= 0)
        if not len(rows):
            return {}
        at = upload(rows, self._device)
        counts = self._num_logprobs[slots[rows]].tolist()
        entries = gather_logprobs(logits[at], token_ids[at].long(), counts)
        return dict(zip(slots[rows].tolist(), entries, strict=True))

    def _write_counts(self, counted: dict[int, TokenCounts]) -> None:
        counts = self.state.counts
        counts.index_fill_(0, upload(np.array(list(counted), np.int64), self._device), 0)
        cells = [
            np.where(each.output_counts, each.output_counts.clip(max=0x7FFF), IN_PROMPT) for each in counted.values()
        ]
        slot_of, _, id_ = _flatten(list(counted), [each.ids for each in counted.values()])
        at_slot, at_id, cell = upload(np.stack((slot_of, id_, np.concatenate(cells).astype(np.int32))), self._device)
        counts[at_slot, at_id] = cell.to(torch.int16)


def _flatten(slots: list[int], lists: Sequence[NDArray[Any]]) -> tuple[IntArray, IntArray, IntArray]:
    """Slot, place in its list, and entry of each entry of all lists."""
    lengths = [len(each) for each in lists]
    places = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    return np.repeat(np.array(slots, np.int32), lengths), places, np.concatenate(lists).astype(np.int32)


def _pack(params: SamplingParams, vocab_size: int) -> NDArray[np.void]:
    """[1] `SLOT_DTYPE`, less what depends on the sequence."""
    scalars = np.zeros(1, SLOT_DTYPE)
    for name in ("min_p", "top_p", "typical_p", "frequency_penalty", "presence_penalty", "repetition_penalty"):
        scalars[name] = getattr(params, name)
    scalars["temperature"] = max(params.temperature, _LEAST_TEMPERATURE)
    scalars["top_k"] = top_k = params.top_k if params.top_k < vocab_size else 0
    scalars["min_tokens"] = params.min_tokens
    flags = BIASED if params.logit_bias else 0
    if params.frequency_penalty or params.presence_penalty or params.repetition_penalty != 1:
        flags |= PENALIZED
    if params.greedy or params.top_k == 1:
        flags |= GREEDY
    elif params.min_p > 0 or top_k or scalars["top_p"][0] < 1 or scalars["typical_p"][0] < 1:
        flags |= FILTERED
    scalars["flags"] = flags
    return scalars


def _word(name: str) -> int:
    """Where a field lies in a row of `SamplingState.slots`."""
    fields = SLOT_DTYPE.fields
    assert fields is not None
    return int(fields[name][1]) // 4
