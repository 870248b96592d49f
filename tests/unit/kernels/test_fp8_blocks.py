"""Blocks restored from fp8: by the codec, in torch, and by the GPU's kernel, interpreted or compiled."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shoal.kernels.fp8_blocks import decode_blocks
from shoal.kernels.transfers import upload
from shoal.kv_codec import BlockShape, Fp8

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def every_code(shape: BlockShape) -> torch.Tensor:
    """Two stored blocks, with all codes but NaN and exponents from one end to the other."""
    codes = np.resize(
        np.array([code for code in range(256) if code & 0x7F != 0x7F], np.uint8),
        (2, shape.num_groups, shape.group_elements),
    )
    exponents = np.linspace(-100, 100, 2 * shape.num_groups).astype(np.int8).reshape(2, -1)
    return torch.from_numpy(np.concatenate((codes.reshape(2, -1), exponents.view(np.uint8)), axis=1))


@pytest.mark.parametrize("kernel", [False, True], ids=["dispatched", "kernel"])
@pytest.mark.parametrize(
    "shape", [BlockShape(6, 1024, "bfloat16"), BlockShape(5, 48, "float32"), BlockShape(3, 254, "bfloat16")]
)
def test_it_is_what_the_codec_says(shape: BlockShape, kernel: bool) -> None:
    stored = every_code(shape)
    expected = bytearray(shape.payload_bytes)
    cache = torch.full((4, shape.num_groups * shape.group_elements), 7.0, dtype=DTYPES[shape.dtype], device=DEVICE)
    if kernel:
        implementation = pytest.importorskip("shoal.kernels.fp8_blocks.triton_impl", reason="needs triton")
        ids = upload(np.array([3, 1], np.int32), cache.device)
        implementation.decode_blocks(stored.to(DEVICE), cache, ids, shape.group_elements)
    else:
        decode_blocks(stored.to(DEVICE), cache, [3, 1], shape.group_elements)
    for number, block_id in enumerate((3, 1)):
        Fp8(shape).decode(stored[number].numpy().tobytes(), expected)
        assert cache[block_id].cpu().view(torch.uint8).numpy().tobytes() == bytes(expected)
    assert (cache[[0, 2]] == 7.0).all()


def test_other_shapes_are_refused() -> None:
    stored, cache = torch.zeros((1, 33 * 2), dtype=torch.uint8), torch.zeros((4, 64))
    decode_blocks(stored, cache, [2], 32)
    for ids, group in (([2, 3], 32), ([2], 64), ([2], 48)):
        with pytest.raises(ValueError, match="are not what"):
            decode_blocks(stored, cache, ids, group)
    with pytest.raises(ValueError, match="contiguous"):
        decode_blocks(torch.zeros((66, 1), dtype=torch.uint8).t(), cache.t().contiguous().t(), [2], 32)
