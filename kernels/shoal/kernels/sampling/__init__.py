"""From logits to tokens without the host: parameters and histories lie on the device, by slot.

Per row, in this order: logit bias, stop tokens forbidden before min_tokens, penalties; then the first of the largest
logits, or temperature, min_p, top_k, top_p, typical_p and one draw. Filters are thresholds that keep ties. The draw
inverts the cumulative distribution, in the vocabulary's order, at one number in [0, 1) that Philox-4x32-10 gives for
(seed; output position, choice, 0, 0). A row's token depends on its logits and its slot's state, and on nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shoal.kernels.sampling import reference, tuning

__all__ = [
    "BIASED", "FILTERED", "GREEDY", "IN_PROMPT", "MAX_BIASES", "MAX_STOP_IDS", "PENALIZED", "SLOT_DTYPE", "SLOT_WORDS",
    "SamplingState", "SamplingWorkspace", "reference", "sample",
]  # fmt: skip

MAX_BIASES = 1024
"""Logit biases of one slot."""
MAX_STOP_IDS = 512
"""Stop tokens of one slot that are forbidden before min_tokens."""

BIASED, PENALIZED, GREEDY, FILTERED = 1, 2, 4, 8
"""Bits of a slot's flags: it has logit biases; a penalty that is not neutral; takes the largest logit; has a filter."""

SLOT_DTYPE = np.dtype(
    [
        ("flags", np.int32),
        ("temperature", np.float32),  # above 0, unless GREEDY
        ("min_p", np.float32),  # 0: off
        ("top_k", np.int32),  # 0: off; at most the vocabulary
        ("top_p", np.float32),  # 1: off
        ("typical_p", np.float32),  # 1: off
        ("frequency_penalty", np.float32),
        ("presence_penalty", np.float32),
        ("repetition_penalty", np.float32),  # above 0; 1: off
        ("choice", np.int32),
        ("seed", np.uint64),
        ("num_outputs", np.int32),  # output tokens so far; `sample` adds one
        ("min_tokens", np.int32),
        ("num_biases", np.int32),
        ("num_stop_ids", np.int32),
    ]
)
"""One slot's scalars, 64 bytes, as `SamplingState.slots` holds them."""

SLOT_WORDS = SLOT_DTYPE.itemsize // 4
IN_PROMPT = -(1 << 15)
"""The bit of a token count for tokens of the prompt that the output does not have; the other 15 count the output's."""


@dataclass(frozen=True, slots=True)
class SamplingState:
    """Of every slot, on one device. Ids lie in rising order, each once; entries beyond a slot's count mean nothing."""

    slots: Tensor
    """[slots, 16] int32: a `SLOT_DTYPE` each."""
    bias_ids: Tensor
    """[slots, MAX_BIASES] int32."""
    bias_values: Tensor
    """[slots, MAX_BIASES] float32."""
    stop_ids: Tensor
    """[slots, MAX_STOP_IDS] int32."""
    counts: Tensor
    """[slots, vocab_size] int16: occurrences in the output (no more than 32,767), and `IN_PROMPT`. Only slots with
    PENALIZED read and write theirs. Nearly all of the state: 77.8 MB for 256 slots of 151,936 tokens."""

    @classmethod
    def allocate(cls, num_slots: int, vocab_size: int, device: torch.device) -> SamplingState:
        """All zeros: no slot may be sampled before its row in `slots` is written."""

        def zeros(columns: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros((num_slots, columns), dtype=dtype, device=device)

        return cls(
            zeros(SLOT_WORDS, torch.int32),
            zeros(MAX_BIASES, torch.int32),
            zeros(MAX_BIASES, torch.float32),
            zeros(MAX_STOP_IDS, torch.int32),
            zeros(vocab_size, torch.int16),
        )


@dataclass(frozen=True, slots=True)
class SamplingWorkspace:
    """Memory that `sample` overwrites. Steps on one stream can share it. Reading it afterwards is for tests."""

    edited: Tensor
    """[rows, vocab_size] float32: logits of rows whose logits are changed. 155.6 MB for 256 rows of 151,936."""
    largest: Tensor
    """[rows, chunks] float32: the largest logit of each chunk."""
    argmax: Tensor
    """[rows, chunks] int32: the first token that has it."""
    masses: Tensor
    """[rows, chunks] float32: the chunk's sum of exp((logit - largest) / temperature)."""
    values: Tensor
    """[rows, chunk] float32: logits that a filter must look at more closely."""
    ids: Tensor
    """[rows, chunk] int32: their tokens, rising."""

    @classmethod
    def allocate(
        cls, num_rows: int, vocab_size: int, device: torch.device, chunk: int | None = None
    ) -> SamplingWorkspace:
        """For up to `num_rows` rows. `chunk` (a power of two) is for tests, which have small vocabularies."""
        chunk = tuning.choose(device, vocab_size).chunk if chunk is None else chunk

        def empty(columns: int, dtype: torch.dtype) -> Tensor:
            return torch.empty((num_rows, columns), dtype=dtype, device=device)

        chunks = -(-vocab_size // chunk)
        return cls(
            empty(vocab_size, torch.float32),
            empty(chunks, torch.float32),
            empty(chunks, torch.int32),
            empty(chunks, torch.float32),
            empty(chunk, torch.float32),
            empty(chunk, torch.int32),
        )


def sample(logits: Tensor, slots: Tensor, state: SamplingState, workspace: SamplingWorkspace) -> Tensor:
    """[N] int32: one token for each row of `logits` (float32 [N, vocab_size], left as it is).

    Row i belongs to slot slots[i] ([N] int32, distinct, -1 in unused places, which get 0 and cost nothing). The slots'
    num_outputs grow by one, and the penalties' counts by their tokens. NaN counts as -inf; a row of nothing else gives
    token 0. Can be captured in a CUDA graph. ValueError if a shape does not fit.
    """
    rows, vocab_size = logits.shape
    if slots.shape != (rows,) or vocab_size != state.counts.shape[1] or vocab_size != workspace.edited.shape[1]:
        raise ValueError(
            f"logits {tuple(logits.shape)}, slots {tuple(slots.shape)}, state for {state.counts.shape[1]} tokens and "
            f"workspace for {workspace.edited.shape[1]} do not fit; need [N, V], [N], V and V"
        )
    if rows > workspace.edited.shape[0]:
        raise ValueError(f"{rows} rows are too many for a workspace of {workspace.edited.shape[0]}")
    if logits.dtype != torch.float32 or slots.dtype != torch.int32 or logits.stride(1) != 1:
        raise ValueError(
            f"need float32 logits with adjacent columns and int32 slots, not {logits.dtype}, {slots.dtype}"
        )
    if logits.is_cuda:
        from shoal.kernels.sampling import triton_impl

        return triton_impl.sample(logits, slots, state, workspace)
    return reference.sample(logits, slots, state)
