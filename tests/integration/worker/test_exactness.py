"""Greedy float32 output equals transformers on thirty real prompts, however the work is cut up.

transformers decides token by token: its choice at each position of prompt and output is computed in one pass over our
output (teacher forcing). If every choice equals our next token, then its own greedy generation is the same sequence.
"""

from __future__ import annotations

import functools

import pytest

from shoal.model_worker.config import WorkerConfig
from shoal.model_worker.sampling.params import SamplingParams
from support.engine_requests import make_request
from support.model import smollm2_path
from support.offline_engine import OfflineEngine
from support.prompts import real_prompts
from support.reference_model import encode, reference_logits

NUM_TOKENS = 128
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
STRIDE = 100
"""Between stream ids, so that choices have room."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def make_engine(**settings: int) -> OfflineEngine:
    defaults = {"num_blocks": 4096, "max_num_seqs": 64, "max_num_batched_tokens": 512}
    return OfflineEngine(
        WorkerConfig(model=str(smollm2_path()), dtype="float32", **(defaults | settings))  # type: ignore[arg-type]
    )


@functools.cache
def prompts() -> list[list[int]]:
    return [encode(prompt) for prompt in real_prompts()]


@functools.cache
def batched() -> tuple[OfflineEngine, list[list[int]]]:
    """Greedy output of the prompts in one batch, and the engine that computed it."""
    engine = make_engine()
    return engine, together(engine)


def expected() -> list[list[int]]:
    """Greedy output of each prompt, which `test_every_token_is_the_one_of_transformers` holds against transformers."""
    return batched()[1]


def together(engine: OfflineEngine, sampling: SamplingParams = GREEDY) -> list[list[int]]:
    """Every prompt in one batch."""
    outputs = engine.generate(
        make_request(index * STRIDE, ids, sampling=sampling) for index, ids in enumerate(prompts())
    )
    return [outputs.tokens[index * STRIDE] for index in range(len(prompts()))]


def test_the_prompts_are_what_they_claim() -> None:
    lengths = [len(ids) for ids in prompts()]
    assert len(lengths) == 30
    assert min(lengths) <= 10
    assert max(lengths) >= 1400


def test_every_token_is_the_one_of_transformers() -> None:
    for ids, output in zip(prompts(), expected(), strict=True):
        assert len(output) == NUM_TOKENS
        choices = reference_logits(ids + output[:-1], len(ids) - 1).argmax(-1).tolist()
        assert output == choices


def test_alone() -> None:
    engine = make_engine()
    for index in range(0, len(prompts()), 5):
        outputs = engine.generate([make_request(0, prompts()[index], sampling=GREEDY)])
        assert outputs.tokens[0] == expected()[index]


def test_prefix_cached() -> None:
    engine, _ = batched()
    before = engine.stats.prefix_hit_tokens
    assert together(engine) == expected()
    full_blocks = sum((len(ids) - 1) // 16 * 16 for ids in prompts())
    assert engine.stats.prefix_hit_tokens - before == full_blocks


@pytest.mark.parametrize("max_num_batched_tokens", [67, 193])
def test_chunked_at_odd_sizes(max_num_batched_tokens: int) -> None:
    assert together(make_engine(max_num_batched_tokens=max_num_batched_tokens)) == expected()


def test_preempted() -> None:
    engine = make_engine(num_blocks=256)
    assert together(engine) == expected()
    assert engine.stats.num_preemptions > 0


def test_three_choices_share_their_prompt() -> None:
    engine = make_engine(max_num_seqs=96)
    sampling = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True, n=3)
    chosen = range(0, len(prompts()), 3)
    outputs = engine.generate(make_request(index * STRIDE, prompts()[index], sampling=sampling) for index in chosen)
    for index in chosen:
        for choice in range(3):
            assert outputs.tokens[index * STRIDE + choice] == expected()[index]
