from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shoal.model_worker.config import WorkerConfig
from shoal.model_worker.cuda_device import explained
from shoal.model_worker.engine_setup import SetupError, choose_max_model_len, set_up


def start(model: Path, **settings: int) -> None:
    set_up(WorkerConfig(model=str(model), device="cuda", **settings), lambda stage, fraction: None)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"PyTorch sees no CUDA device.*--device cpu"):
        start(tmp_path / "no-such-model")


@pytest.mark.parametrize("block_size", [1, 8, 24, 48, 512])
def test_block_sizes_that_the_kernels_do_not_take_are_refused(tmp_path: Path, block_size: int) -> None:
    with pytest.raises(SetupError, match=rf"block_size is {block_size}; on a GPU it must be 16, 32, 64, 128 or 256"):
        start(tmp_path / "no-such-model", block_size=block_size)


def test_memory_that_runs_out_is_told_with_numbers_and_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 << 30, 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 70 << 30)
    text = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 80 GiB of which 1.00 GiB is free. And more."
    with pytest.raises(SetupError) as caught, explained("capturing graphs", "lower max_num_seqs (512)"):
        raise torch.OutOfMemoryError(text)
    assert str(caught.value) == (
        "out of GPU memory while capturing graphs: Tried to allocate 2.00 GiB. GPU 0 has 80 GiB of which 1.00 GiB is "
        "free (of 81920 MiB, this worker holds 71680, other processes and the driver 9216, and 1024 are free); "
        "lower max_num_seqs (512)"
    )


def test_a_kernel_that_is_too_large_names_the_block_size() -> None:
    errors = pytest.importorskip("triton.runtime.errors")
    with (
        pytest.raises(SetupError, match=r"Required: 300000, Hardware limit: 232448.*lower block_size"),
        explained("", ""),
    ):
        raise errors.OutOfResources(300_000, 232_448, "shared memory")


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError), explained("loading", ""):
        raise KeyError("x")


def test_a_context_that_does_not_fit_names_the_setting_of_the_device() -> None:
    config = WorkerConfig(device="cuda", max_model_len=4096).with_device_defaults()
    with pytest.raises(SetupError, match=r"10 KV blocks of 64 hold only 640 tokens; .* raise gpu_memory_utilization"):
        choose_max_model_len(config, 8192, 10)
