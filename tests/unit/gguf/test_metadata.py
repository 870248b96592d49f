"""Metadata of GGUF files: complete on good files, and an error of its own on every damaged one."""

from __future__ import annotations

import contextlib
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.gguf import GgufError, MetadataValue, SkippedArray, is_gguf, map_file, read_header, read_metadata
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
PATH = Path("m.gguf")
U32, STRING, ARRAY, U64 = 4, 8, 9, 10


def read_all(path: Path) -> Mapping[str, MetadataValue]:
    with map_file(path) as data:
        return read_metadata(path, data, keep_array=lambda _: True)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key.encode()) + struct.pack("<I", kind) + value


def file(*entries: bytes, num_tensors: int = 0, num_entries: int | None = None, version: int = 3) -> bytes:
    counts = struct.pack("<QQ", num_tensors, len(entries) if num_entries is None else num_entries)
    return b"GGUF" + struct.pack("<I", version) + counts + b"".join(entries)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "good.gguf", KEYS)


def test_every_value_is_read(good: Path) -> None:
    metadata = dict(read_all(good))
    assert metadata.pop("general.architecture") == "llama"
    assert metadata == KEYS
    assert is_gguf(good)


@pytest.mark.parametrize(
    ("kind", "layout", "value"),
    [
        *((kind, layout, 200) for kind, layout in ((0, "B"), (2, "H"), (4, "I"), (10, "Q"))),
        *((kind, layout, -100) for kind, layout in ((1, "b"), (3, "h"), (5, "i"), (11, "q"))),
        *((kind, layout, 0.5) for kind, layout in ((6, "f"), (12, "d"))),
        (7, "?", True),
    ],
)
def test_every_kind_of_scalar_is_read_alone_and_in_arrays(kind: int, layout: str, value: float) -> None:
    packed = struct.pack("<" + layout, value)
    data = file(
        entry("one", kind, packed),
        entry("two", ARRAY, struct.pack("<IQ", kind, 2) + packed * 2),
        entry("end", STRING, text(b"!")),
    )
    assert read_metadata(PATH, data, keep_array=lambda _: True) == {"one": value, "two": [value, value], "end": "!"}


def test_arrays_are_kept_by_the_callers_rule(good: Path) -> None:
    with map_file(good) as data:
        some = read_metadata(good, data, keep_array=lambda key: key.endswith("strings"))
        none = read_header(good, data).metadata
    assert some["a.strings"] == KEYS["a.strings"]
    assert none["a.strings"] == SkippedArray(3)
    skipped = {"a.ints": SkippedArray(3), "a.floats": SkippedArray(2), "a.flags": SkippedArray(2)}
    assert {key: some[key] for key in skipped} == {key: none[key] for key in skipped} == skipped
    assert (none["a.text"], none["a.count"]) == (KEYS["a.text"], 7)
    assert list(some) == list(none) == ["general.architecture", *KEYS]


def test_nothing_is_read_from_the_key_to_stop_at() -> None:
    data = file(entry("a", U32, bytes(4)), entry("b.c", ARRAY, b"never read"), num_tensors=1, num_entries=2) + bytes(30)
    assert read_metadata(PATH, data, stop_before="b.") == {"a": 0}
    with pytest.raises(GgufError, match=r"has b\.c, an array of unsupported element type"):
        read_metadata(PATH, data)


def test_header_cannot_be_changed(good: Path) -> None:
    metadata = read_all(good)
    with pytest.raises(TypeError):
        metadata["x"] = 1  # type: ignore[index]


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    assert not is_gguf(path)
    assert not is_gguf(tmp_path)
    with pytest.raises(GgufError, match=r"not a GGUF file: it begins with b'PK"):
        read_all(path)
    path.write_bytes(b"GG")
    with pytest.raises(GgufError, match="too short"):
        read_all(path)
    path.write_bytes(b"")
    with pytest.raises(GgufError, match="cannot be mapped"):
        read_all(path)
    with pytest.raises(GgufError, match="cannot be mapped"):
        read_all(tmp_path / "missing")


