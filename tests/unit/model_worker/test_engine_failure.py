"""How an engine's end is classified, by what torch, CUDA and Triton raise."""

from __future__ import annotations

import pytest
import torch

from shoal.model_worker.config import WorkerConfig
from shoal.model_worker.engine_failure import EngineFailure, describe_failure

GPU = WorkerConfig(device="cuda", gpu_memory_utilization=0.95).with_device_defaults()
CPU = WorkerConfig(device="cpu").with_device_defaults()
CUDA_OUT_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.18 GiB of which 1.25 GiB is free."
    " Process 7 has 77.92 GiB memory in use. If reserved but unallocated memory is large try setting something."
)


def test_gpu_memory_is_told_with_its_numbers_and_what_to_lower() -> None:
    failure = describe_failure(torch.OutOfMemoryError(CUDA_OUT_OF_MEMORY), GPU)
    assert failure == EngineFailure(
        "out_of_memory",
        "out of GPU memory: Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.18 GiB of which 1.25 GiB is "
        "free; lower gpu_memory_utilization (0.95), so that more is left beside the KV cache, or "
        "max_num_batched_tokens (8192) or max_num_seqs (512), which make steps large",
    )


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in the manual."),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:125] . DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_memory_runs_out_in_many_words(error: Exception) -> None:
    assert describe_failure(error, GPU).reason == "out_of_memory"
    on_cpu = describe_failure(error, CPU)
    assert on_cpu.reason == "out_of_memory"
    assert "lower kv_cache_memory_bytes (1073741824), max_num_batched_tokens (512)" in on_cpu.message


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            torch.AcceleratorError(
                "CUDA error: an illegal memory access was encountered\nSearch for `cudaErrorIllegalAddress' in the book"
            ),
            "an illegal memory access was encountered (cudaErrorIllegalAddress)",
        ),
        (RuntimeError("Triton Error [CUDA]: unspecified launch failure"), "unspecified launch failure"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(handle)`"),
            "CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(handle)`",
        ),
        (torch.AcceleratorError("the device is gone"), "the device is gone"),
    ],
)
def test_errors_of_the_device_keep_their_names(error: Exception, told: str) -> None:
    assert describe_failure(error, GPU) == EngineFailure("device", f"the GPU or a kernel on it failed: {told}")


def test_other_errors_are_ours_and_stay_short() -> None:
    assert describe_failure(KeyError("slot 7"), GPU) == EngineFailure("internal", "KeyError: 'slot 7'")
    assert describe_failure(AssertionError(), GPU) == EngineFailure("internal", "AssertionError")
    assert len(describe_failure(ValueError("x" * 10_000 + "\nmore"), GPU).message) < 400


@pytest.mark.parametrize(
    ("reason", "words"),
    [("out_of_memory", "ran out of memory"), ("stalled", "made no progress"), ("died", "died"), ("internal", "died")],
)
def test_clients_learn_that_they_can_resume_and_nothing_internal(reason: str, words: str) -> None:
    failure = EngineFailure(reason, "secret").for_clients()  # type: ignore[arg-type]  # parametrized
    assert (failure.reason, failure.retry_after_s) == ("WORKER_FAILED", 1.0)
    assert failure.message == f"the worker's engine {words}; the request can be resumed on another worker"
