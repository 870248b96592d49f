from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from shoal.kernels import act_and_mul, paged_attention, rms_norm
from shoal.kernels.kv_layout import KVLayout
from shoal.kernels.native import library, load
from shoal.kernels.native.compiling import build
from shoal.kernels.paged_attention import plan
from shoal.native import NativeBuildError
from support.attention_cases import make_case

needs_compiler = pytest.mark.skipif(library() is None, reason="no C compiler here")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHOAL_CACHE_DIR", str(tmp_path))
    return tmp_path / "kernels"


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_portable_code_gives_the_same_results(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """Compiled for any CPU of this architecture, without the vector and bfloat16 instructions of this one."""
    portable = load(build(("-O1",)))
    for module in (paged_attention, plan, rms_norm, act_and_mul):
        monkeypatch.setattr(module, "library", lambda: portable)
    tolerance: dict[str, Any] = (
        {"atol": 2e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 2**-8, "rtol": 2**-7}
    )
    for num_heads, num_kv_heads, head_dim in [(9, 3, 64), (7, 1, 48)]:
        shape = paged_attention.AttentionShape(KVLayout(2, num_kv_heads, head_dim, 16, dtype), num_heads)
        case = make_case(shape, [(1, 700), (20, 150), (1, 7)])
        expected = paged_attention.reference.paged_attention(*case.arguments)
        actual = paged_attention.paged_attention(*case.arguments)
        torch.testing.assert_close(actual, expected, **tolerance)
    x = torch.randn(5, 576, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight = x[1].contiguous()
    expected = rms_norm.reference.rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(rms_norm.rms_norm(x, weight, 1e-5), expected, **tolerance)
    for activation in get_args(act_and_mul.Activation):
        expected = act_and_mul.reference.act_and_mul(x, activation)
        torch.testing.assert_close(act_and_mul.act_and_mul(x, activation), expected, **tolerance)


def test_unloadable_library_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "broken.so"
    path.write_bytes(b"not a library")
    with pytest.raises(NativeBuildError, match=r"cannot load"):
        load(path)


def test_library_falls_back_to_torch_with_one_warning(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    uncached = library.__wrapped__
    with caplog.at_level(logging.WARNING):
        assert uncached() is None
    assert len(caplog.records) == 1
    assert "install one" in caplog.text


def test_library_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "SHOAL_NATIVE_KERNELS", "off")
    assert library.__wrapped__() is None
