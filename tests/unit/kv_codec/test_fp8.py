"""Block codecs: the same numbers as torch's own conversion, one size, and nothing else accepted."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.kv_codec import NAMES, BlockShape, make_codec

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def shape_of(dtype: str, num_groups: int = 6, group_elements: int = 32) -> BlockShape:
    return BlockShape(num_groups, group_elements, dtype)  # type: ignore[arg-type]


def encode(name: str, values: torch.Tensor, dtype: str) -> bytearray:
    codec = make_codec(name, shape_of(dtype, *values.shape))
    stored = bytearray(codec.stored_bytes)
    codec.encode(values.to(DTYPES[dtype]).contiguous().view(torch.uint8).numpy().tobytes(), stored)
    return stored


def decode(name: str, stored: bytearray, dtype: str, num_groups: int, group_elements: int) -> torch.Tensor:
    codec = make_codec(name, shape_of(dtype, num_groups, group_elements))
    payload = bytearray(
        codec.stored_bytes if name == "none" else shape_of(dtype, num_groups, group_elements).payload_bytes
    )
    codec.decode(stored, payload)
    return torch.frombuffer(payload, dtype=DTYPES[dtype]).view(num_groups, group_elements).float()


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=st.integers(0, 1 << 32), spread=st.integers(0, 60))
@settings(max_examples=40, deadline=None)
def test_codes_are_those_of_torch(dtype: str, seed: int, spread: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(6, 32, generator=generator) * 2.0 ** (spread * torch.randn(6, 32, generator=generator) / 8)
    values = (values * 10.0 ** torch.randint(-20, 20, (6, 1), generator=generator)).to(DTYPES[dtype])
    stored = encode("fp8", values, dtype)
    exponents = torch.frombuffer(stored, dtype=torch.int8)[-6:].double()
    scaled = (values.double() * 2.0 ** -exponents[:, None]).float()
    assert scaled.abs().amax(1).max() <= 448
    assert scaled.abs().amax(1).min() > 224
    expected = scaled.to(torch.float8_e4m3fn)
    assert bytes(stored[:-6]) == expected.view(torch.uint8).numpy().tobytes()
    restored = decode("fp8", stored, dtype, 6, 32)
    assert torch.equal(restored, (expected.double() * 2.0 ** exponents[:, None]).float())


def test_every_bfloat16_of_a_wide_range_is_rounded_as_torch_rounds_it() -> None:
    bits = np.arange(0x3000, 0x4400, dtype=np.uint16)
    values = torch.from_numpy((bits.astype(np.uint32) << 16).view(np.float32))
    values[-1] = 448.0
    rows = torch.cat([values, -values])[None, :]
    rows = rows[rows.abs() <= 448][None, :]
    stored = encode("fp8", rows, "bfloat16")
    assert stored[-1] == 0
    assert bytes(stored[:-1]) == rows.to(torch.float8_e4m3fn).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_encoding_what_was_decoded_changes_nothing(dtype: str) -> None:
    values = torch.randn(6, 32, generator=torch.Generator().manual_seed(1))
    once = decode("fp8", encode("fp8", values, dtype), dtype, 6, 32)
    assert torch.equal(decode("fp8", encode("fp8", once, dtype), dtype, 6, 32), once)
    assert (once - values).abs().max() <= values.abs().max() / 16


def test_zeros_and_the_tiniest_values_are_held() -> None:
    values = torch.zeros(6, 32)
    values[1] = 2.0**-120
    values[2, 0] = -0.0
    restored = decode("fp8", encode("fp8", values, "float32"), "float32", 6, 32)
    assert torch.equal(restored, torch.where(values.abs() > 2.0**-110, values, torch.zeros(())))
    assert math.copysign(1, restored[2, 0].item()) == -1


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 2.0**120])
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_that_it_cannot_hold_are_refused(value: float, dtype: str) -> None:
    values = torch.ones(6, 32)
    values[3, 7] = value
    with pytest.raises(ValueError, match="not finite"):
        encode("fp8", values, dtype)


@pytest.mark.parametrize("name", NAMES)
def test_other_sizes_are_refused_before_they_are_used(name: str) -> None:
    codec = make_codec(name, shape_of("bfloat16"))
    payload, stored = bytearray(shape_of("bfloat16").payload_bytes), bytearray(codec.stored_bytes)
    for source, into in ((payload[:-1], stored), (payload, stored[:-1]), (payload + b"x", stored)):
        with pytest.raises(ValueError, match="bytes"):
            codec.encode(source, into)
        with pytest.raises(ValueError, match="bytes"):
            codec.decode(into, source)


def test_impossible_scales_are_refused() -> None:
    stored = encode("fp8", torch.ones(6, 32), "bfloat16")
    stored[-1:] = struct.pack("b", 101)
    with pytest.raises(ValueError, match="scale"):
        decode("fp8", stored, "bfloat16", 6, 32)


def test_no_codec_stores_the_payload_itself() -> None:
    values = torch.randn(6, 32)
    stored = encode("none", values, "float32")
    assert bytes(stored) == values.numpy().tobytes()
    assert torch.equal(decode("none", stored, "float32", 6, 32), values)


def test_only_codecs_that_change_bytes_are_part_of_the_namespace() -> None:
    suffixes = [make_codec(name, shape_of("bfloat16")).suffix for name in NAMES]
    assert suffixes == ["", "+fp8-e4m3-1"]
    with pytest.raises(ValueError, match="none, fp8"):
        make_codec("fp4", shape_of("bfloat16"))