@pytest.mark.parametrize(("version", "named"), [(1, "version 1"), (9, "version 9"), (3 << 24, "big-endian")])
def test_other_versions_are_refused(good: Path, tmp_path: Path, version: int, named: str) -> None:
    data = bytearray(good.read_bytes())
    data[4:8] = struct.pack("<I", version)
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    with pytest.raises(GgufError, match=named):
        read_all(path)


def test_version_2_is_read() -> None:
    assert read_metadata(PATH, file(entry("a", U32, bytes(4)), version=2)) == {"a": 0}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (file(num_tensors=2**60), r"counts 1152921504606846976 tensors.* more than the file can hold \(at byte 24\)"),
        (file(num_entries=2**60), r"1152921504606846976 metadata entries, more than the file can hold \(at byte 24\)"),
        (file(num_entries=70_000) + bytes(70_000 * 13), r"70000 metadata entries; at most 1048576 and 65536 are read"),
        (file(entry("a", 99, bytes(8))), r"has a of unknown type 99 \(at byte 33\)"),
        (file(entry("a", U64, bytes(7))), r"truncated or corrupt: a takes 8 bytes, 7 are left \(at byte 37\)"),
        (file(entry("a", STRING, struct.pack("<Q", 2**63))), r"a takes 9223372036854775808 bytes, 0 are left"),
        (file(entry("a", STRING, text(b"ok\xff"))), r"not UTF-8 in a: invalid start byte \(at byte 47\)"),
        (file(text(b"\xff") + bytes(8)), r"not UTF-8 in key 0 of the metadata"),
        (file(entry("a", U32, bytes(4)), entry("a", U32, bytes(4))), r"has the metadata key a twice \(at byte 41\)"),
        (file(entry("a", ARRAY, struct.pack("<IQ", ARRAY, 1))), r"a, an array of unsupported element type 9"),
        (file(entry("a", ARRAY, struct.pack("<IQ", U32, 2**61))), r"2305843009213693952 elements of a takes"),
        (file(entry("a", ARRAY, struct.pack("<IQ", STRING, 2**61))), r"2305843009213693952 strings of a takes"),
    ],
)
@pytest.mark.parametrize("keep", [True, False])
def test_what_does_not_add_up_is_named(data: bytes, message: str, keep: bool) -> None:
    with pytest.raises(GgufError, match=message) as caught:
        read_metadata(PATH, data, keep_array=lambda _: keep)
    assert str(caught.value) == f"m.gguf: {caught.value.located_problem}"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("second", [struct.pack("<Q", 2**64 - 1), struct.pack("<Q", 9) + b"12345678", b"1234567"])
def test_strings_of_an_array_end_within_the_file(second: bytes, keep: bool) -> None:
    data = file(entry("a", ARRAY, struct.pack("<IQ", STRING, 2) + text(b"longer") + second))
    with pytest.raises(GgufError, match=r"truncated or corrupt: .*element 1 of a"):
        read_metadata(PATH, data, keep_array=lambda _: keep)


def test_kept_strings_must_be_utf_8_and_skipped_ones_need_not() -> None:
    data = file(entry("a", ARRAY, struct.pack("<IQ", STRING, 2) + text(b"x") + text(b"\xff")))
    with pytest.raises(GgufError, match=r"not UTF-8 in element 1 of a: invalid start byte \(at byte 66\)"):
        read_metadata(PATH, data, keep_array=lambda _: True)
    assert read_metadata(PATH, data) == {"a": SkippedArray(2)}


@pytest.mark.parametrize("keep", [True, False])
def test_a_file_cut_anywhere_is_damaged(good: Path, tmp_path: Path, keep: bool) -> None:
    data = good.read_bytes()
    path = tmp_path / "x.gguf"
    for size in range(len(data.rstrip(b"\0")) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(GgufError), map_file(path) as mapped:
            read_metadata(path, mapped, keep_array=lambda _: keep)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(position=st.integers(8, 300), noise=st.binary(min_size=1, max_size=9))
def test_noise_never_escapes_as_another_error(good: Path, tmp_path: Path, position: int, noise: bytes) -> None:
    data = bytearray(good.read_bytes())
    data[position : position + len(noise)] = noise
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    with contextlib.suppress(GgufError):
        read_all(path)
    with contextlib.suppress(GgufError), map_file(path) as mapped:
        read_header(path, mapped)
