from __future__ import annotations

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shoal.checksum as checksum

SIZES = st.one_of(st.integers(0, 1100), st.sampled_from([4096, 65536, 65537, 300_001]))


@pytest.fixture(params=["native", "portable"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "portable":
        monkeypatch.setattr(checksum, "_native", lambda: None)
    elif checksum._native() is None:
        pytest.skip("no C compiler")


def test_the_sum_is_that_of_the_standard() -> None:
    assert checksum.crc32c(b"123456789") == 0xE3069283
    assert checksum.crc32c(b"") == 0


def test_sums_and_copies_agree_with_another_implementation() -> None:
    @given(num_bytes=SIZES, offset=st.integers(0, 65), seed=st.integers(0, 255))
    def check(num_bytes: int, offset: int, seed: int) -> None:
        data = bytes((at * 131 + seed) & 255 for at in range(num_bytes))
        expected = google_crc32c.value(data)
        shifted = memoryview(bytearray(offset) + data)[offset:]
        target = bytearray(b"\xee" * (num_bytes + 2 * offset))
        assert checksum.crc32c(shifted) == expected
        assert checksum.copy_crc32c(memoryview(target)[offset : offset + num_bytes], shifted) == expected
        assert target == b"\xee" * offset + data + b"\xee" * offset

    check()


@pytest.mark.parametrize("num_bytes", [0, 1, 255, 70_000])
def test_many_sums_at_once_are_those_of_each(num_bytes: int) -> None:
    blocks = np.random.default_rng(0).integers(0, 256, (5, num_bytes + 3), np.uint8)
    addresses = np.array([blocks[at].ctypes.data for at in (3, 0, 4)], np.uint64)
    expected = [google_crc32c.value(blocks[at, :num_bytes].tobytes()) for at in (3, 0, 4)]
    assert checksum.crc32c_each(addresses, num_bytes) == expected
    assert checksum.crc32c_each(addresses[::2], num_bytes) == expected[::2]
    assert checksum.crc32c_each(addresses[:0], num_bytes) == []


def test_a_flipped_bit_changes_the_sum() -> None:
    data = bytearray(70_000)
    right = checksum.crc32c(data)
    for at in (0, 255, 256, 65_535, 65_536, 69_999):
        data[at] ^= 4
        assert checksum.crc32c(data) != right
        data[at] ^= 4


def test_buffers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot copy 3 bytes into 2"):
        checksum.copy_crc32c(bytearray(2), b"abc")
    with pytest.raises(ValueError, match="read-only"):
        checksum.copy_crc32c(b"xyz", b"abc")
