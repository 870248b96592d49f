"""An engine process whose runner fails in its sixth step, in the way that FAULT names. Run by `faulty_worker`.

Its exit handlers wait for ever, as CUDA's may once the device has failed.
"""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from shoal.model_worker.config import WorkerConfig
from shoal.model_worker.engine_process import main
from shoal.model_worker.engine_setup import EngineParts, Progress, set_up
from shoal.model_worker.step import PendingStep, Runner, StepPlan
from support import kv_load_pauses

GOOD_STEPS = 5
POISON = ord("!")


def run_out_of_memory() -> None:
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.18 GiB of which 1.25 GiB is "
        "free. Process 7 has 77.92 GiB memory in use. Of the allocated memory 70.00 GiB is allocated by PyTorch."
    )


def lose_device() -> None:
    raise torch.AcceleratorError(
        "CUDA error: an illegal memory access was encountered\nSearch for `cudaErrorIllegalAddress' in the manual.\n"
    )


def fail_inside() -> None:
    raise KeyError("slot 7")


def hang() -> None:
    signal.pause()


def run_out_of_gpu_memory() -> None:
    torch.empty(1 << 45, dtype=torch.uint8, device="cuda")


def fail_on_gpu() -> None:
    beyond = torch.full((1,), 1 << 20, device="cuda")
    torch.zeros(1, device="cuda")[beyond]
    torch.cuda.synchronize()


def hang_on_gpu() -> None:
    for _ in range(64):
        torch.cuda._sleep(1 << 40)  # type: ignore[no-untyped-call]  # ten minutes each
    torch.cuda.synchronize()


FAULTS: dict[str, Callable[[], None]] = {
    function.__name__: function
    for function in (
        run_out_of_memory,
        lose_device,
        fail_inside,
        hang,
        run_out_of_gpu_memory,
        fail_on_gpu,
        hang_on_gpu,
    )
}


class FaultyRunner:
    """Another runner, until it fails."""

    def __init__(self, runner: Runner, fault: Callable[[], None]) -> None:
        self._runner, self._fault = runner, fault
        self.num_blocks, self.max_pending_steps = runner.num_blocks, runner.max_pending_steps
        self._num_steps = 0

    def submit(self, plan: StepPlan) -> PendingStep:
        self._num_steps += 1
        if self._num_steps > GOOD_STEPS:
            self._fault()
        return self._runner.submit(plan)


class PoisonedRunner(FaultyRunner):
    """Fails on a prompt that begins with `POISON`, and on no other."""

    def submit(self, plan: StepPlan) -> PendingStep:
        if any(admission.token_ids[0] == POISON for admission in plan.admitted):
            self._fault()
        return self._runner.submit(plan)


def set_up_faulty(config: WorkerConfig, progress: Progress) -> EngineParts:
    """In the place of `engine_setup.set_up`. FAULT may begin with `early `, to fail at once, or with `poison `; or be
    one of `kv_load_pauses`."""
    when, _, name = os.environ["FAULT"].rpartition(" ")
    if when in kv_load_pauses.PAUSES:
        kv_load_pauses.PAUSES[when](Path(name))
        return set_up(config, progress)
    if when == "early":
        FAULTS[name]()
    parts = set_up(config, progress)
    kind = PoisonedRunner if when == "poison" else FaultyRunner
    return replace(parts, runner=kind(parts.runner, FAULTS[name]))


if __name__ == "__main__":
    atexit.register(signal.pause)
    main(set_up_faulty)
