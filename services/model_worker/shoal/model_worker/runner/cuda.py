"""Runs steps on one NVIDIA GPU: decoding as one CUDA graph a step, everything else operation by operation."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from shoal.kernels.block_copy import block_copy
from shoal.kernels.decode_inputs import DecodeInputs, append_tokens, fill_inputs
from shoal.kernels.kv_layout import RowsLayout
from shoal.kernels.paged_attention import AttentionShape
from shoal.kernels.paged_attention.gpu_plan import describe_pages, plan_decode, plan_mixed
from shoal.model_worker.layers.batch import ForwardBatch
from shoal.model_worker.models.config import ModelConfig
from shoal.model_worker.models.registry import Model
from shoal.model_worker.runner.device_slots import DeviceSlots, upload
from shoal.model_worker.runner.flat_batch import lay_out
from shoal.model_worker.runner.sequences import Sequences
from shoal.model_worker.runner.slots import SlotArrays
from shoal.model_worker.sampling.sampler import Sampler
from shoal.model_worker.step import IntArray, StepPlan, StepResult, TokenLogprobs


def graph_sizes(max_num_seqs: int) -> tuple[int, ...]:
    """Batch sizes that are captured: every one to 8, then steps of about an eighth."""
    sizes = [1, 2, 3, 4, 5, 6, 7, 8]
    while sizes[-1] < max_num_seqs:
        sizes.append(sizes[-1] + max(8, 1 << (sizes[-1].bit_length() - 4)))
    return (*(size for size in sizes if size < max_num_seqs), max_num_seqs)


class CudaRunner:
    """`step.Runner` on the current CUDA device. One thread, one stream."""

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
    ) -> None:
        """Allocates the cache; `warm_up` captures the graphs."""
        self._model = model
        layout = RowsLayout(config.num_layers, config.num_kv_heads, config.head_dim, block_size, dtype)
        self._shape = AttentionShape(layout, config.num_heads)
        self._kv_cache = layout.allocate(num_blocks)
        self._pages = describe_pages(self._kv_cache, self._shape)
        self._num_blocks = num_blocks
        self._slots = SlotArrays(max_num_seqs, max_model_len, block_size)
        self._sequences = Sequences(self._slots, sampler, config.eos_token_ids)
        self._device_slots = DeviceSlots(max_num_seqs, self._slots.block_tables.shape[1], block_size)
        # Slots whose last token and count the device has; prompts go through `_mixed`, which tells it only the end.
        self._on_device = np.zeros(max_num_seqs, np.bool_)
        self._sizes = graph_sizes(max_num_seqs)
        self._graphs: dict[int, _DecodeGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()

    @property
    def num_blocks(self) -> int:
        """KV blocks in the cache."""
        return self._num_blocks

    @property
    def layout(self) -> RowsLayout:
        """How the KV cache is laid out."""
        layout = self._shape.layout
        assert isinstance(layout, RowsLayout)
        return layout

    @property
    def kv_cache(self) -> Tensor:
        """[num_blocks, ...]: row i is block i, contiguous. For moving blocks between steps, never during one."""
        return self._kv_cache

    def warm_up(self) -> None:
        """Compiles the kernels and captures a graph for every size, the largest first: the others fit in its memory."""
        with torch.inference_mode():
            for size in reversed(self._sizes):
                self._graphs[size] = _DecodeGraph(size, self)
            torch.cuda.synchronize()

    def execute(self, plan: StepPlan) -> StepResult:
        """See `step.Runner.execute`."""
        with torch.inference_mode():
            self._apply_changes(plan)
            if not len(plan.slots):
                return StepResult(np.empty(0, np.int32), np.empty(0, np.int32), {}, {})
            decodes = plan.samples.all() and (plan.num_tokens == 1).all() and not plan.forks
            return self._decode(plan) if decodes else self._mixed(plan)

    def decode_step(self, inputs: DecodeInputs) -> Tensor:
        """The device's part of a decoding step; returns logits [N, vocab_size]. Captured in graphs."""
        state = self._device_slots.state
        fill_inputs(inputs, state)
        attention = plan_decode(
            self._shape, self._pages, inputs.query_starts, inputs.seq_lens, state.block_tables, inputs.table_rows
        )
        batch = ForwardBatch(inputs.token_ids, inputs.positions, inputs.slot_mapping, attention)
        logits = self._model.compute_logits(self._model.forward(batch, self._kv_cache))
        append_tokens(inputs, state, logits.argmax(-1))
        return logits

    def _apply_changes(self, plan: StepPlan) -> None:
        for slot in plan.released:
            self._sequences.release(slot)
        for admission in plan.admitted:
            self._sequences.admit(admission)
            self._on_device[admission.slot] = False
        block_copy(self._kv_cache, plan.block_copies)
        self._slots.assign(plan.assigned)
        self._device_slots.assign(plan)

    def _decode(self, plan: StepPlan) -> StepResult:
        slots: IntArray = plan.slots.astype(np.int32, copy=False)
        state = self._slots
        if len(missing := slots[~self._on_device[slots]]):  # the last token of a prompt, computed by itself
            self._tell_device(missing, state.token_ids[missing, state.num_computed[missing]])
        graph = self._graphs[next(size for size in self._sizes if size >= len(slots))]
        graph.start(slots)
        state.num_computed[slots] += 1
        sampler = self._sequences.sampler
        if sampler.takes_argmax(slots):
            token_ids = graph.finish(len(slots))
            sampler.record(slots, token_ids)
            state.append(slots, token_ids)
            return StepResult(slots, token_ids, {}, {})
        slots, token_ids, logprobs = self._sequences.sample(plan, graph.logits[: len(slots)])
        self._tell_device(slots, token_ids)
        return StepResult(slots, token_ids, logprobs, {})

    def _tell_device(self, slots: IntArray, token_ids: IntArray) -> None:
        """The last tokens of some slots, and how many are computed."""
        self._device_slots.set_tokens(slots, token_ids, self._slots.num_computed[slots])
        self._on_device[slots] = True

    def _mixed(self, plan: StepPlan) -> StepResult:
        tokens = lay_out(plan, self._slots, self._shape.layout.block_size)
        token_ids, positions, slot_mapping = upload(np.stack((tokens.token_ids, tokens.positions, tokens.slot_mapping)))
        attention = plan_mixed(
            self._shape, self._pages, tokens.query_starts, tokens.seq_lens, self._device_slots.state.block_tables,
            upload(tokens.slots),
        )  # fmt: skip
        sequences = self._sequences
        last_rows = upload(tokens.last_rows)
        wants_all = sequences.wants_prompt_logprobs
        batch = ForwardBatch(token_ids, positions, slot_mapping, attention, None if wants_all else last_rows)
        hidden = self._model.forward(batch, self._kv_cache)
        self._slots.num_computed[plan.slots] += plan.num_tokens
        reported: dict[int, tuple[TokenLogprobs, ...]] = {}
        if wants_all:
            reported = sequences.report_prompts(plan, tokens, hidden, self._model.compute_logits)
            hidden = hidden[last_rows]
        logits = self._model.compute_logits(hidden) if len(hidden) else hidden
        slots, chosen, logprobs = sequences.sample(plan, logits)
        for fork in plan.forks:
            self._device_slots.fork(fork.source, fork.target)
        self._on_device[plan.slots] = False
        if len(slots):
            self._tell_device(slots, chosen)
        return StepResult(slots, chosen, logprobs, reported)


class _DecodeGraph:
    """One captured decoding step of up to `size` sequences."""

    def __init__(self, size: int, runner: CudaRunner) -> None:
        self._inputs = DecodeInputs.allocate(size, torch.device("cuda"))
        self._slots_host = torch.full((size,), -1, dtype=torch.int32).pin_memory()
        self._sampled_host = torch.empty(size, dtype=torch.int32).pin_memory()
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._last: bytes = b""
        runner.decode_step(self._inputs)  # compiles, and lets libraries allocate outside of the graph
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=runner._pool):
            self.logits = runner.decode_step(self._inputs)

    def start(self, slots: IntArray) -> None:
        """Has the device compute a step of `slots`; returns at once."""
        if (key := slots.tobytes()) != self._last:
            places = self._slots_host.numpy()
            places[:] = -1
            places[: len(slots)] = slots
            self._inputs.slots.copy_(self._slots_host, non_blocking=True)
            self._last = key
        self._graph.replay()

    def finish(self, count: int) -> IntArray:
        """The largest logits' tokens of the first `count` places, once they are here."""
        self._sampled_host.copy_(self._inputs.sampled, non_blocking=True)
        self._done.record()
        self._done.synchronize()
        return self._sampled_host.numpy()[:count].copy()
