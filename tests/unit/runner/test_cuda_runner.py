"""The GPU's runner against the CPU's, plan by plan: its kernels interpreted, or on a GPU compiled, without graphs.

`tests/gpu` has the same with graphs.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="needs triton")

from shoal.model_worker.loader import LoadedModel, load_model
from shoal.model_worker.runner.cpu import CpuRunner
from shoal.model_worker.runner.cuda import CudaRunner
from shoal.model_worker.sampling.params import SamplingParams
from shoal.model_worker.sampling.sampler import Sampler
from shoal.model_worker.step import Admission, Fork, LayerFeed, PendingStep, StepPlan, StepResult
from support.gpu_kernels import DEVICE, gpu_kernels
from support.runner_driving import GREEDY, RunnerDriver, assert_alike
from support.tiny_models import save_tiny

SIZES: dict[str, Any] = {"num_blocks": 32, "block_size": 16, "max_num_seqs": 6, "max_model_len": 128}
PROMPTS = [[random.Random(seed).randrange(199) for _ in range(length)] for seed, length in enumerate((1, 7, 33))]


class RunnerOnGpuKernels(CudaRunner):
    """Its layers, and not those of the CPU's runner beside it, call the GPU's kernels."""

    def submit(self, plan: StepPlan) -> PendingStep:
        with gpu_kernels():
            return super().submit(plan)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    path: Path = tmp_path_factory.mktemp("tiny")
    save_tiny(path)
    return {device: load_model(path, dtype="float32", device=device) for device in {"cpu", DEVICE.type}}


def cpu_runner(loaded: dict[str, LoadedModel]) -> CpuRunner:
    model = loaded["cpu"]
    sampler = Sampler(SIZES["max_num_seqs"], model.config.vocab_size)
    return CpuRunner(model.model, model.config, **SIZES, sampler=sampler, dtype=model.dtype)


def gpu_runner(loaded: dict[str, LoadedModel]) -> CudaRunner:
    model = loaded[DEVICE.type]
    runner = RunnerOnGpuKernels(
        model.model, model.config, **SIZES, max_num_batched_tokens=64, dtype=model.dtype, device=DEVICE
    )
    runner.kv_cache.fill_(float("nan"))
    return runner


def test_steps_of_every_kind_give_the_same_tokens(loaded: dict[str, LoadedModel]) -> None:
    """Prompts in chunks beside decoding ones; greedy, sampled, with penalties and log-probabilities; slots reused."""
    kinds = [
        GREEDY,
        SamplingParams(temperature=0.8, top_p=0.9, max_tokens=90, ignore_eos=True),
        SamplingParams(temperature=0.0, frequency_penalty=0.7, logprobs=3, max_tokens=90, ignore_eos=True),
    ]
    drivers = (RunnerDriver(cpu_runner(loaded)), RunnerDriver(gpu_runner(loaded)))
    steps: list[dict[int, int]] = [{0: 1, 1: 7, 2: 20}, {0: 1, 1: 1, 2: 12}, {0: 1, 2: 1}, {0: 1, 1: 1, 2: 1}, {1: 1}]
    for round_ in range(2):
        for slot in range(3):
            for driver in drivers:
                driver.admit(slot, PROMPTS[slot], kinds[(slot + round_) % 3], seed=5 * round_ + slot)
        for counts in steps:
            expected, actual = (driver.step(counts) for driver in drivers)
            assert_alike(actual, expected)
        for slot in range(3):
            for driver in drivers:
                driver.release(slot)


def test_forks_and_prompt_logprobs(loaded: dict[str, LoadedModel]) -> None:
    sampling = SamplingParams(temperature=1.0, max_tokens=50, n=2, ignore_eos=True, prompt_logprobs=2)
    results: list[list[StepResult]] = []
    for runner in (cpu_runner(loaded), gpu_runner(loaded)):
        driver = RunnerDriver(runner)
        driver.admit(0, PROMPTS[2], sampling, seed=3)
        mine = [driver.step({0: len(PROMPTS[2])}, forks=(Fork(0, 5, 1),))]
        copies, assignment = driver.fork_blocks(0, 5)
        mine.append(driver.step({5: 1}, block_copies=copies, assigned=(assignment,)))
        mine += [driver.step({0: 1, 5: 1}) for _ in range(2)]
        results.append(mine)
    for expected, actual in zip(*results, strict=True):
        assert_alike(actual, expected)


class CopyingFeed:
    """Brings each layer of some blocks just before the step needs it."""

    def __init__(self, source: torch.Tensor, target: torch.Tensor, block_ids: list[int]) -> None:
        self._source, self._target, self._block_ids = source, target, block_ids
        self.waits: list[int] = []

    def wait(self, layer: int) -> None:
        self.waits.append(layer)
        for block_id in self._block_ids:
            self._target[block_id, layer] = self._source[block_id, layer]

    def wait_end(self) -> None:
        raise AssertionError("a runner does not ask what came of it")


@pytest.mark.parametrize("make", ["cpu", "gpu"])
def test_a_step_finds_each_layer_when_it_gets_there(loaded: dict[str, LoadedModel], make: str) -> None:
    runners = [cpu_runner(loaded) if make == "cpu" else gpu_runner(loaded) for _ in range(2)]
    first, second = runners
    second.kv_cache.fill_(float("nan"))
    prompt, blocks = PROMPTS[2][:17], (3, 7)

    def plan(num_computed: int, num_tokens: int, feed: LayerFeed | None) -> StepPlan:
        admission = Admission(0, np.array(prompt, np.int32), len(prompt), num_computed, blocks, GREEDY, 0, 0)
        counts = np.array([num_tokens], np.int32)
        return StepPlan((), (admission,), (), (), np.array([0], np.int32), counts, np.array([True]), (), feed)

    expected = first.submit(plan(0, 17, None)).result()
    feed = CopyingFeed(first.kv_cache, second.kv_cache, [3])
    found = second.submit(plan(16, 1, feed)).result()
    assert found.token_ids.tolist() == expected.token_ids.tolist()
    assert feed.waits == list(range(loaded["cpu"].config.num_layers))


def test_a_step_builds_on_tokens_that_the_host_has_not_seen(loaded: dict[str, LoadedModel]) -> None:
    """Decoding and mixed steps submitted behind one another, and a slot that changes hands between."""

    def run(runner: CpuRunner | CudaRunner, ahead: int) -> list[list[int]]:
        blocks = {0: (3, 7), 1: (1, 2), 2: (9, 4, 5)}

        def admit(slot: int, prompt: list[int]) -> Admission:
            return Admission(slot, np.array(prompt, np.int32), len(prompt), 0, blocks[slot], GREEDY, 0, 0)

        def plan(
            counts: dict[int, tuple[int, bool]], admitted: tuple[Admission, ...] = (), released: tuple[int, ...] = ()
        ) -> StepPlan:
            slots, numbers = np.array(list(counts), np.int32), np.array([n for n, _ in counts.values()], np.int32)
            samples = np.array([sampled for _, sampled in counts.values()], np.bool_)
            return StepPlan(released, admitted, (), (), slots, numbers, samples, ())

        plans = [
            plan({0: (1, True), 1: (7, True)}, (admit(0, PROMPTS[0]), admit(1, PROMPTS[1]))),
            plan({0: (1, True), 1: (1, True)}),
            plan({0: (1, True), 1: (1, True), 2: (20, False)}, (admit(2, PROMPTS[2]),)),
            plan({1: (1, True), 2: (13, True)}),
            plan({1: (1, True), 2: (1, True), 0: (7, True)}, (admit(0, PROMPTS[1]),), released=(0,)),
            plan({0: (1, True), 1: (1, True), 2: (1, True)}),
        ]
        pending: list[PendingStep] = []
        tokens = []
        for each in plans:
            pending.append(runner.submit(each))
            if len(pending) > ahead:
                tokens.append(pending.pop(0).result().token_ids.tolist())
        return tokens + [step.result().token_ids.tolist() for step in pending]

    assert run(gpu_runner(loaded), ahead=1) == run(cpu_runner(loaded), ahead=0)
