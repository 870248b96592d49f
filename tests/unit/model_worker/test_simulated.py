from __future__ import annotations

import pytest

from shoal.model_worker.config import WorkerConfig
from shoal.model_worker.engine_setup import SetupError, set_up
from shoal.model_worker.sampling.params import SamplingParams
from support.engine_requests import make_request


def outputs(max_num_batched_tokens: int, max_num_seqs: int, num_blocks: int) -> dict[int, list[int]]:
    config = WorkerConfig(
        device="simulated",
        max_num_batched_tokens=max_num_batched_tokens,
        max_num_seqs=max_num_seqs,
        num_blocks=num_blocks,
        block_size=4,
        simulated_vocab_size=100,
    )
    parts = set_up(config, lambda stage, fraction: None)
    tokens: dict[int, list[int]] = {}
    for i in range(6):
        sampling = SamplingParams(max_tokens=30, n=1 + i % 2, min_tokens=i)
        parts.scheduler.add(make_request(10 * i, range(i, i + 13), sampling=sampling, arrival_s=float(i)))
    while (plan := parts.scheduler.schedule()) is not None:
        parts.scheduler.update(plan, parts.runner.submit(plan).result())
        output = parts.scheduler.take_output()
        for stream_id, token_id in zip(output.stream_ids.tolist(), output.token_ids.tolist(), strict=True):
            tokens.setdefault(stream_id, []).append(token_id)
    return tokens


def test_tokens_do_not_depend_on_how_the_work_was_cut() -> None:
    reference = outputs(512, 16, 512)
    assert len(reference) == 9
    assert outputs(4, 4, 512) == reference
    assert outputs(16, 16, 14) == reference  # preempts


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"max_num_seqs": 64, "max_num_batched_tokens": 32}, "below max_num_seqs"),
        ({"num_blocks": 2, "max_model_len": 33}, "hold only 32 tokens"),
        ({"max_model_len": 1 << 20}, "the model takes at most"),
        ({"device": "cpu"}, "model is required"),
    ],
)
def test_contradicting_settings_are_refused_with_numbers(settings: dict[str, object], problem: str) -> None:
    config = WorkerConfig(**({"device": "simulated"} | settings))  # type: ignore[arg-type]
    with pytest.raises(SetupError, match=problem):
        set_up(config, lambda stage, fraction: None)


def test_the_context_is_what_model_and_cache_allow_unless_configured() -> None:
    parts = set_up(WorkerConfig(device="simulated", num_blocks=10), lambda stage, fraction: None)
    assert parts.info.max_model_len == 160
    assert (parts.info.block_size, parts.info.max_num_seqs) == (16, 64)
