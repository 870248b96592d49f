"""Runs steps on the CPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from shoal.kernels.block_copy import block_copy
from shoal.kernels.kv_layout import KVLayout
from shoal.kernels.native import library
from shoal.kernels.paged_attention import AttentionShape
from shoal.model_worker.models.config import ModelConfig
from shoal.model_worker.models.registry import Model
from shoal.model_worker.runner.flat_batch import build_batch
from shoal.model_worker.runner.sequences import Sequences
from shoal.model_worker.runner.slots import SlotArrays
from shoal.model_worker.runner.warm_up import prompt_plan
from shoal.model_worker.sampling.sampler import Sampler
from shoal.model_worker.step import IntArray, StepPlan, StepResult, SynchronousRunner, TokenLogprobs


def layout_for(config: ModelConfig, block_size: int, dtype: torch.dtype) -> KVLayout:
    """The KV cache's layout for a model; its `name` belongs into the namespace of block keys."""
    return KVLayout(config.num_layers, config.num_kv_heads, config.head_dim, block_size, dtype)


def num_blocks_for(memory_bytes: int, config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """How many blocks of all layers fit in `memory_bytes`."""
    return memory_bytes // layout_for(config, block_size, dtype).block_bytes


class CpuRunner(SynchronousRunner):
    """`step.Runner` on the CPU: a paged KV cache, the slots' state and the sampler.

    Must be used from one thread only: torch's OpenMP pool belongs to the thread that starts it, and a second pool
    would spin against it. An exception from `execute` leaves the state undefined.
    """

    def __init__(
        self,
        model: Model,
        config: ModelConfig,
        *,
        num_blocks: int,
        block_size: int,
        max_num_seqs: int,
        max_model_len: int,
        sampler: Sampler,
        dtype: torch.dtype = torch.bfloat16,
        num_threads: int | None = None,
    ) -> None:
        """dtype: of the model and its KV cache. num_threads: None leaves torch's setting. Allocates the cache."""
        if max_model_len > config.max_position_embeddings:
            raise ValueError(
                f"max_model_len ({max_model_len}) is more than the model's {config.max_position_embeddings} positions"
            )
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self._model = model
        layout = layout_for(config, block_size, dtype)
        self._shape = AttentionShape(layout, config.num_heads)
        self._kv_cache = layout.allocate(num_blocks)
        self._num_blocks = num_blocks
        self._slots = SlotArrays(max_num_seqs, max_model_len, block_size)
        self._sampler = sampler
        self._sequences = Sequences(self._slots, sampler, config.eos_token_ids)

    @property
    def num_blocks(self) -> int:
        """KV blocks in the cache."""
        return self._num_blocks

    @property
    def layout(self) -> KVLayout:
        """How the KV cache is laid out."""
        return self._shape.layout

    @property
    def kv_cache(self) -> Tensor:
        """[num_blocks, ...]: row i is block i, contiguous. For moving blocks between steps, never during one."""
        return self._kv_cache

    def execute(self, plan: StepPlan) -> StepResult:
        """See `SynchronousRunner.execute`."""
        with torch.inference_mode():
            self._apply_changes(plan)
            if not len(plan.slots):
                return StepResult(np.empty(0, np.int32), np.empty(0, np.int32), {}, {})
            sequences, model = self._sequences, self._model
            batch = build_batch(plan, self._slots, self._shape, all_outputs=sequences.wants_prompt_logprobs)
            forward = batch.forward if plan.feed is None else replace(batch.forward, feed=plan.feed)
            hidden = model.forward(forward, self._kv_cache)
            self._slots.num_computed[plan.slots] += plan.num_tokens
            reported: dict[int, tuple[TokenLogprobs, ...]] = {}
            if sequences.wants_prompt_logprobs:
                reported = sequences.report_prompts(plan, batch.tokens, hidden, model.compute_logits)
                hidden = hidden[torch.from_numpy(batch.tokens.last_rows)]
            logits = model.compute_logits(hidden) if len(hidden) else hidden.new_empty(0)
            return self._sample(plan, logits, reported)

    def _sample(self, plan: StepPlan, logits: Tensor, reported: dict[int, tuple[TokenLogprobs, ...]]) -> StepResult:
        """Samples for the plan's slots that do (a row of logits each), then for its forks from their sources' rows."""
        slots: IntArray = plan.slots[plan.samples].astype(np.int32, copy=False)
        if not len(slots):
            return StepResult(slots, np.empty(0, np.int32), {}, reported)
        if plan.forks:
            row_of = {int(slot): row for row, slot in enumerate(slots)}
            for fork in plan.forks:
                self._sequences.fork(fork)
            logits = torch.cat((logits, logits[[row_of[fork.source] for fork in plan.forks]]))
            slots = np.concatenate((slots, np.array([fork.target for fork in plan.forks], np.int32)))
        output = self._sampler.sample(logits, slots)
        self._slots.append(slots, output.token_ids)
        return StepResult(slots, output.token_ids, output.logprobs, reported)

    def warm_up(self) -> None:
        """Builds the native operations and touches what the first steps need. Call it before anything is admitted."""
        library()
        capacity = min(self._slots.token_ids.shape[1] - 1, self._num_blocks * self.layout.block_size)
        for count in (1, 2, 4, 8, 16, 32, 64, 128, 256):
            if count <= capacity:
                self._warm_up_step(count)

    def _warm_up_step(self, num_tokens: int) -> None:
        self.execute(prompt_plan(num_tokens, self.layout.block_size))
        nothing = np.empty(0, np.int32)
        self.execute(StepPlan((0,), (), (), (), nothing, nothing, np.empty(0, np.bool_), ()))

    def _apply_changes(self, plan: StepPlan) -> None:
        for slot in plan.released:
            self._sequences.release(slot)
        for admission in plan.admitted:
            self._sequences.admit(admission)
        block_copy(self._kv_cache, plan.block_copies)
        self._slots.assign(plan.assigned)
