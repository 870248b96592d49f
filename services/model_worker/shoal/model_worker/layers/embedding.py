"""Token embeddings."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import embedding


class Embedding:
    """A table of rows looked up by token id."""

    def __init__(self, table: Tensor, scale: float | None = None) -> None:
        """table: [vocab_size, hidden]. scale: rows are multiplied by it."""
        self._table, self._scale = table, scale

    def __call__(self, token_ids: Tensor) -> Tensor:
        """token_ids: [T] int32 in range; returns [T, hidden], which the caller owns."""
        rows = embedding(token_ids, self._table)
        return rows if self._scale is None else rows.mul_(self._scale)
