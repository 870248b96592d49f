"""A step on its way through the device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from shoal.model_worker.step import IntArray, StepResult, TokenLogprobs

Logprobs = Callable[[], dict[int, TokenLogprobs]]
"""By slot; called once the step has ended."""


class DeviceStep:
    """`step.PendingStep` whose tokens come to pinned memory behind the work that chooses them."""

    def __init__(
        self,
        slots: IntArray,
        token_ids: Tensor,
        logprobs: Logprobs,
        prompt_logprobs: dict[int, tuple[TokenLogprobs, ...]],
    ) -> None:
        """token_ids: [at least R] int32 on the device, the first R those of `slots`."""
        self._slots, self._logprobs, self._prompt_logprobs = slots, logprobs, prompt_logprobs
        self._token_ids = torch.empty(len(slots), dtype=torch.int32, pin_memory=True)
        self._token_ids.copy_(token_ids[: len(slots)], non_blocking=True)
        self._ended = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._ended.record()

    def result(self) -> StepResult:
        """See `PendingStep.result`."""
        self._ended.synchronize()
        return StepResult(self._slots, self._token_ids.numpy(), self._logprobs(), self._prompt_logprobs)
