"""What a step of any kind reads, as integers in one buffer: one copy brings all of it to the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.kernels.paged_attention import AttentionPlan, AttentionShape
from shoal.kernels.paged_attention.gpu_plan import (
    StepWork,
    Tiling,
    launch_pieces,
    low_places,
    low_tiling,
    max_low_queries,
    tall_places,
    tall_tiling,
)
from shoal.kernels.transfers import send, staging
from shoal.model_worker.runner.flat_batch import FlatTokens
from shoal.model_worker.step import IntArray

Shapes = Mapping[str, tuple[int, ...]]

_ALIGNMENT = 4
"""Elements: kernels are compiled for pointers that are multiples of 16 bytes."""
_UNUSED = {
    "slot_mapping": -1,
    "sample_slots": -1,
    "low_items": -1,
    "low_merges": -1,
    "tall_items": -1,
    "tall_merges": -1,
}
"""What fills the places that a step leaves; elsewhere it is 0."""


@dataclass(frozen=True, slots=True)
class StepArrays:
    """A step on the host, all int32."""

    tokens: FlatTokens
    work: StepWork
    sample_rows: IntArray
    """[R] the row of `tokens` whose logits each sampled slot takes."""
    sample_slots: IntArray
    """[R]"""
    sample_lens: IntArray
    """[R] tokens with KV of each sampled slot once the step is done."""

    def named(self) -> dict[str, NDArray[np.int32]]:
        """By the names of `PackedInputs`. Tokens that only the device knows are -1 - slot already."""
        tokens, low, tall = self.tokens, self.work.low, self.work.tall
        return {
            "token_ids": tokens.token_ids,
            "positions": tokens.positions,
            "slot_mapping": tokens.slot_mapping,
            "query_starts": tokens.query_starts,
            "seq_lens": tokens.seq_lens,
            "table_rows": tokens.slots,
            "sample_rows": self.sample_rows,
            "sample_slots": self.sample_slots,
            "sample_lens": self.sample_lens,
            "low_items": low.items,
            "low_merges": low.merges,
            "tall_items": tall.items,
            "tall_merges": tall.merges,
        }


class PackedInputs:
    """Device memory for a step's arrays, each at a fixed place."""

    def __init__(self, shapes: Shapes, device: torch.device) -> None:
        self._shapes = shapes
        self._starts: dict[str, int] = {}
        size = 0
        for name, shape in shapes.items():
            self._starts[name] = size
            size += -(-prod(shape) // _ALIGNMENT) * _ALIGNMENT
        self._device = torch.empty(size, dtype=torch.int32, device=device)
        self._pinned: list[Tensor] = []
        self._unused = np.zeros(size, np.int32)
        for name, value in _UNUSED.items():
            self._place(self._unused, name)[...] = value

    def __getitem__(self, name: str) -> Tensor:
        start, shape = self._starts[name], self._shapes[name]
        return self._device[start : start + prod(shape)].view(shape)

    def write(self, arrays: Mapping[str, NDArray[np.int32]], *, beside_copies: bool = False) -> None:
        """Sends a step, without waiting. Arrays may be shorter than their places.

        beside_copies: not behind copies of other streams.
        """
        pinned = self._next_pinned()
        flat: NDArray[np.int32] = pinned.numpy()
        flat[:] = self._unused
        for name, array in arrays.items():
            place = self._place(flat, name)
            place[: len(array)] = array
            if name == "query_starts":
                place[len(array) :] = array[-1]
        if beside_copies:
            send(pinned, self._device)
        else:
            self._device.copy_(pinned, non_blocking=True)

    def _next_pinned(self) -> Tensor:
        """Memory that no copy is reading: of two, since no more than two steps are under way."""
        if len(self._pinned) < 2:
            self._pinned.append(staging(self._device.shape[0], self._device.device))
        else:
            self._pinned.reverse()
        return self._pinned[-1]

    def _place(self, flat: NDArray[np.int32], name: str) -> NDArray[np.int32]:
        start, shape = self._starts[name], self._shapes[name]
        return flat[start : start + prod(shape)].reshape(shape)


def capacity(
    shape: AttentionShape, num_tokens: int, max_num_seqs: int, device: torch.device, *, has_low: bool
) -> Shapes:
    """Places for any step of up to `num_tokens` tokens; without `has_low`, of sequences with many tokens each alone."""
    max_tall = min(max_num_seqs, num_tokens // (max_low_queries(shape) + 1))
    max_sequences = min(max_num_seqs, num_tokens) if has_low else max(1, max_tall)
    group = shape.num_heads // shape.layout.num_kv_heads
    tall_tiles = num_tokens // (tall_tiling(shape, None).rows // group) + max_tall
    tall, low = tall_places(shape, device), low_places(shape, device)
    return _shapes(
        num_tokens,
        max_sequences,
        max_sequences,
        max_sequences + low if has_low else 0,
        low if has_low else 0,
        tall_tiles + tall,
        tall,
    )


def exact(arrays: StepArrays) -> Shapes:
    """Places for this step alone."""
    low, tall = arrays.work.low, arrays.work.tall
    return _shapes(
        len(arrays.tokens.token_ids),
        len(arrays.tokens.slots),
        len(arrays.sample_slots),
        len(low.items),
        len(low.merges),
        len(tall.items),
        len(tall.merges),
    )


def attention_plan(shape: AttentionShape, pages: object, inputs: PackedInputs, block_tables: Tensor) -> AttentionPlan:
    """The plan of whatever step is written to `inputs`."""
    device = block_tables.device
    kinds: tuple[tuple[str, Tiling, int], ...] = (
        ("low", low_tiling(shape, pages), low_places(shape, device)),
        ("tall", tall_tiling(shape, pages), tall_places(shape, device)),
    )
    launches = tuple(
        launch_pieces(shape, tiling, inputs[f"{kind}_items"], inputs[f"{kind}_merges"], 2 * places)
        for kind, tiling, places in kinds
        if inputs[f"{kind}_items"].shape[0]
    )
    return AttentionPlan(
        shape, inputs["query_starts"], inputs["seq_lens"], block_tables, inputs["table_rows"], launches=launches
    )


def _shapes(
    tokens: int, sequences: int, sampled: int, low_items: int, low_merges: int, tall_items: int, tall_merges: int
) -> Shapes:
    return {
        **dict.fromkeys(("token_ids", "positions", "slot_mapping"), (tokens,)),
        "query_starts": (sequences + 1,),
        **dict.fromkeys(("seq_lens", "table_rows"), (sequences,)),
        **dict.fromkeys(("sample_rows", "sample_slots", "sample_lens"), (sampled,)),
        "low_items": (low_items, 5),
        "low_merges": (low_merges, 4),
        "tall_items": (tall_items, 5),
        "tall_merges": (tall_merges, 4),
    }
