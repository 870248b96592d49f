"""Which stores a chain of blocks belongs to.

Rendezvous hashing (Thaler and Ravishankar, 1998): of a unit every host has a score, and the highest ones have it. When
a host comes or goes, units move only to it or from it.

The unit. A block is visible only while its parent is, so a store is of use only if it has a chain from its first block
on. A whole chain's last key would do, but changes with every block; the first block's key does not, but whole
applications share their first blocks. So a chain belongs to its deepest anchor: the block at depth 1, 4, 16, 64, ... A
conversation that grows by a block stays where it is; one that grows fourfold moves on, and copying it then adds a third
at most to what is copied in all. Conversations that share a system prompt of 250 blocks part at 256. What many share is
on all of their stores, once on each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Final

GROWTH: Final = 4
"""From one anchor's depth to the next."""


def anchors(keys: Sequence[bytes]) -> list[bytes]:
    """The keys of a chain that is given from its first block on, by which stores may have it; the deepest first."""
    found = []
    depth = 1
    while depth <= len(keys):
        found.append(keys[depth - 1])
        depth *= GROWTH
    return found[::-1]


def rank(unit: bytes, hosts: Iterable[str], num: int) -> list[str]:
    """The hosts that a unit belongs to, foremost first, at most `num`. Equal for everybody who has the same hosts."""
    return sorted(hosts, key=lambda host: (_score(unit, host), host), reverse=True)[:num]


def candidates(keys: Sequence[bytes], hosts: Sequence[str], num_replicas: int) -> list[str]:
    """Every host that may have leading blocks of a chain, likeliest first, each once."""
    found: dict[str, None] = {}
    for unit in anchors(keys):
        found.update(dict.fromkeys(rank(unit, hosts, num_replicas)))
        if len(found) == len(hosts):
            break
    return list(found)


def _score(unit: bytes, host: str) -> int:
    return int.from_bytes(blake2b(unit, digest_size=8, key=_name(host)).digest(), "big")


def _name(host: str) -> bytes:
    """At most 64 bytes, which is what a key of blake2b may have."""
    name = host.encode()
    return name if len(name) <= 64 else blake2b(name, digest_size=64).digest()
