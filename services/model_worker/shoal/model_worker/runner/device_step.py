"""Steps on their way through the device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from shoal.kernels.transfers import Moment, make_moment, staging
from shoal.model_worker.step import IntArray, StepResult, TokenLogprobs

Logprobs = Callable[[], dict[int, TokenLogprobs]]
"""By slot; called once the step has ended."""


class DeviceStep:
    """`step.PendingStep` whose tokens come to pinned memory behind the work that chooses them."""

    def __init__(
        self,
        slots: IntArray,
        token_ids: Tensor,
        ended: Moment,
        logprobs: Logprobs,
        prompt_logprobs: dict[int, tuple[TokenLogprobs, ...]],
    ) -> None:
        """token_ids: [R] pinned, written by the time that `ended` has happened."""
        self._slots, self._token_ids, self._ended = slots, token_ids, ended
        self._logprobs, self._prompt_logprobs = logprobs, prompt_logprobs

    def result(self) -> StepResult:
        """See `PendingStep.result`."""
        self._ended.synchronize()
        token_ids: IntArray = self._token_ids.numpy().copy()
        return StepResult(self._slots, token_ids, self._logprobs(), self._prompt_logprobs)


class TokenMail:
    """Pinned memory and events for the tokens of pending steps, used in turn: making them anew takes 40 us a step."""

    def __init__(self, max_pending_steps: int, max_num_seqs: int, device: torch.device) -> None:
        self._boxes = [(staging(max_num_seqs, device), make_moment(device)) for _ in range(max_pending_steps)]
        self._num_sent = 0

    def send(
        self,
        slots: IntArray,
        token_ids: Tensor,
        logprobs: Logprobs,
        prompt_logprobs: dict[int, tuple[TokenLogprobs, ...]],
    ) -> DeviceStep:
        """token_ids: [at least R] int32 on the device, the first R those of `slots`; may be overwritten afterwards."""
        pinned, ended = self._boxes[self._num_sent % len(self._boxes)]
        self._num_sent += 1
        box = pinned[: len(slots)]
        box.copy_(token_ids[: len(slots)], non_blocking=True)
        ended.record()
        return DeviceStep(slots, box, ended, logprobs, prompt_logprobs)
