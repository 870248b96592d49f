"""KeyChain: the same keys as block by block, natively and in Python."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.blocks import KeyChain, block_keys, chain, namespace_key, native_hash_chain
from shoal.native import NativeBuildError

PARENT = namespace_key("m", "l")
tokens_lists = st.lists(st.integers(0, 2**32 - 1), max_size=80)


@pytest.fixture(params=["native", "python"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "python":
        monkeypatch.setattr(chain, "native_hash_chain", lambda: None)
    elif native_hash_chain() is None:
        pytest.skip("no C compiler or no libcrypto here")
    return str(request.param)


def test_golden_values(form: str) -> None:
    """Services of different versions share blocks by these: they change only with the version in the formula."""
    parent = namespace_key("0" * 64, "cpu-bf16-v1", tenant_salt=b"tenant")
    keys = list(KeyChain(parent, range(100, 148), 16))
    assert parent.hex() == "aba2b54a511c601a5dd2faeb7b42dc40"
    assert [key.hex() for key in keys] == [
        "4ec323085d1a01cebaa106107793efd9",
        "b797067b6711ad50fbb249bd1b69e7da",
        "3d87d2a143042bfa68687b38ff622abd",
    ]


def test_a_chain_is_the_blocks_one_by_one(form: str) -> None:
    @given(tokens_lists, st.integers(1, 9), st.lists(st.integers(0, 90), max_size=5))
    def check(tokens: list[int], block_size: int, stops: list[int]) -> None:
        keys = KeyChain(PARENT, tokens, block_size)
        expected = block_keys(PARENT, tokens, block_size)
        assert len(keys) == len(expected)
        most = 0
        for stop in stops:
            most = max(most, min(stop, len(keys)))
            assert keys.hash_to(stop) == keys.num_hashed == most
        assert list(keys) == expected == list(keys)
        assert list(KeyChain.of(expected)) == expected

    check()


def test_no_blocks() -> None:
    assert list(KeyChain(PARENT, [1, 2, 3], 4)) == list(KeyChain(PARENT, [1, 2, 3], 0)) == list(KeyChain.of([])) == []


def test_what_is_no_key_or_token_is_refused() -> None:
    with pytest.raises(ValueError, match="a parent key has 16 bytes, not 3"):
        KeyChain(b"abc", [1], 1)
    with pytest.raises(ValueError, match="a block key has 16 bytes, not 1"):
        KeyChain.of([PARENT, b"a"])
    for token in (-1, 2**32):
        with pytest.raises(OverflowError):
            KeyChain(PARENT, [token], 1)


def test_without_a_compiler_python_hashes_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise NativeBuildError("there is no C compiler")

    monkeypatch.setattr(chain, "build", refuse)
    with caplog.at_level(logging.WARNING):
        assert native_hash_chain.__wrapped__() is None
    assert "there is no C compiler" in caplog.text


def test_a_library_that_computes_something_else_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(chain, "_bind", lambda: lambda *_: None)
    with caplog.at_level(logging.WARNING):
        assert native_hash_chain.__wrapped__() is None
    assert "computes something else" in caplog.text


def test_parts_of_a_chain_travel_packed() -> None:
    chain = KeyChain(bytes(16), list(range(40)), 4)
    keys = list(KeyChain(bytes(16), list(range(40)), 4))
    assert chain.packed(2, 5) == b"".join(keys[2:5])
    assert chain.num_hashed == 5
    assert (chain.packed(0, 2), chain.packed(8, 99), chain.packed(10, 12)) == (
        b"".join(keys[:2]),
        b"".join(keys[8:]),
        b"",
    )
    assert list(KeyChain.unpacked(chain.packed(2, 5))) == keys[2:5]
