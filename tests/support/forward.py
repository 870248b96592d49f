"""Runs a loaded model outside of a runner."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from shoal.kernels.kv_layout import KVLayout
from shoal.kernels.paged_attention import AttentionShape, plan_attention
from shoal.model_worker.layers.batch import ForwardBatch
from shoal.model_worker.loader import LoadedModel

_BLOCK_SIZE = 16


def forward_logits(loaded: LoadedModel, token_ids: Tensor, output_rows: Tensor | None = None) -> Tensor:
    """float32 [tokens, vocab_size] of one sequence, computed in one step. token_ids: [tokens].

    With output_rows [R], only theirs.
    """
    return PagedForward(loaded, 1, len(token_ids)).step({0: token_ids}, output_rows)


class PagedForward:
    """Sequences that grow step by step in one paged cache. Their blocks are interleaved."""

    def __init__(self, loaded: LoadedModel, num_sequences: int, max_tokens: int) -> None:
        config = loaded.config
        layout = KVLayout(config.num_layers, config.num_kv_heads, config.head_dim, _BLOCK_SIZE, loaded.dtype)
        self._model, self._shape = loaded.model, AttentionShape(layout, config.num_heads)
        num_blocks = -(-max_tokens // _BLOCK_SIZE) * num_sequences
        self._cache = layout.allocate(num_blocks)
        self._tables = torch.arange(num_blocks, dtype=torch.int32).view(-1, num_sequences).T.contiguous()
        self._lengths = [0] * num_sequences

    def step(self, tokens: Mapping[int, Tensor], output_rows: Tensor | None = None) -> Tensor:
        """Logits [T, vocab_size] of some sequences' next tokens, one sequence after another; see `forward_logits`."""
        positions, slots, starts = [], [], [0]
        for sequence, token_ids in tokens.items():
            own = torch.arange(self._lengths[sequence], self._lengths[sequence] + len(token_ids))
            positions.append(own)
            slots.append(self._tables[sequence, own // _BLOCK_SIZE] * _BLOCK_SIZE + own % _BLOCK_SIZE)
            starts.append(starts[-1] + len(token_ids))
            self._lengths[sequence] += len(token_ids)
        plan = plan_attention(
            self._shape,
            torch.tensor(starts, dtype=torch.int32),
            torch.tensor([self._lengths[sequence] for sequence in tokens], dtype=torch.int32),
            self._tables,
            torch.tensor(list(tokens), dtype=torch.int32),
        )
        with torch.inference_mode():
            flat = torch.cat(list(tokens.values())).int()
            batch = ForwardBatch(flat, torch.cat(positions).int(), torch.cat(slots).int(), plan, output_rows)
            return self._model.compute_logits(self._model.forward(batch, self._cache))
