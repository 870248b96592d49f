"""Which keys no chain of a store begins with, known without asking it: a byte for each of many buckets of keys.

The store counts the first blocks of a scope's chains in shared memory, which its clients map for reading.
"""

from __future__ import annotations

from typing import Final

NUM_BUCKETS: Final = 1 << 18
"""One byte each. With 10,000 chains 4% of all other keys share a bucket with one, with 100,000 32%."""


def bucket_of(key: bytes) -> int:
    """Keys are digests: any bits of them will do."""
    return int.from_bytes(key[:4], "little") & (NUM_BUCKETS - 1)
