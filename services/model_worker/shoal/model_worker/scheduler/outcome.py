"""Brings the scheduler's state up to date with what a step computed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shoal.blocks import iter_word_keys
from shoal.model_worker.kv_cache import KVCacheManager
from shoal.model_worker.request import FinishReason, RequestGroup, Sequence
from shoal.model_worker.scheduler.draft import PlanDraft
from shoal.model_worker.scheduler.output import Finished, SchedulerStats, StepOutput
from shoal.model_worker.scheduler.slots import SlotTable
from shoal.model_worker.step import IntArray, StepPlan, StepResult, TokenLogprobs


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A plan, and what its result will be held against."""

    plan: StepPlan
    ends: NDArray[np.int64]
    """Tokens computed of each of the plan's slots once it has run."""
    tenures: NDArray[np.int64]
    """`SlotTable.tenure` of each of the plan's slots."""
    completing: tuple[Sequence, ...]
    """Those that reach their last known token by a part of a prompt."""


class Outcome:
    """The half of the scheduler that runs after a step: commit blocks, fork, append tokens, end completions."""

    def __init__(
        self, slots: SlotTable, cache: KVCacheManager, draft: PlanDraft, eos_token_ids: frozenset[int]
    ) -> None:
        self._slots = slots
        self._cache = cache
        self._draft = draft
        self._eos_token_ids = sorted(eos_token_ids)
        self.stats = SchedulerStats()
        self.output = StepOutput()
        self.prompt_logprobs: dict[int, list[TokenLogprobs]] = {}
        """By stream_id, until the prompt is complete."""

    def keys_of(self, parent_key: bytes, token_ids: IntArray) -> list[bytes]:
        """Keys of the full blocks."""
        words = token_ids.astype("<i4", copy=False).tobytes()
        return list(iter_word_keys(parent_key, words, self._cache.block_size))

    def take(self) -> StepOutput:
        """Hands over the output collected so far."""
        output, self.output = self.output, StepOutput()
        return output

    def apply(self, planned: PlannedStep, result: StepResult) -> list[RequestGroup]:
        """Returns the groups whose last completion ended. Drops what belongs to sequences that left their slots."""
        slots, plan, ends = self._slots, planned.plan, planned.ends
        self.stats.computed_tokens += plan.total_tokens
        step_slots = plan.slots
        stays = slots.tenure[step_slots] == planned.tenures
        if not stays.all():
            result = _kept(result, plan, stays)
            step_slots, ends = step_slots[stays], ends[stays]
        self._commit(step_slots, ends)
        for slot, entries in result.prompt_logprobs.items():
            self.prompt_logprobs.setdefault(int(slots.stream_id[slot]), []).extend(entries)
        here = set(step_slots.tolist()) if planned.completing else set()
        for sequence in planned.completing:
            if sequence.slot in here:
                self._complete_prompt(sequence)
        self._append(result)
        return self._finish(result.slots, result.token_ids)

    def release(self, sequence: Sequence) -> None:
        """Takes slot and blocks away from a running sequence."""
        assert sequence.table is not None
        self._cache.free(sequence.table)
        sequence.table = None
        slot, sequence.slot = sequence.slot, -1
        if sequence.is_loading:
            sequence.is_loading = False
        else:
            self._draft.release(slot)
        self._slots.empty(slot)
        for taken in (slot, *sequence.reserved_slots):
            self._slots.give_back(taken)
        sequence.reserved_slots = []

    def _commit(self, step_slots: IntArray, ends: NDArray[np.int64]) -> None:
        slots, block_size = self._slots, self._cache.block_size
        num_full = ends // block_size
        crossed = num_full > slots.num_committed[step_slots]
        for slot, end in zip(step_slots[crossed].tolist(), num_full[crossed].tolist(), strict=True):
            sequence = slots.sequences[slot]
            assert sequence is not None
            assert sequence.table is not None
            keys = sequence.block_keys
            if len(keys) < end:
                parent_key = keys[-1] if keys else sequence.request.namespace_key
                tail = slots.token_ids[slot, len(keys) * block_size : end * block_size]
                keys += self.keys_of(parent_key, tail)
            start = int(slots.num_committed[slot])
            for index, block_id in self._cache.commit(sequence.table, keys[start:end]):
                self._draft.assign(slot, index, block_id)
            slots.num_committed[slot] = end

    def _complete_prompt(self, sequence: Sequence) -> None:
        slots, group = self._slots, sequence.group
        if (entries := self.prompt_logprobs.pop(sequence.stream_id, None)) is not None:
            self.output.prompt_logprobs.append((group.request.stream_id, tuple(entries)))
        sequence.prompt_logprobs_sent = True
        if group.forked:
            return
        group.forked = True
        slots.set_decoding(sequence.slot, True)
        assert sequence.table is not None
        num_computed = int(slots.num_computed[sequence.slot])
        if num_computed % self._cache.block_size:
            slots.num_writable[sequence.slot] = num_computed  # the last block is shared: ask before writing to it
        targets, sequence.reserved_slots = sequence.reserved_slots, []
        for choice, target in enumerate(targets, 1):
            keys = list(sequence.block_keys)
            fork = Sequence(group, choice, sequence.order, np.empty(0, np.int32), keys, prompt_logprobs_sent=True)
            fork.table = self._cache.fork(sequence.table)
            slots.copy(sequence.slot, target, fork)
            slots.set_decoding(target, True)
            self._draft.repeat(sequence.slot, target)
            group.sequences.append(fork)

    def _append(self, result: StepResult) -> None:
        slots, output, sampled = self._slots, self.output, result.slots
        known = slots.num_known[sampled]
        slots.token_ids[sampled, known] = result.token_ids
        slots.num_known[sampled] = known + 1
        output.stream_ids = slots.stream_id[sampled]
        output.token_ids = result.token_ids
        self.stats.generated_tokens += len(result.token_ids)
        for slot, entry in result.logprobs.items():
            output.logprobs.append((int(slots.stream_id[slot]), entry))

    def _finish(self, sampled: IntArray, token_ids: IntArray) -> list[RequestGroup]:
        slots = self._slots
        known = slots.num_known[sampled]
        stopped = self._stopped(sampled, token_ids) & (known > slots.stop_after[sampled])
        ended = stopped | (known >= slots.max_len[sampled])
        done = []
        for i in np.flatnonzero(ended).tolist():
            sequence = slots.sequences[sampled[i]]
            assert sequence is not None
            stop_token_id = int(token_ids[i]) if stopped[i] else None
            reason = FinishReason.STOP if stopped[i] else FinishReason.LENGTH
            self.output.finished.append(Finished(sequence.stream_id, reason, stop_token_id))
            self.release(sequence)
            group = sequence.group
            group.sequences.remove(sequence)
            if not group.sequences:
                done.append(group)
        return done

    def _stopped(self, sampled: IntArray, token_ids: IntArray) -> NDArray[np.bool_]:
        slots = self._slots
        stopped = np.zeros(len(sampled), np.bool_)
        for eos_token_id in self._eos_token_ids:
            stopped |= token_ids == eos_token_id
        stopped &= slots.ends_at_eos[sampled]
        for i in np.flatnonzero(slots.has_stop_ids[sampled]).tolist():
            sequence = slots.sequences[sampled[i]]
            assert sequence is not None
            stopped[i] |= int(token_ids[i]) in sequence.request.sampling.stop_token_ids
        return stopped


def _kept(result: StepResult, plan: StepPlan, stays: NDArray[np.bool_]) -> StepResult:
    """The part of a result that belongs to slots of the plan that `stays` marks, and to the plan's forks."""
    rows = np.concatenate((stays[plan.samples], np.ones(len(plan.forks), np.bool_)))
    slots = result.slots[rows]
    left = set(plan.slots[~stays].tolist())
    logprobs = {slot: entry for slot, entry in result.logprobs.items() if slot not in left}
    prompts = {slot: entries for slot, entries in result.prompt_logprobs.items() if slot not in left}
    return StepResult(slots, result.token_ids[rows], logprobs, prompts)
