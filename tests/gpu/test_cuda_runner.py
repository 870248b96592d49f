"""The CUDA runner against the CPU runner on a tiny Llama: the same plans, the same tokens."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.model_worker.loader import load_model
from shoal.model_worker.runner.cpu import CpuRunner
from shoal.model_worker.sampling.params import SamplingParams
from shoal.model_worker.sampling.sampler import Sampler
from shoal.model_worker.step import Fork
from support.runner_driving import RunnerDriver, assert_alike
from support.tiny_models import save_tiny

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

PROMPTS = [[random.Random(seed).randrange(199) for _ in range(length)] for seed, length in enumerate((1, 7, 33, 100))]
SIZES: dict[str, Any] = {"num_blocks": 64, "block_size": 16, "max_num_seqs": 8, "max_model_len": 512}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    save_tiny(path)
    return path


def on_cpu(folder: Path) -> RunnerDriver:
    loaded = load_model(folder, dtype="float32")
    sampler = Sampler(8, loaded.config.vocab_size)
    return RunnerDriver(CpuRunner(loaded.model, loaded.config, **SIZES, sampler=sampler, dtype=loaded.dtype))


def on_gpu(folder: Path) -> RunnerDriver:
    from shoal.model_worker.runner.cuda import CudaRunner

    loaded = load_model(folder, dtype="float32", device="cuda")
    runner = CudaRunner(loaded.model, loaded.config, **SIZES, max_num_batched_tokens=256, dtype=loaded.dtype)
    runner.warm_up()
    runner.kv_cache.fill_(float("nan"))
    return RunnerDriver(runner)


def test_a_mix_of_steps_gives_the_same_tokens(folder: Path) -> None:
    """Sequences come and go; prompts in chunks beside decoding ones; greedy and sampled, with and without edits."""
    kinds = [
        SamplingParams(temperature=0.0, max_tokens=400, ignore_eos=True),
        SamplingParams(temperature=0.8, top_p=0.9, max_tokens=400, ignore_eos=True),
        SamplingParams(temperature=0.0, frequency_penalty=0.7, logprobs=3, max_tokens=400, ignore_eos=True),
    ]
    cpu, gpu, rng = on_cpu(folder), on_gpu(folder), random.Random(0)
    running: set[int] = set()
    for step in range(120):
        for slot in range(4):
            if slot not in running and rng.random() < 0.3:
                running.add(slot)
                sampling = kinds[rng.randrange(3)]
                for driver in (cpu, gpu):
                    driver.admit(slot, PROMPTS[slot], sampling, seed=step)
        chosen = [slot for slot in sorted(running) if rng.random() < 0.8]
        counts = {slot: rng.randint(1, cpu.pending(slot)) for slot in chosen}
        if not counts:
            continue
        assert_alike(gpu.step(counts), cpu.step(counts))
        for slot in [s for s in running if len(cpu.tokens[s]) > cpu.prompts[s] + 20]:
            running.remove(slot)
            for driver in (cpu, gpu):
                driver.release(slot)


def test_forks_and_prompt_logprobs(folder: Path) -> None:
    sampling = SamplingParams(temperature=1.0, max_tokens=50, n=2, ignore_eos=True, prompt_logprobs=2)
    drivers = (on_cpu(folder), on_gpu(folder))
    results = []
    for driver in drivers:
        driver.admit(0, PROMPTS[2], sampling, seed=3)
        results.append(driver.step({0: len(PROMPTS[2])}, forks=(Fork(0, 5, 1),)))
        copies, assignment = driver.fork_blocks(0, 5)
        results.append(driver.step({5: 1}, block_copies=copies, assigned=(assignment,)))
        results += [driver.step({0: 1, 5: 1}) for _ in range(8)]
    half = len(results) // 2
    for of_cpu, of_gpu in zip(results[:half], results[half:], strict=True):
        assert_alike(of_gpu, of_cpu)
