from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from shoal.kernels import act_and_mul, paged_attention, rms_norm
from shoal.kernels.kv_layout import KVLayout
from shoal.kernels.native import compiling, library, load
from shoal.kernels.native.compiling import NativeBuildError, build, cache_directory, find_compiler
from shoal.kernels.paged_attention import plan
from support.attention_cases import make_case

needs_compiler = pytest.mark.skipif(library() is None, reason="no C compiler here")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHOAL_CACHE_DIR", str(tmp_path))
    return tmp_path / "kernels"


@needs_compiler
def test_builds_once_and_then_comes_from_the_cache(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build(("-O1",))
    assert path.parent == own_cache
    assert stat.S_IMODE(own_cache.stat().st_mode) == 0o700
    assert [p.name for p in own_cache.iterdir()] == [path.name]

    def refuse(*args: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(compiling, "_compile", refuse)
    assert build(("-O1",)) == path


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


def test_no_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(NativeBuildError, match=r"there is no C compiler .*apt-get install gcc"):
        find_compiler()


def test_named_compiler_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -pipe")
    with pytest.raises(NativeBuildError, match=r"named by CC .no-such-compiler -pipe. does not exist"):
        find_compiler()


def test_failing_compiler_is_reported(own_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "broken"
    script.write_text("#!/bin/sh\necho out of order >&2\nexit 3\n")
    script.chmod(0o700)
    monkeypatch.setenv("CC", str(script))
    with pytest.raises(NativeBuildError, match=r"failed with status 3: out of order"):
        build()
    assert list(own_cache.iterdir()) == []


def test_cache_that_others_can_write_is_refused(own_cache: Path) -> None:
    own_cache.mkdir(parents=True)
    own_cache.chmod(0o777)
    with pytest.raises(NativeBuildError, match=r"can be written by another user"):
        cache_directory()


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
