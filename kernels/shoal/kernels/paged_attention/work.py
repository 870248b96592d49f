"""Divides a step's attention into pieces of about equal size: which query tokens over which pages. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Work:
    """What one launch computes for each KV head. Page numbers count from a sequence's start."""

    items: IntArray
    """[n, 5] sequence, first query token, first page, page after the last, part (-1: the tile is whole)."""
    merges: IntArray
    """[m, 4] sequence, first query token, first part, parts: the tiles that were split."""

    @property
    def num_parts(self) -> int:
        """Parts of all split tiles."""
        return int(self.merges[-1, 2] + self.merges[-1, 3]) if len(self.merges) else 0


def divide(
    sequences: IntArray,
    query_counts: IntArray,
    lengths: IntArray,
    *,
    tile_tokens: int,
    page_size: int,
    num_places: int,
    min_pages: int,
) -> Work:
    """Cuts the queries of some of a step's sequences into tiles, and the pages a tile sees into parts.

    sequences: [n] indices into query_counts and lengths (tokens with KV, the queries included). num_places: pieces that
    run at once; no piece reads more than half as many pages again as an equal share of them, or as min_pages where that
    is more. (Were every tile cut that is larger than a share, half of the tiles of 512 tokens over 8,192 cached ones
    would be, and make two waves of what fits in one.)
    """
    if not len(sequences):
        return Work(np.empty((0, 5), np.int32), np.empty((0, 4), np.int32))
    counts, known = query_counts[sequences].astype(np.int64), lengths[sequences].astype(np.int64)
    num_tiles = -(-counts // tile_tokens)
    of_tile = np.repeat(np.arange(len(sequences)), num_tiles)
    first = (np.arange(len(of_tile)) - np.repeat(np.cumsum(num_tiles) - num_tiles, num_tiles)) * tile_tokens
    seen = np.minimum(known[of_tile], known[of_tile] - counts[of_tile] + first + tile_tokens)
    # The longest first: it must not start last.
    order = np.argsort(-seen, kind="stable")
    of_tile, first, seen = of_tile[order], first[order], seen[order]
    pages = -(-seen // page_size)
    share = max(min_pages, -(-int(pages.sum()) // num_places))
    per_part = -(-pages // np.maximum(1, (pages + share // 2) // share))
    num_parts = -(-pages // per_part)

    tile = np.repeat(np.arange(len(of_tile)), num_parts)
    part = np.arange(len(tile)) - np.repeat(np.cumsum(num_parts) - num_parts, num_parts)
    begin = part * per_part[tile]
    is_split = num_parts > 1
    first_part = np.cumsum(np.where(is_split, num_parts, 0)) - np.where(is_split, num_parts, 0)
    items = np.stack(
        (
            sequences[of_tile[tile]],
            first[tile],
            begin,
            np.minimum(begin + per_part[tile], pages[tile]),
            np.where(is_split[tile], first_part[tile] + part, -1),
        ),
        axis=1,
    )
    merges = np.stack((sequences[of_tile], first, first_part, num_parts), axis=1)[is_split]
    return Work(items.astype(np.int32), merges.astype(np.int32))
