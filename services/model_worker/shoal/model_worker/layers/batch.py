"""One step's tokens, as the layers see them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from shoal.kernels.paged_attention import AttentionPlan
from shoal.model_worker.step import LayerFeed


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """The tokens of all sequences of a step, one after another, with what attention needs to tell them apart."""

    token_ids: Tensor
    """[T] int32."""
    positions: Tensor
    """[T] int32: index in the sequence."""
    slot_mapping: Tensor
    """[T] int32: where the token's KV goes, block id * block_size + offset."""
    attention: AttentionPlan
    """Query starts, KV lengths and block tables of the sequences."""
    output_rows: Tensor | None = None
    """[R] int64: the tokens whose hidden states are wanted; None: all of them."""
    feed: LayerFeed | None = None
    """What to wait for before each layer's attention."""
