"""Block keys: the one name that gateway, worker and KV store use for a KV block, so that nothing is translated.

A key is a chain: it commits to the block's tokens, to everything before them and, through the namespace key at the
start, to whatever else changes KV bytes (model, layout, dtype, adapter, tenant). Only full blocks have keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Final

from shoal.blocks.chain import KeyChain as KeyChain
from shoal.blocks.chain import join_keys as join_keys
from shoal.blocks.chain import native_hash_chain as native_hash_chain
from shoal.blocks.words import KEY_BYTES as KEY_BYTES
from shoal.blocks.words import to_words

_DOMAIN: Final = b"shoal.kv.v1"


def namespace_key(model_digest: str, kv_layout: str, adapter_digest: str = "", tenant_salt: bytes = b"") -> bytes:
    """The parent of every sequence's first block, 16 bytes.

    `tenant_salt` comes from the authenticated tenant, never from a request body: equal salts share cached blocks.
    Each part goes in with its length, so that no two different tuples have the same bytes.
    """
    digest = hashlib.sha256(_DOMAIN)
    for part in (model_digest.encode(), kv_layout.encode(), adapter_digest.encode(), tenant_salt):
        digest.update(len(part).to_bytes(4, "little"))
        digest.update(part)
    return digest.digest()[:KEY_BYTES]


def tenant_salt(name: str) -> bytes:
    """The salt of the tenant whose API keys have this name, 32 bytes. A gateway sends it with the tenant's requests."""
    return hashlib.sha256(f"tenant:{name}".encode()).digest()


def block_key(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The key of one full block of `tokens` that follows `parent`, 16 bytes. Token ids fit 32 bits unsigned."""
    return hashlib.sha256(parent + to_words(tokens).tobytes()).digest()[:KEY_BYTES]


def iter_block_keys(parent: bytes, tokens: Sequence[int], block_size: int) -> Iterator[bytes]:
    """Keys of the full blocks of `tokens`, in order; a remainder shorter than `block_size` has none."""
    yield from iter_word_keys(parent, to_words(tokens).tobytes(), block_size)


def iter_word_keys(parent: bytes, data: bytes, block_size: int) -> Iterator[bytes]:
    """`iter_block_keys` of tokens that are little-endian 32-bit words already."""
    step = 4 * block_size
    sha256 = hashlib.sha256
    for end in range(step, len(data) + 1, step):
        parent = sha256(parent + data[end - step : end]).digest()[:KEY_BYTES]
        yield parent


def block_keys(parent: bytes, tokens: Sequence[int], block_size: int) -> list[bytes]:
    """`iter_block_keys` as a list."""
    return list(iter_block_keys(parent, tokens, block_size))
