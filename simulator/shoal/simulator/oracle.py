"""What one cache for the whole mesh would hit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from shoal.simulator.trace import TRACE_BLOCK, TraceRequest


def oracle_hit_tokens(trace: Sequence[TraceRequest], *, num_blocks: int, block_size: int) -> list[int]:
    """Hit tokens of each request if all workers shared one cache of `num_blocks` blocks, least recently used first out.

    More than any router can reach: a prompt is cached the moment it arrives, output takes no room, and nothing is held.
    A prompt's end goes out before its start, as in the workers. `block_size` divides a trace's block.
    """
    if TRACE_BLOCK % block_size:
        raise ValueError(f"block_size is {block_size}; it must divide {TRACE_BLOCK}")
    per_id = TRACE_BLOCK // block_size
    cache: OrderedDict[int, None] = OrderedDict()
    hits = []
    for request in trace:
        num_full = request.input_length // block_size
        keys = [hash_id * per_id + j for hash_id in request.hash_ids for j in range(per_id)][:num_full]
        num_hit = next((i for i, key in enumerate(keys) if key not in cache), len(keys))
        # The last token of a prompt is always computed.
        hits.append(min(num_hit, (request.input_length - 1) // block_size) * block_size)
        for key in reversed(keys):
            cache[key] = None
            cache.move_to_end(key)
        while len(cache) > num_blocks:
            cache.popitem(last=False)
    return hits
