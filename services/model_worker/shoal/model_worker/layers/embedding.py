"""Token embeddings."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import embedding


class Embedding:
    """A table of rows looked up by token id."""

    def __init__(self, table: Tensor) -> None:
        """table: [vocab_size, hidden]."""
        self._table = table

    def __call__(self, token_ids: Tensor) -> Tensor:
        """token_ids: [T] int32 in range; returns [T, hidden]."""
        return embedding(token_ids, self._table)
