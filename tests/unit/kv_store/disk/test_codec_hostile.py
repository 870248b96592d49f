"""Compressed forms that somebody made up or damaged: an error or so many bytes, never more memory than a payload."""

from __future__ import annotations

import resource

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.kv_store.disk import ShuffledZstd

zstandard = pytest.importorskip("zstandard")
SIZE = 4096
FORM = ShuffledZstd(2).encode(memoryview(bytes(range(16)) * (SIZE // 16)))


def peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("says_its_size", [True, False])
def test_a_form_that_unpacks_to_gigabytes_takes_no_memory(says_its_size: bool) -> None:
    packer = zstandard.ZstdCompressor(level=19, write_content_size=says_its_size).compressobj(
        size=(1 << 30) if says_its_size else -1
    )
    form = b"".join(packer.compress(bytes(1 << 20)) for _ in range(1 << 10)) + packer.flush()
    assert len(form) < 1 << 20
    before = peak_bytes()
    for size in (SIZE, 1 << 20):
        with pytest.raises(ValueError, match="holds"):
            ShuffledZstd(2).decode(memoryview(form), size)
    assert peak_bytes() - before < 64 << 20


def test_a_form_that_says_less_than_it_holds_is_refused() -> None:
    honest = zstandard.ZstdCompressor().compress(bytes(1 << 20))
    small = zstandard.ZstdCompressor().compress(bytes(SIZE))
    header = zstandard.frame_header_size(small)
    lying = small[:header] + honest[zstandard.frame_header_size(honest) :]
    with pytest.raises(ValueError, match=r"decompress|corrupt|error|holds"):
        ShuffledZstd(2).decode(memoryview(lying), SIZE)


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_damaged_forms_give_an_error_or_a_payload_of_the_right_size(data: st.DataObject) -> None:
    assert FORM is not None
    form = bytearray(FORM)
    for _ in range(data.draw(st.integers(1, 4))):
        form[data.draw(st.integers(0, len(form) - 1))] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(form)))
    for damaged in (bytes(form), bytes(form[:cut]), FORM[:cut]):
        try:
            payload = ShuffledZstd(2).decode(memoryview(damaged), SIZE)
        except ValueError:
            continue
        assert len(payload) == SIZE
