"""The GGUF metadata reader: complete on good files, and an error of its own on every damaged one."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.tokenizer.errors import TokenizerError
from shoal.tokenizer.gguf_metadata import is_gguf, read_gguf_metadata
from support.gguf_files import write_gguf

KEYS = {
    "a.text": "naïve 日本",
    "a.flag": True,
    "a.count": 7,
    "a.strings": ["x", "", "日本"],
    "a.ints": [1, -2, 3],
    "a.floats": [0.5, -1.0],
    "a.flags": [True, False],
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "good.gguf", KEYS)


def test_every_value_is_read(good: Path) -> None:
    metadata = dict(read_gguf_metadata(good))
    assert metadata.pop("general.architecture") == "llama"
    assert metadata == KEYS
    assert is_gguf(good)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    assert not is_gguf(path)
    with pytest.raises(TokenizerError, match="not a GGUF file"):
        read_gguf_metadata(path)
    path.write_bytes(b"GG")
    with pytest.raises(TokenizerError, match="too short"):
        read_gguf_metadata(path)


@pytest.mark.parametrize(("version", "named"), [(1, "version 1"), (9, "version 9"), (3 << 24, "big-endian")])
def test_other_versions_are_refused(good: Path, tmp_path: Path, version: int, named: str) -> None:
    data = bytearray(good.read_bytes())
    data[4:8] = struct.pack("<I", version)
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    with pytest.raises(TokenizerError, match=named):
        read_gguf_metadata(path)


def test_a_file_cut_anywhere_is_damaged(good: Path, tmp_path: Path) -> None:
    data = good.read_bytes()
    path = tmp_path / "x.gguf"
    for size in range(len(data.rstrip(b"\0")) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(TokenizerError):
            read_gguf_metadata(path)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(position=st.integers(8, 300), noise=st.binary(min_size=1, max_size=9))
def test_noise_never_escapes_as_another_error(good: Path, tmp_path: Path, position: int, noise: bytes) -> None:
    data = bytearray(good.read_bytes())
    data[position : position + len(noise)] = noise
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    with contextlib.suppress(TokenizerError):
        read_gguf_metadata(path)
