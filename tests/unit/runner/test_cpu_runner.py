from __future__ import annotations

import dataclasses
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from shoal.model_worker.loader import LoadedModel, load_model
from shoal.model_worker.runner.cpu import CpuRunner, num_blocks_for
from shoal.model_worker.sampling.params import SamplingParams
from shoal.model_worker.sampling.sampler import Sampler
from shoal.model_worker.step import Admission, Fork, StepPlan, TokenLogprobs
from support.forward import forward_logits
from support.model import smollm2_path
from support.runner_driving import GREEDY, RunnerDriver
from support.tiny_models import save_tiny

PROMPTS = [[random.Random(seed).randrange(199) for _ in range(length)] for seed, length in enumerate((1, 7, 33, 100))]


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tiny steps gain nothing from threads, and on a busy machine each would wait for the slower one."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if "smollm2" in request.node.name else 1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    directory = tmp_path_factory.mktemp("tiny")
    save_tiny(directory)
    return load_model(directory, dtype="float32")


def drive(loaded: LoadedModel, *, num_blocks: int = 64, poison: bool = True) -> RunnerDriver:
    runner = CpuRunner(
        loaded.model,
        loaded.config,
        num_blocks=num_blocks,
        block_size=16,
        max_num_seqs=8,
        max_model_len=512,
        sampler=Sampler(8, loaded.config.vocab_size),
        dtype=loaded.dtype,
    )
    if poison:
        runner.kv_cache.fill_(float("nan"))
    return RunnerDriver(runner)


