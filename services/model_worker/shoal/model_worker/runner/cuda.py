"""Runs steps on one NVIDIA GPU: as one CUDA graph where that pays, else operation by operation; never waiting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from shoal.kernels.block_copy import block_copy
from shoal.kernels.kv_layout import RowsLayout
from shoal.kernels.paged_attention import AttentionShape
from shoal.kernels.paged_attention.gpu_plan import describe_pages, divide_step, plan_decode
from shoal.kernels.step_inputs import DecodeInputs, fill_inputs, record_tokens, resolve_tokens
from shoal.kernels.transfers import send, staging, upload
from shoal.model_worker.layers.batch import ForwardBatch
from shoal.model_worker.models.config import ModelConfig
from shoal.model_worker.models.registry import Model
from shoal.model_worker.runner.device_slots import DeviceSlots
from shoal.model_worker.runner.device_step import Logprobs, TokenMail
from shoal.model_worker.runner.flat_batch import lay_out
from shoal.model_worker.runner.packed_inputs import PackedInputs, StepArrays, attention_plan, capacity, exact
from shoal.model_worker.runner.sequences import Sequences
from shoal.model_worker.runner.slots import SlotArrays
from shoal.model_worker.runner.step_graphs import (
    SMALL_MIXED,
    Chosen,
    DecodeGraph,
    MixedGraph,
    decode_sizes,
    mixed_sizes,
)
from shoal.model_worker.sampling.device import DeviceSampler
from shoal.model_worker.step import EndedStep, IntArray, LayerFeed, PendingStep, StepPlan, StepResult, TokenLogprobs

Progress = Callable[[float], None]

_CUDA = torch.device("cuda")


class CudaRunner:
    """`step.Runner` on the current CUDA device. One thread, one stream.

    `submit` reads nothing back from the device, so that a step can be queued behind another: tokens that a step chooses
    stay there for the next one, and come to the host behind it.
    """

    max_pending_steps: int = 2

    def __init__(
        self,
        model: Model,
        config: ModelConfig,
        *,
        num_blocks: int,
        block_size: int,
        max_num_seqs: int,
        max_model_len: int,
        max_num_batched_tokens: int,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device = _CUDA,
    ) -> None:
        """Allocates the cache; `warm_up` captures the graphs, without which steps run operation by operation.

        device: another only in tests, which run the GPU's kernels in Triton's interpreter.
        """
        self._model = model
        layout = RowsLayout(config.num_layers, config.num_kv_heads, config.head_dim, block_size, dtype)
        self._shape = AttentionShape(layout, config.num_heads)
        self._kv_cache = layout.allocate(num_blocks)
        self._pages = describe_pages(self._kv_cache, self._shape)
        self._num_blocks, self._max_num_batched_tokens = num_blocks, max_num_batched_tokens
        self._device = device
        self._slots = SlotArrays(max_num_seqs, max_model_len, block_size)
        self._sampler = DeviceSampler.allocate(max_num_seqs, config.vocab_size, device)
        self._sequences = Sequences(self._slots, self._sampler, config.eos_token_ids)
        self._device_slots = DeviceSlots(max_num_seqs, self._slots.block_tables.shape[1], block_size, device)
        # Slots whose last token and count the device has: those that have sampled.
        self._on_device = np.zeros(max_num_seqs, np.bool_)
        self._mail = TokenMail(self.max_pending_steps, max_num_seqs, device)
        self._decode_graphs: dict[int, DecodeGraph] = {}
        self._mixed_graphs: dict[tuple[int, bool], MixedGraph] = {}
        """By tokens, and whether sequences of few tokens have a place."""

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

    def warm_up(self, max_graph_tokens: int = 512, progress: Progress = lambda fraction: None) -> None:
        """Compiles the kernels and captures the graphs, the largest first: the others fit in its memory.

        max_graph_tokens: the largest step that is captured other than decoding.
        """
        pool, max_num_seqs = torch.cuda.graph_pool_handle(), len(self._on_device)
        sizes = mixed_sizes(min(max_graph_tokens, self._max_num_batched_tokens), self._max_num_batched_tokens)
        decoding = decode_sizes(max_num_seqs)
        mixed = [(size, has_low) for size in sizes for has_low in (False, True) if has_low or size in SMALL_MIXED]
        num_graphs = len(mixed) + len(decoding)
        with torch.inference_mode():
            for size, has_low in reversed(mixed):
                shapes = capacity(self._shape, size, max_num_seqs, self._device, has_low=has_low)
                self._mixed_graphs[size, has_low] = MixedGraph(shapes, self._mixed_step, pool)
                progress(len(self._mixed_graphs) / num_graphs)
            for size in reversed(decoding):
                self._decode_graphs[size] = DecodeGraph(size, self._decode_step, pool)
                progress((len(mixed) + len(self._decode_graphs)) / num_graphs)
            send(staging(4, self._device), torch.empty(4, dtype=torch.int32, device=self._device))  # compiles it
            torch.cuda.synchronize()

    def submit(self, plan: StepPlan) -> PendingStep:
        """See `step.Runner.submit`."""
        with torch.inference_mode():
            self._apply_changes(plan)
            if not len(plan.slots):
                return EndedStep(StepResult(np.empty(0, np.int32), np.empty(0, np.int32), {}, {}))
            decodes = plan.samples.all() and (plan.num_tokens == 1).all() and not plan.forks
            return self._decode(plan) if decodes and plan.feed is None else self._mixed(plan)

    def _apply_changes(self, plan: StepPlan) -> None:
        for slot in plan.released:
            self._sequences.release(slot)
        for admission in plan.admitted:
            self._sequences.admit(admission)
            self._on_device[admission.slot] = False
        self._sampler.flush()
        block_copy(self._kv_cache, plan.block_copies)
        self._slots.assign(plan.assigned)
        self._device_slots.assign(plan)

    def _decode(self, plan: StepPlan) -> PendingStep:
        slots: IntArray = plan.slots.astype(np.int32, copy=False)
        state = self._slots
        if len(missing := slots[~self._on_device[slots]]):  # the last token of a prompt, computed by itself
            computed = state.num_computed[missing]
            self._device_slots.set_tokens(missing, state.token_ids[missing, computed], computed)
            self._on_device[missing] = True
        logits, token_ids = self._run_decoding(slots)
        state.num_computed[slots] += 1
        return self._mail.send(slots, token_ids, self._gather(logits, slots, token_ids), {})

    def _run_decoding(self, slots: IntArray) -> Chosen:
        for size, graph in reversed(self._decode_graphs.items()):  # the largest was captured first
            if size >= len(slots):
                return graph.run(slots)
        inputs = DecodeInputs.allocate(len(slots), self._device)
        inputs.slots.copy_(upload(slots, self._device))
        return self._decode_step(inputs)

    def _mixed(self, plan: StepPlan) -> PendingStep:
        for fork in plan.forks:
            self._sequences.fork(fork)
            self._device_slots.fork(fork.source, fork.target)
        arrays = self._arrange(plan)
        num_tokens, slots = len(arrays.tokens.token_ids), arrays.sample_slots
        self._slots.num_computed[plan.slots] += plan.num_tokens
        for fork in plan.forks:
            self._slots.num_computed[fork.target] = self._slots.num_computed[fork.source]
        self._on_device[slots] = True
        prompt_logprobs: dict[int, tuple[TokenLogprobs, ...]] = {}
        # A graph cannot wait for what is not launched yet.
        has_low = bool(len(arrays.work.low.items))
        graph = None if plan.feed is not None else self._find_graph(num_tokens, len(slots), has_low=has_low)
        if self._sequences.wants_prompt_logprobs:
            inputs = self._write(arrays, plan.feed)
            hidden = self._forward(inputs, all_rows=True, feed=plan.feed)
            prompt_logprobs = self._sequences.report_prompts(plan, arrays.tokens, hidden, self._model.compute_logits)
            logits, token_ids = self._choose(inputs, hidden[inputs["sample_rows"]])
        elif graph is not None:
            logits, token_ids = graph.run(arrays.named())
        else:
            logits, token_ids = self._mixed_step(self._write(arrays, plan.feed), plan.feed)
        return self._mail.send(slots, token_ids, self._gather(logits, slots, token_ids), prompt_logprobs)

    def _find_graph(self, num_tokens: int, num_sampled: int, *, has_low: bool) -> MixedGraph | None:
        """The smallest with room; None where none has. Those captured first, the largest, come last."""
        for (size, takes_low), graph in reversed(self._mixed_graphs.items()):
            if size >= num_tokens and graph.max_sampled >= num_sampled and takes_low >= has_low:
                return graph
        return None

    def _arrange(self, plan: StepPlan) -> StepArrays:
        tokens = lay_out(plan, self._slots, self._shape.layout.block_size)
        owners = np.repeat(tokens.slots, plan.num_tokens)
        is_unknown = tokens.positions >= self._slots.num_tokens[owners]
        token_ids = np.where(is_unknown, -1 - owners, tokens.token_ids).astype(np.int32)
        slots, rows, lens = (x[plan.samples] for x in (tokens.slots, tokens.query_starts[1:] - 1, tokens.seq_lens))
        if plan.forks:
            place = {slot: i for i, slot in enumerate(slots.tolist())}
            sources = [place[fork.source] for fork in plan.forks]
            slots = np.concatenate((slots, np.array([fork.target for fork in plan.forks], np.int32)))
            rows, lens = (np.concatenate((x, x[sources])) for x in (rows, lens))
        return StepArrays(
            tokens=replace(tokens, token_ids=token_ids),
            work=divide_step(self._shape, tokens.query_starts, tokens.seq_lens, self._device),
            sample_rows=rows,
            sample_slots=slots,
            sample_lens=lens,
        )

    def _write(self, arrays: StepArrays, feed: LayerFeed | None) -> PackedInputs:
        inputs = PackedInputs(exact(arrays), self._device)
        inputs.write(arrays.named(), beside_copies=feed is not None)
        return inputs

    def _decode_step(self, inputs: DecodeInputs) -> Chosen:
        """The device's part of a decoding step. Captured in graphs."""
        state = self._device_slots.state
        fill_inputs(inputs, state)
        attention = plan_decode(
            self._shape, self._pages, inputs.query_starts, inputs.seq_lens, state.block_tables, inputs.table_rows
        )
        batch = ForwardBatch(inputs.token_ids, inputs.positions, inputs.slot_mapping, attention)
        logits = self._model.compute_logits(self._model.forward(batch, self._kv_cache))
        token_ids = self._sampler.sample(logits, inputs.slots)
        record_tokens(state, inputs.slots, token_ids, inputs.seq_lens)
        return logits, token_ids

    def _mixed_step(self, inputs: PackedInputs, feed: LayerFeed | None = None) -> Chosen:
        """The device's part of any step. Captured in graphs."""
        return self._choose(inputs, self._forward(inputs, all_rows=False, feed=feed))

    def _forward(self, inputs: PackedInputs, *, all_rows: bool, feed: LayerFeed | None = None) -> Tensor:
        """Hidden states of all tokens, or of those that are sampled from."""
        state, token_ids = self._device_slots.state, inputs["token_ids"]
        resolve_tokens(token_ids, state)
        attention = attention_plan(self._shape, self._pages, inputs, state.block_tables)
        rows = None if all_rows else inputs["sample_rows"]
        batch = ForwardBatch(token_ids, inputs["positions"], inputs["slot_mapping"], attention, rows, feed)
        return self._model.forward(batch, self._kv_cache)

    def _choose(self, inputs: PackedInputs, hidden: Tensor) -> Chosen:
        slots = inputs["sample_slots"]
        if not len(slots):
            return hidden, slots
        logits = self._model.compute_logits(hidden)
        token_ids = self._sampler.sample(logits, slots)
        record_tokens(self._device_slots.state, slots, token_ids, inputs["sample_lens"])
        return logits, token_ids

    def _gather(self, logits: Tensor, slots: IntArray, token_ids: Tensor) -> Logprobs:
        """Begins to gather what `slots` report; their logits go with the next step."""
        if not self._sampler.reports_logprobs(slots):
            return dict
        entries = self._sampler.gather_logprobs(logits[: len(slots)], slots, token_ids[: len(slots)])
        return lambda: entries
