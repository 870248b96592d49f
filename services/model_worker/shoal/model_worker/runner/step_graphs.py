"""CUDA graphs of whole steps, from slot numbers or tokens to chosen tokens: one launch where a model has hundreds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.kernels.step_inputs import DecodeInputs
from shoal.model_worker.runner.packed_inputs import PackedInputs, Shapes
from shoal.model_worker.step import IntArray

_Inputs = TypeVar("_Inputs")

Chosen = tuple[Tensor, Tensor]
"""Logits [N, vocab_size] float32 and chosen tokens [N] int32, valid until another step begins."""

SMALL_MIXED = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Tokens of steps in which two launches a layer count: captured without those for sequences of few tokens, too."""


def decode_sizes(max_num_seqs: int) -> tuple[int, ...]:
    """Sequences of the decoding steps that are captured: every number to 8, then steps of about an eighth."""
    sizes = [1, 2, 3, 4, 5, 6, 7, 8]
    while sizes[-1] < max_num_seqs:
        sizes.append(sizes[-1] + max(8, 1 << (sizes[-1].bit_length() - 4)))
    return (*(size for size in sizes if size < max_num_seqs), max_num_seqs)


def mixed_sizes(max_tokens: int, max_num_batched_tokens: int) -> tuple[int, ...]:
    """Tokens of the other steps that are captured, up to `max_tokens`; a full step too if it is not more than that."""
    sizes = list(SMALL_MIXED)
    while sizes[-1] < max_tokens:  # steps of a third to a half
        power = 1 << sizes[-1].bit_length()
        sizes += [power // 4 * 3, power]
    limit = min(max_tokens, max_num_batched_tokens)
    return (*(size for size in sizes if size < limit), limit)


class DecodeGraph:
    """A step of up to `size` sequences that compute one token each, which the device knows."""

    def __init__(self, size: int, step: Callable[[DecodeInputs], Chosen], pool: Any) -> None:
        self._inputs = DecodeInputs.allocate(size, torch.device("cuda"))
        self._last = b""
        self._graph, self._chosen = _capture(step, self._inputs, pool)

    def run(self, slots: IntArray) -> Chosen:
        """Has the device compute a step of `slots`; returns at once."""
        if (key := slots.tobytes()) != self._last:
            places = torch.full(self._inputs.slots.shape, -1, dtype=torch.int32, pin_memory=True)
            places.numpy()[: len(slots)] = slots
            self._inputs.slots.copy_(places, non_blocking=True)
            self._last = key
        self._graph.replay()
        return self._chosen


class MixedGraph:
    """Any step for which there is room."""

    def __init__(self, shapes: Shapes, step: Callable[[PackedInputs], Chosen], pool: Any) -> None:
        self.max_sampled = shapes["sample_slots"][0]
        """Tokens that a step may choose."""
        self._inputs = PackedInputs(shapes, torch.device("cuda"))
        self._inputs.write({})
        self._graph, self._chosen = _capture(step, self._inputs, pool)

    def run(self, arrays: Mapping[str, NDArray[np.int32]]) -> Chosen:
        """Has the device compute a step; returns at once. arrays: as `StepArrays.named`."""
        self._inputs.write(arrays)
        self._graph.replay()
        return self._chosen


def _capture(step: Callable[[_Inputs], Chosen], inputs: _Inputs, pool: Any) -> tuple[torch.cuda.CUDAGraph, Chosen]:
    step(inputs)  # compiles, and lets libraries allocate outside of the graph
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        chosen = step(inputs)
    return graph, chosen
