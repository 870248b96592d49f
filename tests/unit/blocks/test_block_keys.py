"""Block keys: the golden values every service depends on, and the properties that make them safe."""

from __future__ import annotations

import hashlib
import struct

from hypothesis import given
from hypothesis import strategies as st

from shoal.blocks import KEY_BYTES, block_key, block_keys, namespace_key

tokens_lists = st.lists(st.integers(0, 2**32 - 1), max_size=64)


def test_keys_follow_the_published_formula() -> None:
    parent = namespace_key("m", "l", "a", b"t")
    tokens = [1, 2, 65536, 4294967295]
    first = hashlib.sha256(parent + struct.pack("<2I", 1, 2)).digest()[:16]
    second = hashlib.sha256(first + struct.pack("<2I", 65536, 4294967295)).digest()[:16]
    assert block_keys(parent, tokens, 2) == [first, second]
    assert block_key(first, tokens[2:]) == second


def test_namespace_key_is_stable() -> None:
    """Stored blocks outlive processes: this value changes only together with the version in the formula."""
    assert (
        namespace_key("digest", "cpu-bf16-v1").hex()
        == hashlib.sha256(
            b"shoal.kv.v1" + b"".join(struct.pack("<I", len(p)) + p for p in (b"digest", b"cpu-bf16-v1", b"", b""))
        ).hexdigest()[: 2 * KEY_BYTES]
    )


@given(st.tuples(*[st.text(max_size=4)] * 3), st.tuples(*[st.text(max_size=4)] * 3))
def test_different_namespaces_have_different_keys(a: tuple[str, str, str], b: tuple[str, str, str]) -> None:
    assert (namespace_key(*a) == namespace_key(*b)) == (a == b)


@given(tokens_lists, tokens_lists, st.integers(1, 8))
def test_keys_are_equal_exactly_as_far_as_tokens_are(a: list[int], b: list[int], block_size: int) -> None:
    parent = namespace_key("m", "l")
    pairs = zip(block_keys(parent, a, block_size), block_keys(parent, b, block_size), strict=False)
    for index, (key_a, key_b) in enumerate(pairs):
        end = (index + 1) * block_size
        assert (key_a == key_b) == (a[:end] == b[:end])


@given(tokens_lists, st.integers(1, 8))
def test_only_full_blocks_have_keys(tokens: list[int], block_size: int) -> None:
    assert len(block_keys(b"\0" * 16, tokens, block_size)) == len(tokens) // block_size
