"""Tensor infos of GGUF files, against the `gguf` package's reader."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.gguf import GgufError, GgufHeader, SkippedArray, TensorInfo, map_file, read_header, read_metadata
from support.model import smollm2_path

PATH = Path("m.gguf")
VOCABULARY = "tokenizer.ggml.tokens"


def write_tensors(path: Path, alignment: int | None = None) -> bytes:
    writer = gguf.GGUFWriter(path, "llama")
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    writer.add_tensor("matrix", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("blocks", np.zeros((4, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("cube", np.ones((2, 3, 4, 5), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def check_against_package(path: Path, header: GgufHeader) -> None:
    reader = gguf.GGUFReader(path)
    assert header.data_start == reader.data_offset
    assert list(header.tensors.values()) == [
        TensorInfo(
            tensor.name,
            tuple(int(size) for size in tensor.shape[::-1]),
            int(tensor.tensor_type),
            int(tensor.data_offset) - reader.data_offset,
        )
        for tensor in reader.tensors
    ]
    assert list(header.tensors) == [tensor.name for tensor in reader.tensors]


@pytest.mark.parametrize("alignment", [None, 8, 256])
def test_infos_equal_the_packages(alignment: int | None, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    data = write_tensors(path, alignment)
    header = read_header(path, data)
    check_against_package(path, header)
    assert header.data_start % (alignment or 32) == 0
    matrix = header.tensors["matrix"]
    assert (matrix.shape, matrix.type_code) == ((2, 3), gguf.GGMLQuantizationType.F32)
    values = np.frombuffer(data, np.float32, 6, header.data_start + matrix.offset)
    np.testing.assert_array_equal(values, np.arange(6))


def test_real_model_equals_the_packages() -> None:
    path = smollm2_path()
    with map_file(path) as data:
        header = read_header(path, data)
        tokens = read_metadata(path, data, keep_array=lambda key: key == VOCABULARY)[VOCABULARY]
    check_against_package(path, header)
    assert header.metadata["general.architecture"] == "llama"
    assert header.metadata[VOCABULARY] == SkippedArray(49152)
    assert isinstance(tokens, list)
    assert len(tokens) == 49152


def file(*infos: bytes, alignment: bytes | None = None) -> bytes:
    """A file without tensor data; `alignment` is the type and value of general.alignment."""
    key = b"general.alignment"
    entry = b"" if alignment is None else struct.pack("<Q", len(key)) + key + alignment
    return b"GGUF" + struct.pack("<IQQ", 3, len(infos), int(alignment is not None)) + entry + b"".join(infos)


def info(name: bytes = b"t", sizes: tuple[int, ...] = (1,), offset: int = 0) -> bytes:
    layout = f"<Q{len(name)}sI{len(sizes)}QIQ"
    return struct.pack(layout, len(name), name, len(sizes), *sizes, 7, offset)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (file(info(), info()), r"has the tensor t twice \(at byte 57\)"),
        (file(info(sizes=())) + bytes(64), r"tensor t with 0 dimensions; 1 to 4 are allowed \(at byte 24\)"),
        (file(info(sizes=(1,) * 5)), r"tensor t with 5 dimensions"),
        (file(info(offset=33)), r"tensor t at offset 33, not a multiple of the alignment 32"),
        (file(info(b"\xff")), r"not UTF-8 in name of tensor 0"),
        (file(info())[:-1], r"truncated"),
        (file(info(sizes=(1, 1)))[:-1], r"truncated or corrupt: tensor t takes 28 bytes, 27 are left"),
        (file(info(b"long name"))[:38], r"truncated"),
        (file(alignment=struct.pack("<II", 4, 0)), r"general.alignment 0, which must be a power of two"),
        (file(alignment=struct.pack("<II", 4, 48)), r"general.alignment 48, "),
        (file(alignment=struct.pack("<Ii", 5, -32)), r"general.alignment -32, "),
        (file(alignment=struct.pack("<If", 6, 32.0)), r"general.alignment 32.0, "),
        (file(alignment=struct.pack("<I?", 7, True)), r"general.alignment True, "),
        (file(alignment=struct.pack("<IIQ", 9, 4, 0)), r"general.alignment SkippedArray\(length=0\), "),
    ],
)
def test_what_does_not_add_up_is_named(data: bytes, message: str) -> None:
    with pytest.raises(GgufError, match=message):
        read_header(PATH, data)


def test_metadata_is_read_without_the_tensors() -> None:
    data = file(info(sizes=(1,) * 5), alignment=struct.pack("<II", 4, 48))
    assert read_metadata(PATH, data) == {"general.alignment": 48}


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_tensors(tmp_path_factory.mktemp("gguf") / "m.gguf", 64)


def test_a_header_cut_anywhere_is_damaged(valid: bytes) -> None:
    begin = valid.index(b"cube") + 4 + struct.calcsize("<I4QIQ")
    assert "cube" in read_header(PATH, valid[:begin]).tensors
    for size in range(begin):
        with pytest.raises(GgufError):
            read_header(PATH, valid[:size])


@given(position=st.integers(0, 320), noise=st.binary(min_size=1, max_size=9), size=st.integers(0, 400))
def test_noise_never_escapes_as_another_error(valid: bytes, position: int, noise: bytes, size: int) -> None:
    data = valid[:position] + noise + valid[position + len(noise) :]
    with contextlib.suppress(GgufError):
        read_header(PATH, data)
    with contextlib.suppress(GgufError):
        read_header(PATH, data[:size])