def greedy(loaded: LoadedModel, prompt: list[int], count: int) -> list[int]:
    """Without a runner or a cache: the whole sequence computed again for every token."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(forward_logits(loaded, torch.tensor(tokens))[-1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("chunk", [1, 5, 16, 1000])
def test_greedy_tokens_do_not_depend_on_chunks(tiny: LoadedModel, chunk: int) -> None:
    for prompt in PROMPTS:
        driver = drive(tiny)
        driver.admit(0, prompt)
        assert driver.generate(0, 20, chunk=chunk) == greedy(tiny, prompt, 20)


def test_greedy_tokens_do_not_depend_on_the_batch(tiny: LoadedModel) -> None:
    """Sequences come and go, prompts in chunks of random size beside decoding ones, slots and blocks reused."""
    expected = [greedy(tiny, prompt, 12) for prompt in PROMPTS]
    rng, driver = random.Random(0), drive(tiny, num_blocks=40)
    waiting = list(range(len(PROMPTS))) * 3
    running: dict[int, int] = {}
    finished = 0
    while waiting or running:
        for slot in range(4):
            if slot not in running and waiting:
                running[slot] = waiting.pop(rng.randrange(len(waiting)))
                driver.admit(slot, PROMPTS[running[slot]])
        chosen = rng.sample(sorted(running), rng.randint(1, len(running)))
        driver.step({slot: rng.randint(1, driver.pending(slot)) for slot in chosen})
        for slot in [s for s in running if len(driver.tokens[s]) == driver.prompts[s] + 12]:
            assert driver.tokens[slot][-12:] == expected[running.pop(slot)]
            driver.release(slot)
            finished += 1
    assert finished == len(PROMPTS) * 3


def test_a_cached_prefix_is_not_computed_again(tiny: LoadedModel) -> None:
    driver, prompt = drive(tiny), PROMPTS[3]
    driver.admit(0, prompt)
    expected = driver.generate(0, 10)
    driver.admit(1, prompt, shared=driver.blocks(0)[:6])
    assert driver.pending(1) == len(prompt) - 96
    assert driver.generate(1, 10) == expected


def test_resumed_sequence_goes_on_alike(tiny: LoadedModel) -> None:
    sampling = SamplingParams(temperature=1.3, frequency_penalty=0.5, max_tokens=50, ignore_eos=True)
    driver, prompt = drive(tiny), PROMPTS[2]
    driver.admit(0, prompt, sampling, seed=7)
    whole = driver.generate(0, 20)
    driver.admit(1, prompt + whole[:9], sampling, num_prompt_tokens=len(prompt), seed=7)
    assert driver.generate(1, 11, chunk=6) == whole[9:]


def test_forks_share_the_prompt_and_then_part(tiny: LoadedModel) -> None:
    sampling = SamplingParams(temperature=1.0, max_tokens=50, n=2, ignore_eos=True)
    driver, prompt = drive(tiny), PROMPTS[2]
    driver.admit(0, prompt, sampling, seed=3)
    result = driver.step({0: len(prompt)}, forks=(Fork(0, 5, 1), Fork(0, 2, 2)))
    assert result.slots.tolist() == [0, 5, 2]
    for target in (5, 2):
        copies, assignment = driver.fork_blocks(0, target)
        driver.step({target: 1}, block_copies=copies, assigned=(assignment,))
    for _ in range(10):
        driver.step({0: 1, 2: 1, 5: 1})
    assert len({tuple(tokens) for tokens in driver.tokens.values()}) == 3
    # Choice 1 of the request alone, on another runner.
    alone = drive(tiny)
    alone.admit(0, prompt, sampling, seed=3)
    alone.step({0: len(prompt)}, forks=(Fork(0, 1, 1),))
    copies, assignment = alone.fork_blocks(0, 1)
    alone.step({1: 1}, block_copies=copies, assigned=(assignment,))
    assert alone.generate(1, 5) == driver.tokens[5][len(prompt) + 2 : len(prompt) + 7]


def test_prompt_logprobs_come_with_their_chunks(tiny: LoadedModel) -> None:
    driver, prompt = drive(tiny), PROMPTS[3]
    driver.admit(0, PROMPTS[1])
    driver.admit(1, prompt, dataclasses.replace(GREEDY, prompt_logprobs=2, logprobs=1))
    entries: list[TokenLogprobs] = []
    for count in (1, 70, 29):
        result = driver.step({0: driver.pending(0), 1: count})
        assert set(result.prompt_logprobs) == ({1} if entries or count else set())
        entries.extend(result.prompt_logprobs[1])
    assert set(result.logprobs) == {1}
    assert [entry.token_id for entry in entries] == prompt[1:]
    expected = torch.log_softmax(forward_logits(tiny, torch.tensor(prompt)), dim=-1)
    for position, entry in enumerate(entries):
        assert entry.logprob == pytest.approx(float(expected[position, prompt[position + 1]]), abs=1e-3)
        assert entry.top[0][0] == int(expected[position].argmax())
    assert driver.step({1: 1}).prompt_logprobs == {}


def test_stop_ids_are_forbidden_before_min_tokens(tiny: LoadedModel) -> None:
    driver = drive(tiny)
    first = greedy(tiny, PROMPTS[1], 1)[0]
    driver.admit(0, PROMPTS[1], dataclasses.replace(GREEDY, stop_token_ids=(first,), min_tokens=3))
    assert first not in driver.generate(0, 3)


def test_float32_logits_are_deterministic(tiny: LoadedModel) -> None:
    runs = []
    for _ in range(2):
        driver = drive(tiny)
        driver.admit(0, PROMPTS[3], dataclasses.replace(GREEDY, logprobs=5))
        runs.append([driver.step({0: driver.pending(0)}).logprobs[0] for _ in range(5)])
    assert runs[0] == runs[1]


def test_warm_up_leaves_no_trace(tiny: LoadedModel) -> None:
    driver = drive(tiny, poison=False)
    driver.runner.warm_up()
    driver.admit(0, PROMPTS[2])
    assert driver.generate(0, 10) == greedy(tiny, PROMPTS[2], 10)


def test_a_step_may_schedule_nothing(tiny: LoadedModel) -> None:
    driver = drive(tiny)
    driver.admit(0, PROMPTS[0])
    assert len(driver.step({}).slots) == 0
    assert driver.generate(0, 3) == greedy(tiny, PROMPTS[0], 3)


def test_admissions_that_cannot_be_are_refused(tiny: LoadedModel) -> None:
    driver = drive(tiny)
    admission = Admission(0, np.array([1, 2], np.int32), 2, 2, (0,), GREEDY, seed=0, choice=0)
    nothing = np.empty(0, np.int32)
    plan = StepPlan((), (admission,), (), (), nothing, nothing, np.empty(0, np.bool_), ())
    with pytest.raises(ValueError, match="needs more than are computed"):
        driver.runner.submit(plan)
    driver.admit(0, [1, 2])
    driver.step({0: 2})
    driver.admit(0, [1, 2])
    with pytest.raises(ValueError, match="slot 0 is occupied"):
        driver.step({})
    with pytest.raises(ValueError, match="more than the model's 512 positions"):
        CpuRunner(
            tiny.model,
            tiny.config,
            num_blocks=4,
            block_size=16,
            max_num_seqs=1,
            max_model_len=513,
            sampler=Sampler(1, 199),
        )


def test_blocks_are_sized_from_bytes(tiny: LoadedModel) -> None:
    block_bytes = 2 * 3 * 2 * 16 * 16 * 2
    assert num_blocks_for(10 * block_bytes + 1, tiny.config, 16, torch.bfloat16) == 10
    assert num_blocks_for(block_bytes - 1, tiny.config, 16, torch.bfloat16) == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_without_a_compiler_the_tokens_are_the_same(dtype: str, tmp_path: Path) -> None:
    """The same generation in a process that has no native library: mixed steps on torch alone."""
    save_tiny(tmp_path)
    program = (
        "import sys; from pathlib import Path\n"
        "from shoal.kernels.native import library\n"
        "from shoal.model_worker.loader import load_model\n"
        "from unit.runner import test_cpu_runner as module\n"
        "assert library() is None\n"
        "driver = module.drive(load_model(Path(sys.argv[1]), dtype=sys.argv[2]))\n"
        "print(module.mixed_run(driver))\n"
    )
    environment = {**os.environ, "SHOAL_NATIVE_KERNELS": "off", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), dtype],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(mixed_run(drive(load_model(tmp_path, dtype=dtype))))  # type: ignore[arg-type]


def mixed_run(driver: RunnerDriver) -> list[list[int]]:
    """Decoding and chunked prompts in the same steps."""
    driver.admit(0, PROMPTS[1])
    driver.step({0: 7})
    driver.admit(1, PROMPTS[3])
    for count in (40, 40, 20):
        driver.step({0: 1, 1: count})
    for _ in range(4):
        driver.step({0: 1, 1: 1})
    return [driver.tokens[slot] for slot in (0, 1)]


def test_smollm2_answers_alike_in_any_batch() -> None:
    """The real model in float32: three prompts together, in odd chunks, and alone; and the answer is right."""
    from gguf import GGUFReader

    loaded = load_model(smollm2_path(), dtype="float32")
    reader = GGUFReader(smollm2_path())
    vocabulary = {text: i for i, text in enumerate(reader.get_field("tokenizer.ggml.tokens").contents())}
    words = ["The", "Ġcapital", "Ġof", "ĠFrance", "Ġis"]
    prompts = [[vocabulary[word] for word in words], list(range(1000, 1090)), list(range(5000, 5021))]
    together, alone = drive(loaded), []
    for slot, prompt in enumerate(prompts):
        together.admit(slot, prompt)
        driver = drive(loaded)
        driver.admit(0, prompt)
        alone.append(driver.generate(0, 12))
    while any(len(together.tokens[s]) < len(p) + 12 for s, p in enumerate(prompts)):
        together.step({slot: min(13, together.pending(slot)) for slot in range(3)})
    assert [together.tokens[s][len(p) : len(p) + 12] for s, p in enumerate(prompts)] == alone
    assert vocabulary["ĠParis"] in alone[0][:2]
