from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shoal.kernels.paged_attention.work import divide

SEQUENCES = st.lists(st.tuples(st.integers(1, 300), st.integers(0, 2000)), min_size=1, max_size=12)


@given(
    sequences=SEQUENCES,
    tile_tokens=st.sampled_from([1, 4, 32]),
    page_size=st.sampled_from([16, 64]),
    num_places=st.integers(1, 64),
    min_pages=st.integers(1, 9),
)
def test_every_query_token_sees_every_page_once(
    sequences: list[tuple[int, int]], tile_tokens: int, page_size: int, num_places: int, min_pages: int
) -> None:
    counts = np.array([count for count, _ in sequences], np.int32)
    lengths = np.array([count + cached for count, cached in sequences], np.int32)
    chosen = np.arange(len(sequences), dtype=np.int32)[::-1].copy()
    sizes = {"tile_tokens": tile_tokens, "page_size": page_size, "num_places": num_places, "min_pages": min_pages}
    work = divide(chosen, counts, lengths, **sizes)
    pages_of: dict[tuple[int, int], list[int]] = {}
    parts_of: dict[tuple[int, int], list[int]] = {}
    for sequence, first, begin, end, part in work.items.tolist():
        assert begin < end
        pages_of.setdefault((sequence, first), []).extend(range(begin, end))
        parts_of.setdefault((sequence, first), []).append(part)
    expected = {
        (sequence, first): -(-min(length, length - count + first + tile_tokens) // page_size)
        for sequence, (count, length) in enumerate(zip(counts.tolist(), lengths.tolist(), strict=True))
        for first in range(0, count, tile_tokens)
    }
    assert {tile: sorted(pages) for tile, pages in pages_of.items()} == {
        tile: list(range(num_pages)) for tile, num_pages in expected.items()
    }
    merges = {
        (sequence, first): list(range(begin, begin + parts)) for sequence, first, begin, parts in work.merges.tolist()
    }
    assert {tile: parts for tile, parts in parts_of.items() if len(parts) > 1} == merges
    assert all(parts == [-1] for tile, parts in parts_of.items() if tile not in merges)
    all_parts = [part for parts in merges.values() for part in parts]
    assert all_parts == list(range(work.num_parts))
    assert len(work.items) <= len(expected) + num_places


def test_no_piece_is_much_larger_than_an_equal_share() -> None:
    counts, lengths = np.array([1, 64, 1], np.int32), np.array([32_000, 8_256, 40], np.int32)
    work = divide(
        np.arange(3, dtype=np.int32), counts, lengths, tile_tokens=32, page_size=64, num_places=33, min_pages=2
    )
    sizes = work.items[:, 3] - work.items[:, 2]
    assert sizes.max() <= 1.5 * -(-sizes.sum() // 33)
    assert sizes[:-1].min() >= 2


def test_tiles_of_nearly_equal_size_are_left_whole_where_they_fit() -> None:
    counts, lengths = np.array([512], np.int32), np.array([8704], np.int32)
    work = divide(np.zeros(1, np.int32), counts, lengths, tile_tokens=32, page_size=64, num_places=16, min_pages=8)
    assert len(work.items) == 16
    assert not len(work.merges)
