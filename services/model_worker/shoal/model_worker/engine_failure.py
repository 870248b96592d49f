"""Why an engine ended: classified for metrics and clients, and in words for the operator.

It must not import torch, for the front imports it; in the engine it asks for torch's types where torch is loaded.
"""

from __future__ import annotations

import re
import sys
from typing import Final, Literal

import msgspec

from shoal.model_worker.config import WorkerConfig
from shoal.model_worker.failure import Failure

EngineFailureReason = Literal["setup", "out_of_memory", "device", "internal", "stalled", "died", "protocol"]
"""setup: cannot serve as configured. device: the GPU or a kernel on it failed. internal: any other exception. stalled:
no step ended for too long. died: the process vanished without a word. protocol: it said what makes no sense."""

RETRY_AFTER_S: Final = 1.0
_FOR_CLIENTS: Final[dict[EngineFailureReason, str]] = {
    "out_of_memory": "ran out of memory",
    "device": "lost its device",
    "stalled": "made no progress",
}
_MAX_TEXT: Final = 300
_ALLOCATION: Final = re.compile(r"Tried to allocate .*? is free\.", re.DOTALL)
_CUDA_ERROR: Final = re.compile(r"(?:CUDA error|Triton Error \[CUDA\]|CUDA driver error): *([^\n]+)")
_CUDA_NAME: Final = re.compile(r"\b(cudaError\w+|CUDA_ERROR_\w+|(?:CUBLAS|CUDNN)_STATUS_\w+)\b")
_HOST_ALLOCATION: Final = "DefaultCPUAllocator: can't allocate memory"


class EngineFailure(msgspec.Struct, frozen=True, array_like=True):
    """What ended an engine."""

    reason: EngineFailureReason
    message: str
    """For the operator: what happened, with numbers, and what to do about it."""

    def for_clients(self) -> Failure:
        """How requests end that the engine was working on. Without internals."""
        what = _FOR_CLIENTS.get(self.reason, "died")
        text = f"the worker's engine {what}; the request can be resumed on another worker"
        return Failure("WORKER_FAILED", text, "", RETRY_AFTER_S)


def describe_failure(error: BaseException, config: WorkerConfig) -> EngineFailure:
    """Classifies what a device or a runner raised, by the types of torch and the texts of CUDA and Triton."""
    text = str(error)
    if is_out_of_memory(error):
        return EngineFailure("out_of_memory", _describe_out_of_memory(text, config))
    if (problem := describe_device_error(error)) is not None:
        return EngineFailure("device", f"the GPU or a kernel on it failed: {problem}")
    name = type(error).__name__
    return EngineFailure("internal", f"{name}: {shorten(text)}" if text else name)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of a GPU or of the machine."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    text = str(error)
    found = _CUDA_ERROR.search(text)
    return _HOST_ALLOCATION in text or (found is not None and found[1].startswith("out of memory"))


def describe_device_error(error: BaseException) -> str | None:
    """CUDA's words and its name for the error; None when it is none of CUDA's."""
    torch = sys.modules.get("torch")
    text = str(error)
    found = _CUDA_ERROR.search(text)
    if found is None and not (torch is not None and isinstance(error, torch.AcceleratorError)):
        return None
    words = shorten(found[1] if found else text)
    name = _CUDA_NAME.search(text)
    return words if name is None or name[1] in words else f"{words} ({name[1]})"


def describe_allocation(text: str) -> str:
    """The part of torch's message that has the numbers."""
    found = _ALLOCATION.search(text)
    return shorten(found[0].rstrip(".") if found else text)


def shorten(text: str) -> str:
    """Its first line, within bounds."""
    line = text.strip().partition("\n")[0]
    return line if len(line) <= _MAX_TEXT else f"{line[:_MAX_TEXT]}..."


def _describe_out_of_memory(text: str, config: WorkerConfig) -> str:
    steps = (
        f"max_num_batched_tokens ({config.max_num_batched_tokens}) or max_num_seqs ({config.max_num_seqs}), which make "
        "steps large"
    )
    if config.device == "cuda":
        return (
            f"out of GPU memory: {describe_allocation(text)}; lower gpu_memory_utilization "
            f"({config.gpu_memory_utilization:g}), so that more is left beside the KV cache, or {steps}"
        )
    return (
        f"out of memory: {shorten(text) or 'the machine has no more'}; lower kv_cache_memory_bytes "
        f"({config.kv_cache_memory_bytes}), {steps}"
    )
